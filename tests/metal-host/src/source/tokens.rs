//! The tokens of a preprocessed kernel source: just enough of C++ to find declarations, brackets and attributes.
//!
//! Knows no grammar. Every byte of the text is in exactly one token, as its text or as what comes before it, so that joining
//! the tokens gives the text back.

use super::SourceError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Word,
    Number,
    /// A string or a character.
    Text,
    Mark,
    /// A whole `[[…]]`.
    Attribute,
    End,
}

#[derive(Clone, Debug)]
pub struct Token<'a> {
    pub kind: Kind,
    /// White space and preprocessor lines between the token before and this one.
    pub before: &'a str,
    /// Of an attribute, with its brackets.
    pub text: &'a str,
    /// By the line markers of the preprocessor.
    pub line: u32,
}

impl Token<'_> {
    pub fn is(&self, text: &str) -> bool {
        self.text == text && self.kind != Kind::Text
    }

    /// What stands between `[[` and `]]`.
    pub fn attribute(&self) -> Option<&str> {
        (self.kind == Kind::Attribute).then(|| self.text[2..self.text.len() - 2].trim())
    }
}

/// Cuts `text` into tokens, the last of which is the end.
pub fn tokens(text: &str) -> Result<Vec<Token<'_>>, SourceError> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut line = 1;
    loop {
        let start = at;
        at = skip(text, at, &mut line);
        let before = &text[start..at];
        if at == text.len() {
            found.push(Token { kind: Kind::End, before, text: "", line });
            return Ok(found);
        }
        let (kind, length) = one(&text[at..]).map_err(|message| SourceError { line, message })?;
        found.push(Token { kind, before, text: &text[at..at + length], line });
        line += newlines(&text[at..at + length]);
        at += length;
    }
}

fn newlines(text: &str) -> u32 {
    text.bytes().filter(|b| *b == b'\n').count() as u32
}

/// The end of the white space and preprocessor lines that begin at `at`.
fn skip(text: &str, mut at: usize, line: &mut u32) -> usize {
    let bytes = text.as_bytes();
    loop {
        match bytes.get(at) {
            Some(b'\n') => {
                *line += 1;
                at += 1;
            }
            Some(b) if b.is_ascii_whitespace() => at += 1,
            Some(b'#') => {
                let end = text[at..].find('\n').map_or(text.len(), |n| at + n);
                if let Some(marked) = marked_line(&text[at..end]) {
                    // The newline that follows counts.
                    *line = marked.saturating_sub(1);
                }
                at = end;
            }
            _ => return at,
        }
    }
}

/// The line number in `# 12 "file"` or `#line 12`.
fn marked_line(directive: &str) -> Option<u32> {
    let rest = directive.trim_start_matches('#').trim_start();
    let rest = rest.strip_prefix("line").unwrap_or(rest);
    rest.split_whitespace().next()?.parse().ok()
}

/// Kind and length of the token that `text` begins with.
fn one(text: &str) -> Result<(Kind, usize), String> {
    let first = text.as_bytes()[0];
    let run = |accept: fn(u8) -> bool| text.bytes().position(|b| !accept(b)).unwrap_or(text.len());
    match first {
        b'a'..=b'z' | b'A'..=b'Z' | b'_' => Ok((Kind::Word, run(|b| b.is_ascii_alphanumeric() || b == b'_'))),
        b'0'..=b'9' => Ok((Kind::Number, number(text))),
        b'.' if text[1..].starts_with(|c: char| c.is_ascii_digit()) => Ok((Kind::Number, number(text))),
        b'"' | b'\'' => Ok((Kind::Text, quoted(text)?)),
        b'[' if text.starts_with("[[") => Ok((Kind::Attribute, attribute(text)?)),
        _ => Ok((Kind::Mark, mark(text))),
    }
}

fn number(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut end = 1;
    while end < bytes.len() {
        let sign = matches!(bytes[end], b'+' | b'-') && matches!(bytes[end - 1] | 0x20, b'e' | b'p');
        let hexadecimal = bytes.starts_with(b"0x") && (bytes[end - 1] | 0x20) == b'e';
        if !(bytes[end].is_ascii_alphanumeric() || bytes[end] == b'.' || (sign && !hexadecimal)) {
            break;
        }
        end += 1;
    }
    end
}

fn quoted(text: &str) -> Result<usize, String> {
    let bytes = text.as_bytes();
    let mut end = 1;
    while end < bytes.len() {
        match bytes[end] {
            b'\\' => end += 2,
            b if b == bytes[0] => return Ok(end + 1),
            _ => end += 1,
        }
    }
    Err("a string that isn't closed".into())
}

fn attribute(text: &str) -> Result<usize, String> {
    let mut depth = 0usize;
    for (at, b) in text.bytes().enumerate() {
        match b {
            b'[' => depth += 1,
            b']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(at + 1);
        }
    }
    Err("an attribute that isn't closed".into())
}

/// Marks of several characters matter only where a part of them would be mistaken for a bracket, a comma or `=`.
fn mark(text: &str) -> usize {
    let long =
        ["::", "->", "==", "!=", "<=", ">=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "&&", "||"];
    if long.iter().any(|m| text.starts_with(m)) {
        return 2;
    }
    text.chars().next().map_or(1, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_tokens_are_the_text() {
        let text = "# 7 \"a.metal\"\nkernel void f(device float *x [[buffer(0)]]) {\n x[1e-3f > 0x1e+2] = '\\''; }\n";
        let found = tokens(text).expect("tokens");
        let joined: String = found.iter().flat_map(|t| [t.before, t.text]).collect();
        assert_eq!(joined, text);
        assert_eq!((found[0].text, found[0].line), ("kernel", 7));
        let attribute = found.iter().find_map(Token::attribute);
        assert_eq!(attribute, Some("buffer(0)"));
        assert!(found.iter().any(|t| t.is("1e-3f")) && found.iter().any(|t| t.is("0x1e")));
    }

    #[test]
    fn an_open_string_is_refused_with_its_line() {
        let error = tokens("int a;\nint b = \"x").expect_err("refused");
        assert_eq!(error.line, 2);
    }
}

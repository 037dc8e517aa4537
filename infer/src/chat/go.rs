//! Ollama's chat templates, which are Go's: derived from a Jinja template by watching what it writes, and checked against it.
//!
//! A conversation is its contents with fixed text between them. Which text stands where is read off renderings with contents
//! that are easily found again. A template whose text depends on anything else (the date, the contents, how many turns there
//! were) is found out by further conversations, which both templates have to write alike; it then has no Go template here.
//!
//! Knows no files. Invariant: what [`derive()`] gives writes every conversation of the probes as the Jinja template does.

use std::borrow::Cow;

use super::{ChatTemplate, Message};

/// The fixed text of conversations that end with a question.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    /// In front of the system's message.
    system: String,
    /// Between the system's message and the first question.
    after_system: String,
    /// In front of the first question where there is no system's message.
    first: String,
    /// Between a question and its answer.
    answer: String,
    /// Between an answer and the next question.
    next: String,
    /// After the last question: where the model goes on.
    end: String,
}

/// A Go template and what ends an answer in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoTemplate {
    /// The template.
    pub text: String,
    /// What follows an answer.
    pub after_answer: String,
}

/// The template for Ollama that writes what `template` writes, without the `bos` in front that the tokenizer adds; none where
/// there is no such template.
pub fn derive(template: &ChatTemplate, bos: Option<&str>) -> Option<GoTemplate> {
    let write = |messages: &[Message]| {
        let text = template.render(messages, true).ok()?;
        Some(match bos {
            Some(bos) => text.strip_prefix(bos).unwrap_or(&text).to_owned(),
            None => text,
        })
    };
    let frame = Frame::watched(&write)?;
    let text = frame.go()?;
    let has_system = write(&probe(true, 1, "p")).is_some();
    for with_system in if has_system { &[false, true][..] } else { &[false] } {
        for turns in 1..=4 {
            for words in ["p", "Is 1 < 2?\n\n{\"a\": 'b'} {{ . }} \\n", "ä\t€\n  indented"] {
                let messages = probe(*with_system, turns, words);
                if write(&messages)? != render(&text, &messages)? {
                    return None;
                }
            }
        }
    }
    // Text that is another tomorrow can't be written down today.
    let messages = probe(has_system, 2, "p");
    let later = template.clone().at(1_000_000_000).render(&messages, true).ok()?;
    (later == template.render(&messages, true).ok()?).then_some(GoTemplate { text, after_answer: frame.next })
}

/// A conversation of `turns` questions, with different contents made of `words`.
fn probe(with_system: bool, turns: usize, words: &str) -> Vec<Message> {
    let mut messages = Vec::new();
    if with_system {
        messages.push(Message::new("system", &format!("S{words}S")));
    }
    for turn in 0..turns {
        if turn > 0 {
            messages.push(Message::new("assistant", &format!("A{turn}{words}A")));
        }
        messages.push(Message::new("user", &format!("U{turn}{words}U")));
    }
    messages
}

impl Frame {
    /// The text between contents, as `write` writes it.
    fn watched(write: &dyn Fn(&[Message]) -> Option<String>) -> Option<Self> {
        let [system, question, answer, again] = ["qzSYSqz", "qzASKqz", "qzREPLYqz", "qzMOREqz"];
        let turns =
            [Message::new("user", question), Message::new("assistant", answer), Message::new("user", again)];
        let [first, answer_gap, next, end] = split(&write(&turns)?, [question, answer, again])?;
        let mut with_system = vec![Message::new("system", system)];
        with_system.extend(turns);
        let (system, after_system) = match write(&with_system) {
            Some(text) => {
                let [before, after, _, _, _] = split(&text, [system, question, answer, again])?;
                (before, after)
            }
            // Refused: then it stands in front of the first question, as users of such models write it.
            None => (first.clone(), "\n\n".to_owned()),
        };
        Some(Self { system, after_system, first, answer: answer_gap, next, end })
    }

    /// The frame in Go's language.
    fn go(&self) -> Option<String> {
        let Self { system, after_system, first, answer, next, end } = self;
        let parts = [system, after_system, first, answer, next, end];
        // A Modelfile has no way to write it.
        if parts.iter().any(|part| part.contains("\"\"\"")) {
            return None;
        }
        let [system, after_system, first, answer, next, end] = parts.map(|part| literal(part));
        Some(format!(
            "{{{{ $first := true }}}}{{{{ if .System }}}}{system}{{{{ .System }}}}{{{{ end }}}}{{{{ range .Messages }}}}\
             {{{{ if eq .Role \"user\" }}}}{{{{ if not $first }}}}{next}{{{{ else if $.System }}}}{after_system}{{{{ else }}}}{first}\
             {{{{ end }}}}{{{{ $first = false }}}}{{{{ .Content }}}}{{{{ else if eq .Role \"assistant\" }}}}{answer}{{{{ .Content }}}}\
             {{{{ end }}}}{{{{ end }}}}{end}"
        ))
    }
}

/// The text before, between and after `contents`, each of which must be there once, in order.
fn split<const N: usize, const M: usize>(text: &str, contents: [&str; N]) -> Option<[String; M]> {
    let mut parts = Vec::new();
    let mut rest = text;
    for content in contents {
        let (before, after) = rest.split_once(content)?;
        parts.push(before.to_owned());
        rest = after;
    }
    if contents.iter().any(|content| rest.contains(content)) {
        return None;
    }
    parts.push(rest.to_owned());
    parts.try_into().ok()
}

/// `text` as a template that writes it.
fn literal(text: &str) -> Cow<'_, str> {
    match text.contains("{{") {
        true => text.replace("{{", "{{ \"{{\" }}").into(),
        false => text.into(),
    }
}

/// What Ollama makes of `messages` by `template`, of whose language this knows what [`derive`] writes.
fn render(template: &str, messages: &[Message]) -> Option<String> {
    let system: Vec<&str> =
        messages.iter().filter(|m| m.role == "system").map(|m| m.content.as_str()).collect();
    let tokens = tokens(template)?;
    let mut renderer =
        Renderer { tokens: &tokens, messages, system: system.join("\n\n"), first: true, text: String::new() };
    let end = renderer.block(0, None, true)?;
    (end == tokens.len()).then_some(renderer.text)
}

/// A piece of a Go template.
#[derive(Debug, PartialEq, Eq)]
enum Token<'t> {
    Text(&'t str),
    Action(&'t str),
}

fn tokens(template: &str) -> Option<Vec<Token<'_>>> {
    let mut found = Vec::new();
    let mut rest = template;
    while let Some((text, action)) = rest.split_once("{{") {
        // The only string that holds a brace is the one of `literal`.
        let end = if action.starts_with(" \"{{\" }}") { 6 } else { action.find("}}")? };
        found.push(Token::Text(text));
        found.push(Token::Action(action[..end].trim()));
        rest = &action[end + 2..];
    }
    found.push(Token::Text(rest));
    Some(found)
}

struct Renderer<'t> {
    tokens: &'t [Token<'t>],
    messages: &'t [Message],
    system: String,
    /// The variable `$first`.
    first: bool,
    text: String,
}

impl<'t> Renderer<'t> {
    /// Runs from `at` to the `else` or `end` of this block, or only looks for it; gives its place.
    fn block(&mut self, mut at: usize, message: Option<&'t Message>, runs: bool) -> Option<usize> {
        loop {
            match self.tokens.get(at) {
                None => return Some(at),
                Some(Token::Text(text)) => {
                    self.text.push_str(if runs { text } else { "" });
                    at += 1;
                }
                Some(Token::Action(action)) => {
                    if *action == "end" || action.starts_with("else") {
                        return Some(at);
                    }
                    at = self.action(action, at + 1, message, runs)?;
                }
            }
        }
    }

    /// Does `action`, whose body begins at `at`; gives the place after it.
    fn action(&mut self, action: &str, at: usize, message: Option<&'t Message>, runs: bool) -> Option<usize> {
        if let Some(condition) = action.strip_prefix("if ") {
            return self.branches(condition, at, message, runs);
        }
        if action == "range .Messages" {
            let mut end = self.block(at, None, false)?;
            for message in if runs { self.messages } else { &[] } {
                end = self.block(at, Some(message), true)?;
            }
            return (self.tokens.get(end) == Some(&Token::Action("end"))).then_some(end + 1);
        }
        if !runs {
            return Some(at);
        }
        match action {
            "$first := true" => self.first = true,
            "$first = false" => self.first = false,
            ".System" => self.text.push_str(&self.system),
            ".Content" => self.text.push_str(&message?.content),
            "\"{{\"" => self.text.push_str("{{"),
            _ => return None,
        }
        Some(at)
    }

    /// The branches of a condition whose first begins at `at`; gives the place after their end.
    fn branches(
        &mut self,
        condition: &str,
        mut at: usize,
        message: Option<&'t Message>,
        runs: bool,
    ) -> Option<usize> {
        let mut holds = self.holds(condition, message)?;
        let mut done = false;
        loop {
            at = self.block(at, message, runs && holds && !done)?;
            done |= holds;
            let Token::Action(action) = self.tokens.get(at)? else { return None };
            at += 1;
            holds = match action.strip_prefix("else if ") {
                Some(condition) => self.holds(condition, message)?,
                None if *action == "else" => true,
                None => return (*action == "end").then_some(at),
            };
        }
    }

    fn holds(&self, condition: &str, message: Option<&Message>) -> Option<bool> {
        let role = |role: &str| message.is_some_and(|message| message.role == role);
        Some(match condition {
            ".System" | "$.System" => !self.system.is_empty(),
            "not $first" => !self.first,
            "eq .Role \"user\"" => role("user"),
            "eq .Role \"assistant\"" => role("assistant"),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
        ChatTemplate::new(Path::new("t.jinja"), source.to_owned(), &config).unwrap()
    }

    const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                          {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    #[test]
    fn chatml_in_go() {
        let derived = derive(&template(CHATML), None).unwrap();
        let want = "{{ $first := true }}{{ if .System }}<|im_start|>system\n{{ .System }}{{ end }}{{ range .Messages }}\
                    {{ if eq .Role \"user\" }}{{ if not $first }}<|im_end|>\n<|im_start|>user\n{{ else if $.System }}<|im_end|>\n\
                    <|im_start|>user\n{{ else }}<|im_start|>user\n{{ end }}{{ $first = false }}{{ .Content }}\
                    {{ else if eq .Role \"assistant\" }}<|im_end|>\n<|im_start|>assistant\n{{ .Content }}{{ end }}{{ end }}<|im_end|>\n\
                    <|im_start|>assistant\n";
        assert_eq!(derived.text, want);
        assert_eq!(derived.after_answer, "<|im_end|>\n<|im_start|>user\n");
    }

    #[test]
    fn a_default_system_message_a_system_in_the_first_turn_and_braces_are_written() {
        let default =
            "{% if messages[0].role != 'system' %}<sys>You are {{ '{{' }}me{{ '}}' }}</sys>{% endif %}";
        for source in [
            format!("{default}{CHATML}"),
            "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = '<<SYS>>' ~ messages[0].content ~ '<</SYS>>' %}\
             {% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}\
             [INST] {{ system if loop.first }}{{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
                .to_owned(),
        ] {
            let template = template(&source);
            let derived = derive(&template, Some("<s>")).unwrap();
            for with_system in [false, true] {
                let messages = probe(with_system, 3, "Why?");
                let want = template.render(&messages, true).unwrap();
                assert_eq!(render(&derived.text, &messages).unwrap(), want.strip_prefix("<s>").unwrap_or(&want));
            }
        }
    }

    #[test]
    fn a_refused_system_message_goes_into_the_first_question() {
        let source = format!(
            "{{% if messages[0].role == 'system' %}}{{{{ raise_exception('no') }}}}{{% endif %}}{CHATML}"
        );
        let derived = derive(&template(&source), None).unwrap();
        let messages = [Message::new("system", "Be brief."), Message::new("user", "Hi")];
        let want = "<|im_start|>user\nBe brief.\n\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(&derived.text, &messages).unwrap(), want);
    }

    #[test]
    fn a_template_that_does_more_than_frame_its_contents_has_no_go_template() {
        for source in [
            // The date, the number of turns, the contents, a message that is left out, one that is written twice.
            "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}",
            "{{ messages | length }}{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}",
            "{% for m in messages %}{{ m.role ~ (m.content | upper) }}{% endfor %}",
            "{% for m in messages %}{{ m.role ~ m.content.split('{')[0] }}{% endfor %}",
            "{{ messages[-1].content }}",
            "{% for m in messages %}{{ m.content ~ m.content }}{% endfor %}",
            "{{ raise_exception('never') }}",
            "{% for m in messages %}{{ m.content ~ '\"\"\"' }}{% endfor %}",
        ] {
            assert_eq!(derive(&template(source), None), None, "{source}");
        }
    }
}

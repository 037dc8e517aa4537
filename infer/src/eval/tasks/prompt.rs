//! What lm-eval's tasks do to texts: its cleaning of HellaSwag, and Python's string methods that it calls.
//!
//! Knows no rows. Invariant: pure functions of their text.

/// HellaSwag's texts as lm-eval reads them: the marks of WikiHow's headings go.
pub(super) fn cleaned(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    without_brackets(&text).replace("  ", " ")
}

/// `re.sub("\\[.*?\\]", "", text)`: from each bracket to the next that closes, on the same line.
fn without_brackets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let (before, from) = rest.split_at(open);
        out.push_str(before);
        let close = from.find([']', '\n']).filter(|at| from[*at..].starts_with(']'));
        rest = match close {
            Some(close) => &from[close + 1..],
            None => {
                out.push('[');
                &from[1..]
            }
        };
    }
    out + rest
}

/// Python's `str.capitalize`: the first character upper, all others lower.
pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &chars.as_str().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cleaned_as_lm_eval_cleans_them() {
        // What its `preprocess` gives, run on the same texts.
        for (text, want) in [
            (" Home: how [title] to paint [step] walls ", "Home: how. to paint walls"),
            ("a [title] b", "a. b"),
            ("x [substeps] y  z", "x y z"),
            ("open [ bracket", "open [ bracket"),
            ("a [line\nbreak] b", "a [line\nbreak] b"),
            ("[[a]] b", "] b"),
            ("a [\n[b] c", "a [\n c"),
        ] {
            assert_eq!(cleaned(text), want, "{text:?}");
        }
    }

    #[test]
    fn only_the_first_letter_is_upper() {
        for (text, want) in [("", ""), ("he Sees", "He sees"), ("éLAN", "Élan"), (" a", " a")] {
            assert_eq!(capitalized(text), want);
        }
    }
}

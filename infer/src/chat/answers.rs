//! Where a conversation's answers stand in what a chat template writes: what a model learns to say.
//!
//! A template that marks them itself (`{% generation %}`) is believed. Of others the conversation is written twice, with its answers and
//! with stand-ins that are easily found again; where the two differ in nothing else, the answers are found. An answer begins where the
//! prompt for it ends, and reaches over the mark that ends a turn: both are what a model has to write.
//!
//! Knows no tokens. Invariant: a span is given only where it is certain; a template that rewrites contents or hides turns gives none.

use std::ops::Range;

use super::{ChatTemplate, Message, bounds};
use crate::{Error, Result};

/// Around answers, where a template says where they are. Private characters, which no text has.
const MARKS: [char; 2] = ['\u{E0B1}', '\u{E0B2}'];
/// Around the number of an answer, in its place.
const STAND_IN: [char; 2] = ['\u{E0B3}', '\u{E0B4}'];
/// Who answers.
const ASSISTANT: &str = "assistant";

/// A conversation as one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The text.
    pub text: String,
    /// The bytes of its answers, in order.
    pub answers: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// The conversation as one text, and where the assistant's answers are in it; none where that is not certain. `ends` are the texts
    /// of tokens of which one behind an answer ends its turn.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn with_answers(&self, messages: &[Message], ends: &[String]) -> Result<Option<Written>> {
        let is_ours = |c: char| MARKS.contains(&c) || STAND_IN.contains(&c);
        if messages.iter().any(|message| message.content.contains(is_ours)) {
            return Ok(None);
        }
        let marked = bounds::render_marked(&self.source, &self.context(messages, false), self.now, MARKS);
        if let Some(marked) = marked {
            return Ok(unmarked(&marked.map_err(|problem| Error::file(&self.origin, problem))?));
        }
        let text = self.render(messages, false)?;
        let Some(found) = self.found_again(messages, &text) else { return Ok(None) };
        let answers = found.into_iter().map(|(turn, answer)| {
            let start = self.prompt_end(&messages[..turn], &text, answer.start);
            start..self.turn_end(&messages[..=turn], &text, answer.end, ends)
        });
        Ok(Some(Written { answers: answers.collect(), text }))
    }

    /// The contents of answers in `text`, each with the number of its message.
    fn found_again(&self, messages: &[Message], text: &str) -> Option<Vec<(usize, Range<usize>)>> {
        let stand_in = |turn: usize| format!("{}{turn}{}", STAND_IN[0], STAND_IN[1]);
        let turns: Vec<usize> =
            (0..messages.len()).filter(|turn| messages[*turn].role == ASSISTANT).collect();
        let mut standing = messages.to_vec();
        turns.iter().for_each(|turn| standing[*turn].content = stand_in(*turn));
        let frame = self.render(&standing, false).ok()?;
        let (mut rest, mut at, mut found) = (&*frame, 0, Vec::new());
        let mut between = Vec::new();
        for turn in &turns {
            let (before, behind) = rest.split_once(&stand_in(*turn))?;
            between.push(before);
            rest = behind;
        }
        between.push(rest);
        // A stand-in that is left is one that was written twice, or out of order.
        if between.iter().any(|text| text.contains(STAND_IN)) {
            return None;
        }
        at += text.starts_with(between[0]).then_some(between[0].len())?;
        for (turn, next) in turns.into_iter().zip(&between[1..]) {
            let content = &*messages[turn].content;
            let forms = [content, content.trim(), content.trim_end(), content.trim_start()];
            let fits =
                |form: &&str| text[at..].strip_prefix(*form).is_some_and(|behind| behind.starts_with(next));
            let content = forms.into_iter().find(fits)?;
            found.push((turn, at..at + content.len()));
            at += content.len() + next.len();
        }
        (at == text.len()).then_some(found)
    }

    /// Where the turn ends whose content ends at `end`: behind the token that ends it, or behind all that is written of `until` now, the
    /// conversation up to it, but for white space.
    fn turn_end(&self, until: &[Message], text: &str, end: usize, ends: &[String]) -> usize {
        let behind = &text[end..];
        let space = behind.len() - behind.trim_start().len();
        let fits = |mark: &&String| !mark.is_empty() && behind[space..].starts_with(mark.as_str());
        if let Some(mark) = ends.iter().filter(fits).map(String::len).max() {
            return end + space + mark;
        }
        let closed = self.render(until, false).ok().filter(|closed| text.starts_with(closed.as_str()));
        closed.map_or(end, |closed| closed.trim_end().len().max(end))
    }

    /// Where the prompt for the answer at `start` ends: there, or before it where the model writes some of what is around answers.
    fn prompt_end(&self, before: &[Message], text: &str, start: usize) -> usize {
        let prompt = self.render(before, true).ok().filter(|prompt| text.starts_with(prompt.as_str()));
        prompt.map_or(start, |prompt| prompt.len().min(start))
    }
}

/// What is written between marks, and the text without them.
fn unmarked(marked: &str) -> Option<Written> {
    let (mut text, mut answers, mut begun) = (String::new(), Vec::new(), None);
    for c in marked.chars() {
        match (c, begun) {
            (c, None) if c == MARKS[0] => begun = Some(text.len()),
            (c, Some(start)) if c == MARKS[1] => {
                answers.push(start..text.len());
                begun = None;
            }
            (c, _) if MARKS.contains(&c) => return None,
            (c, _) => text.push(c),
        }
    }
    begun.is_none().then_some(Written { text, answers })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let config = json!({"eos_token": "</s>", "bos_token": "<s>"});
        ChatTemplate::new(Path::new("template"), source.to_owned(), &config).expect("a template")
    }

    fn talk() -> Vec<Message> {
        let turns = [
            ("system", "Be kind."),
            ("user", "Hi"),
            ("assistant", "Hello! "),
            ("user", "Bye"),
            ("assistant", "Ciao"),
        ];
        turns.map(|(role, content)| Message::new(role, content)).to_vec()
    }

    fn answers(source: &str, ends: &[&str]) -> Option<Vec<String>> {
        let ends: Vec<String> = ends.iter().map(|end| (*end).to_owned()).collect();
        let written = template(source).with_answers(&talk(), &ends).expect("rendered")?;
        assert_eq!(written.text, template(source).render(&talk(), false).expect("rendered"));
        Some(written.answers.into_iter().map(|range| written.text[range].to_owned()).collect())
    }

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                          {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    #[test]
    fn an_answer_ends_with_the_mark_of_its_turn() {
        let want = ["Hello! <|im_end|>", "Ciao<|im_end|>"].map(str::to_owned).to_vec();
        assert_eq!(answers(CHATML, &["<|im_end|>", "</s>"]), Some(want.clone()));
        // Also where that is no token of its own.
        assert_eq!(answers(CHATML, &[]), Some(want));
    }

    #[test]
    fn contents_may_be_trimmed_and_the_end_may_stand_behind_a_space() {
        let source = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]\
                      {% elif m.role == 'assistant' %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}";
        // The space in front belongs to the answer: the prompt ends before it.
        assert_eq!(
            answers(source, &["</s>"]),
            Some(vec![" Hello! </s>".to_owned(), " Ciao </s>".to_owned()])
        );
    }

    #[test]
    fn what_the_prompt_leaves_to_the_model_is_learned() {
        let source = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}\
                      {{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let want = ["Hello! <end>", "<think></think>Ciao<end>"].map(str::to_owned).to_vec();
        assert_eq!(answers(source, &["<end>"]), Some(want));
    }

    #[test]
    fn a_template_that_says_where_answers_are_is_believed() {
        let source = "{%- for m in messages %}\n{%- if m.role == 'assistant' %}\nA: {% generation %}\n{{ m.content }}!\n\
                      {%- endgeneration %}\n{% else %}\nQ: {{ m.content }}\n{% endif %}\n{%- endfor %}";
        assert_eq!(answers(source, &["never"]), Some(vec!["Hello! !".to_owned(), "Ciao!".to_owned()]));
    }

    #[test]
    fn nothing_is_said_where_it_is_not_certain() {
        let upper = CHATML.replace("{{ m.content }}", "{{ m.content | upper }}");
        assert_eq!(answers(&upper, &[]), None, "rewritten");
        let twice = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}");
        assert_eq!(answers(&twice, &[]), None, "written twice");
        let hidden = CHATML.replace("{{ m.content }}", "{% if loop.last %}{{ m.content }}{% endif %}");
        assert_eq!(answers(&hidden, &[]), None, "an answer is left out");
        let counted = CHATML.replace("{{ m.role }}", "{{ m.content | length }}");
        assert_eq!(answers(&counted, &[]), None, "what is around an answer depends on it");
    }

    #[test]
    fn an_answer_that_says_what_stands_around_it_is_found_all_the_same() {
        let mut talk = talk();
        talk[2].content = "Ciao<|im_end|>\n<|im_start|>assistant\nCiao".to_owned();
        let written = template(CHATML).with_answers(&talk, &[]).expect("rendered").expect("certain");
        let found: Vec<&str> = written.answers.iter().map(|range| &written.text[range.clone()]).collect();
        assert_eq!(found, [format!("{}<|im_end|>", talk[2].content), "Ciao<|im_end|>".to_owned()]);
    }
}

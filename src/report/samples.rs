//! Texts that the float model and the packed one write on from the same words, kept in the folder of a run as `samples.json`.
//!
//! Draws nothing. Invariant: words and tokens are chosen without chance, so that two runs of a recipe go on from the same prompts.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::anyhow;
use qat_infer::{
    Opened, Runtime,
    cpu::{Cpu, KvType},
    files::{Manifest, read_json},
    generate::{Sampling, generate},
};
use serde::{Deserialize, Serialize};

/// Name of the file.
const FILE: &str = "samples.json";
/// Prompts, spread over the text.
const PROMPTS: usize = 3;
/// Words of a prompt.
const WORDS: usize = 20;
/// Letters of a prompt in which words have no spaces between them.
const LETTERS: usize = 160;
/// Tokens that are written.
const TOKENS: usize = 48;

/// A prompt with what each model wrote after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The beginning.
    pub prompt: String,
    /// What the float model wrote.
    pub float: String,
    /// What the packed model wrote.
    pub packed: String,
}

/// Samples, and of which packed model they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// Identity of the packed model.
    pub model_sha256: Option<String>,
    /// The texts.
    pub samples: Vec<Sample>,
}

impl Samples {
    /// Lets both models go on from some words of `text`. Less than all when `stop` is raised.
    ///
    /// # Errors
    /// A model that can't be opened, or has no tokenizer.
    pub fn make(float: &Path, packed: &Path, text: &str, stop: &AtomicBool) -> anyhow::Result<Self> {
        let prompts = prompts(text);
        let (of_float, _) = go_on(float, &prompts, stop)?;
        let (of_packed, model_sha256) = go_on(packed, &prompts, stop)?;
        let sample = |((prompt, float), packed)| Sample { prompt, float, packed };
        let samples = prompts.into_iter().zip(of_float).zip(of_packed).map(sample).collect();
        Ok(Self { model_sha256, samples })
    }

    /// Those of the run in `run`, if it has some.
    pub fn read(run: &Path) -> Option<Self> {
        read_json(&run.join(FILE)).ok()
    }

    /// Keeps them in the folder of the run.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&self, run: &Path) -> anyhow::Result<()> {
        crate::evaluate::write_json(&run.join(FILE), self)
    }
}

/// What the model in `dir` writes after each prompt, and its identity.
fn go_on(dir: &Path, prompts: &[String], stop: &AtomicBool) -> anyhow::Result<(Vec<String>, Option<String>)> {
    let model = Opened::<<Cpu as Runtime>::Matrix>::open(dir)?;
    let tokenizer = model.tokenizer()?;
    let told = |e: Box<dyn std::error::Error + Send + Sync>| anyhow!("{}: {e}", dir.display());
    let longest = model.decoder.config.max_position_embeddings;
    let greedy = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };
    let mut written = Vec::new();
    for prompt in prompts {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let encoded = tokenizer.encode(prompt.as_str(), true).map_err(told)?;
        let ids = encoded.get_ids();
        let most = TOKENS.min(longest.saturating_sub(ids.len()));
        let mut text = String::new();
        if most > 0 && !ids.is_empty() {
            let mut sequence = Cpu.sequence(&model.decoder, ids.len() + most, KvType::F32)?;
            let stops = &model.decoder.config.eos_token_ids;
            let generated = generate(&mut *sequence, ids, most, stops, &greedy, &mut |_| {
                if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            text = continued(&|ids| tokenizer.decode(ids, true).map_err(told), ids, &generated.tokens)?;
        }
        written.push(text);
    }
    Ok((written, model.manifest.as_ref().map(Manifest::identity)))
}

/// The text of `more` behind `ids`. Tokens are told in their context: some tokenizers drop the space in front of a first word.
fn continued(
    decode: &dyn Fn(&[u32]) -> anyhow::Result<String>,
    ids: &[u32],
    more: &[u32],
) -> anyhow::Result<String> {
    let whole = decode(&[ids, more].concat())?;
    Ok(match whole.strip_prefix(&decode(ids)?) {
        Some(rest) => rest.to_owned(),
        None => decode(more)?,
    })
}

/// Some words of `text` at its beginning and further on, each from the beginning of a paragraph if there is one near.
fn prompts(text: &str) -> Vec<String> {
    let mut prompts: Vec<String> = Vec::new();
    for part in 0..PROMPTS {
        let rest = &text[boundary(text, text.len() / PROMPTS * part)..];
        let near = &rest[..boundary(rest, 4000)];
        let paragraph = if part == 0 { None } else { near.find("\n\n").or_else(|| near.find(". ")) };
        let prompt = first_words(&rest[paragraph.map_or(0, |at| at + 2)..]);
        if !prompt.is_empty() && !prompts.contains(&prompt) {
            prompts.push(prompt);
        }
    }
    prompts
}

/// The last place up to `at` where a letter of `text` begins.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// The first words of `text`, as they stand in it.
fn first_words(text: &str) -> String {
    let text = text.trim_start();
    let mut words = 0;
    let mut end = text.len();
    let mut in_word = false;
    for (at, letter) in text.char_indices() {
        if letter.is_whitespace() && in_word {
            words += 1;
        }
        in_word = !letter.is_whitespace();
        if words == WORDS {
            end = at;
            break;
        }
    }
    let most = text.char_indices().nth(LETTERS).map_or(text.len(), |(at, _)| at);
    text[..end.min(most)].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_begin_with_paragraphs_and_end_with_words() {
        let story = |n: usize| format!("Story {n} began. {}\n\n", "It went on and on. ".repeat(20));
        let text: String = (0..9).map(story).collect();
        let prompts = prompts(&text);
        assert_eq!(prompts.len(), 3);
        assert!(prompts[0].starts_with("Story 0 began.") && prompts[1].starts_with("Story"), "{prompts:?}");
        assert!(prompts.iter().all(|p| p.split_whitespace().count() == WORDS), "{prompts:?}");
        assert_eq!(super::prompts("  "), Vec::<String>::new());
        let long = super::prompts(&"字".repeat(9000));
        assert_eq!(long, ["字".repeat(LETTERS)]);
    }

    #[test]
    fn a_word_keeps_the_space_in_front_of_it() {
        // As sentencepiece does it: the first token of a text loses its space.
        let decode = |ids: &[u32]| {
            let words: String = ids.iter().map(|id| format!(" w{id}")).collect();
            Ok(words.trim_start().to_owned())
        };
        assert_eq!(continued(&decode, &[1, 2], &[3]).expect("decodes"), " w3");
    }
}

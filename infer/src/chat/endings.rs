//! What ends an answer of a model that follows a chat template.
//!
//! Knows no model. Invariant: what ends an answer is the template's, or the model's own end of text.

use tokenizers::Tokenizer;

use super::ChatTemplate;
use crate::{Error, Result};

/// Tokens and texts that end an answer and don't belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endings {
    /// Tokens that do.
    pub tokens: Vec<u32>,
    /// Texts that do.
    pub words: Vec<String>,
}

impl Endings {
    /// Those of `template`: what it writes after an answer, and `end_of_text`, the model's tokens for that.
    ///
    /// # Errors
    /// When the template doesn't render, or the tokenizer can't encode what it writes.
    pub fn of(template: &ChatTemplate, tokenizer: &Tokenizer, end_of_text: &[u32]) -> Result<Self> {
        let (mut tokens, mut words) = (end_of_text.to_vec(), Vec::new());
        let after = template.after_answer()?;
        let encoded = tokenizer.encode(after.as_str(), false);
        let encoded = encoded.map_err(|e| Error::Invalid(format!("what follows an answer: {e}")))?;
        let is_special =
            |id: &u32| tokenizer.get_added_tokens_decoder().get(id).is_some_and(|token| token.special);
        match encoded.get_ids().first() {
            Some(id) if is_special(id) => tokens.push(*id),
            _ if !after.trim().is_empty() => words.push(after.trim_end().to_owned()),
            _ => {}
        }
        Ok(Self { tokens, words })
    }
}

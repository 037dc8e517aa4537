//! The text a model is scored on, as ids, with where in the text each of them ends.
//!
//! Knows no windows and no model. Invariant: one id for one token of the whole text encoded in one piece, without
//! special tokens; nothing is added, cut or normalized beyond what the tokenizer itself does.

use tokenizers::Tokenizer;

use crate::{Error, Result};

/// A tokenized text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    ids: Vec<u32>,
    /// Byte of the text behind the last one that the tokens up to and with this one cover.
    ends: Vec<usize>,
}

impl Text {
    /// Encodes `text`.
    ///
    /// # Errors
    /// When the text is empty, or the tokenizer can't encode it.
    pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::Invalid("the data is empty; there is nothing to score".into()));
        }
        let encoding = tokenizer
            .encode(text, false)
            .map_err(|e| Error::Invalid(format!("the tokenizer can't encode the data: {e}")))?;
        let mut covered = 0;
        let ends = encoding.get_offsets().iter().map(|(_, end)| {
            covered = covered.max(*end);
            covered
        });
        Ok(Self { ends: ends.collect(), ids: encoding.get_ids().to_vec() })
    }

    /// Token ids.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Bytes of the text that the tokens `range` cover: up to the end of the last of them, from the end of the token
    /// before the first. A character spread over several tokens counts with the first token that covers it whole.
    pub fn bytes(&self, range: std::ops::Range<usize>) -> usize {
        let end_of = |tokens: usize| tokens.checked_sub(1).map_or(0, |last| self.ends[last]);
        end_of(range.end) - end_of(range.start)
    }
}

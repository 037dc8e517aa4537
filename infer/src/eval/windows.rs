//! How a text is cut for scoring: the protocol of the perplexities in the literature of quantization (GPTQ,
//! EfficientQAT, ParetoQ).
//!
//! Knows no model. Invariant: windows don't overlap, and every token of a window but the first is predicted from all
//! that stand before it in the same window, and scored.

use std::ops::Range;

use super::Text;
use crate::{Error, Result};

/// Windows and what begins them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// Tokens of a window, with BOS if there is one.
    pub ctx: usize,
    /// Id put in front of every window, which then counts as its first token.
    pub bos: Option<u32>,
}

impl Protocol {
    /// The whole protocol in words, for reports.
    pub fn describe(&self) -> String {
        let begin = match self.bos {
            Some(id) => format!("each begins with BOS ({id}), which is not scored"),
            None => "no BOS, first token of each not scored".to_owned(),
        };
        format!(
            "token-level perplexity; text encoded as one string without special tokens; non-overlapping windows of \
             {} tokens, {begin}; last partial window dropped (a text shorter than one window is one window)",
            self.ctx
        )
    }
}

/// A text cut into windows.
#[derive(Debug)]
pub struct Windows<'t> {
    text: &'t Text,
    bos: Option<u32>,
    /// Tokens of the text in each window.
    stride: usize,
    count: usize,
}

impl<'t> Windows<'t> {
    /// Cuts `text`. A text shorter than one window is a single shorter window; of a longer one the tail is dropped.
    ///
    /// # Errors
    /// When not one token could be scored.
    pub fn new(text: &'t Text, protocol: Protocol) -> Result<Self> {
        let Protocol { ctx, bos } = protocol;
        if ctx < 2 {
            return Err(Error::Invalid(format!(
                "a window of {ctx} tokens scores nothing; choose a context of at least 2"
            )));
        }
        let tokens = text.ids().len();
        let stride = (ctx - usize::from(bos.is_some())).min(tokens);
        if stride + usize::from(bos.is_some()) < 2 {
            return Err(Error::Invalid(format!(
                "the data has {tokens} token(s), of which none follows another; want more text"
            )));
        }
        Ok(Self { text, bos, stride, count: tokens / stride })
    }

    /// Number of windows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Tokens of a window, with BOS.
    pub fn tokens(&self) -> usize {
        self.stride + usize::from(self.bos.is_some())
    }

    /// Scored tokens of each window.
    pub fn scored(&self) -> usize {
        self.tokens() - 1
    }

    /// Writes the ids of a window.
    pub fn fill(&self, window: usize, ids: &mut Vec<u32>) {
        ids.clear();
        ids.extend(self.bos);
        ids.extend_from_slice(&self.text.ids()[self.range(window)]);
    }

    /// Bytes of the text that the scored tokens of all windows cover.
    pub fn scored_bytes(&self) -> usize {
        let unscored = usize::from(self.bos.is_none());
        let scored = |window| {
            let range = self.range(window);
            self.text.bytes(range.start + unscored..range.end)
        };
        (0..self.count).map(scored).sum()
    }

    fn range(&self, window: usize) -> Range<usize> {
        window * self.stride..(window + 1) * self.stride
    }
}

//! How a model is to run on the GPU, and what its kernels can't do.
//!
//! Knows no buffers. Invariant: what came through [`Options::check`] is something that every kernel can do.

use std::ops::RangeInclusive;

use crate::cpu::{KvType, check_context};
use crate::model::{Config, Reach};
use crate::{Error, Result};

/// Tokens of a pass at most: the longest prompt that attention takes at once.
pub const PASS: usize = 256;
/// Widths of heads that attention keeps in registers.
const HEAD_DIMS: RangeInclusive<usize> = 16..=256;
/// They are read in fours.
const HEAD_STEP: usize = 4;

/// How a model is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Longest text, in tokens.
    pub context: usize,
    /// How keys and values are kept: f16 or int8.
    pub kv: KvType,
    /// Rows of logits that are made at a time: 1 to generate, more to score.
    pub logit_rows: usize,
}

impl Options {
    /// Texts of up to `context` tokens, keys and values in f16, logits of one token at a time.
    pub fn new(context: usize) -> Self {
        Self { context, kv: KvType::F16, logit_rows: 1 }
    }

    /// The same with keys and values kept as `kv`.
    pub fn with_kv(self, kv: KvType) -> Self {
        Self { kv, ..self }
    }

    /// The same with logits of up to `rows` tokens at a time.
    pub fn with_logit_rows(self, rows: usize) -> Self {
        Self { logit_rows: rows, ..self }
    }

    /// Tokens of a pass at most.
    pub(super) fn pass(&self) -> usize {
        PASS.min(self.context)
    }

    /// How far back the layers of a model reach that see a window.
    pub(super) fn reach(&self, config: &Config) -> Reach {
        Reach::new(config, self.context, self.pass())
    }

    /// Positions that a layer keeps keys and values of, which sees a window or everything.
    pub(super) fn cached(&self, config: &Config, sees_window: bool) -> usize {
        let kept = if sees_window { self.reach(config).kept() } else { None };
        kept.unwrap_or(self.context)
    }

    /// Refuses what the kernels can't do.
    ///
    /// # Errors
    /// A context that the model was not made for; a type of keys and values, or a width of heads, without kernels.
    pub(super) fn check(&self, config: &Config) -> Result<()> {
        check_context(config, self.context)?;
        if !matches!(self.kv, KvType::F16 | KvType::Int8) {
            return Err(Error::Invalid(format!(
                "a KV cache in {}: on Metal it is kept in f16 or int8; choose one of them, or --device cpu",
                self.kv
            )));
        }
        let head_dim = config.head_dim;
        if !HEAD_DIMS.contains(&head_dim) || !head_dim.is_multiple_of(HEAD_STEP) {
            return Err(Error::Invalid(format!(
                "head_dim: {head_dim}; on Metal heads have {} to {} elements, a multiple of {HEAD_STEP}; use --device cpu",
                HEAD_DIMS.start(),
                HEAD_DIMS.end()
            )));
        }
        if self.logit_rows == 0 || self.logit_rows > self.pass() {
            return Err(Error::Invalid(format!(
                "{} rows of logits at a time; want 1 to {}",
                self.logit_rows,
                self.pass()
            )));
        }
        Ok(())
    }
}

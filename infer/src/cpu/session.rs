//! One sequence being read by a model: prefill, decoding, and the logits of a whole text in bounded memory.
//!
//! Knows no sampling and no text. Invariant: reading ids in one call, one by one or in any other parts gives the same
//! bits.

use super::buffer::Buffer;
use super::exec::CpuExec;
use super::matrix::Matrix;
use crate::model::{Config, Decoder};
use crate::{Error, Result};

/// Tokens per forward pass: enough to pay for the decoding of a matrix row, few enough to keep activations small.
const PASS: usize = 256;
/// Values of logits computed at a time (64 MiB), whatever the vocabulary.
const LOGITS: usize = 1 << 24;

/// A model's tensors as the CPU uses them.
pub type CpuDecoder = Decoder<Matrix, Vec<f32>>;

/// A model and its past.
#[derive(Debug)]
pub struct Session<'m> {
    decoder: &'m CpuDecoder,
    exec: CpuExec,
}

impl<'m> Session<'m> {
    /// A session for texts of up to `context` tokens.
    ///
    /// # Errors
    /// When the model was made for less.
    pub fn new(decoder: &'m CpuDecoder, context: usize) -> Result<Self> {
        check_context(&decoder.config, context)?;
        Ok(Self { decoder, exec: CpuExec::new(&decoder.config, context) })
    }

    /// Tokens read so far.
    pub fn position(&self) -> usize {
        self.exec.position()
    }

    /// Begins a new text.
    pub fn reset(&mut self) {
        self.exec.reset();
    }

    /// Reads `ids` and gives the logits `[1, vocab]` of what follows the last one.
    ///
    /// # Errors
    /// When there are no ids, one is outside the vocabulary, or they don't fit the context.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<Buffer> {
        let mut last = None;
        for ids in ids.chunks(PASS) {
            last = Some(self.pass(ids)?);
        }
        let Some(hidden) = last else {
            return Err(Error::Invalid("nothing to read: want at least one token".into()));
        };
        let row = self.copy_rows(&hidden, hidden.rows() - 1, 1);
        self.decoder.logits(&mut self.exec, &row)
    }

    /// Reads one token and gives the logits `[1, vocab]` of the next.
    ///
    /// # Errors
    /// When the id is outside the vocabulary or the context is full.
    pub fn step(&mut self, id: u32) -> Result<Buffer> {
        self.prefill(&[id])
    }

    /// Reads `ids` and gives the normed hidden states `[ids, hidden]`, from which [`logits`](Self::logits) are made.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or they don't fit the context.
    pub fn hidden(&mut self, ids: &[u32]) -> Result<Buffer> {
        let width = self.decoder.config.hidden_size;
        let mut all = self.exec.pool().take(ids.len(), width);
        for (ids, part) in ids.chunks(PASS).zip(all.chunks_mut(PASS * width)) {
            part.copy_from_slice(&self.pass(ids)?);
        }
        Ok(all)
    }

    /// Logits `[count, vocab]` of the rows of `hidden` from `first` on.
    ///
    /// # Errors
    /// None that [`hidden`](Self::hidden) would not have given.
    pub fn logits(&mut self, hidden: &Buffer, first: usize, count: usize) -> Result<Buffer> {
        let rows = self.copy_rows(hidden, first, count);
        self.decoder.logits(&mut self.exec, &rows)
    }

    /// Rows of logits that fit the memory set aside for them.
    pub fn logit_rows(&self) -> usize {
        (LOGITS / self.decoder.config.vocab_size).max(1)
    }

    fn pass(&mut self, ids: &[u32]) -> Result<Buffer> {
        let hidden = self.decoder.forward(&mut self.exec, ids)?;
        self.exec.advance(ids.len());
        Ok(hidden)
    }

    fn copy_rows(&self, from: &Buffer, first: usize, count: usize) -> Buffer {
        let mut rows = self.exec.pool().take(count, from.width());
        rows.copy_from_slice(&from[first * from.width()..][..count * from.width()]);
        rows
    }
}

/// Refuses a context that the model was not made for.
///
/// # Errors
/// Names both lengths.
pub fn check_context(config: &Config, context: usize) -> Result<()> {
    let longest = config.max_position_embeddings;
    if context == 0 || context > longest {
        return Err(Error::Invalid(format!(
            "a context of {context} tokens: the model's longest is {longest} (max_position_embeddings); \
             choose 1 to {longest}"
        )));
    }
    Ok(())
}

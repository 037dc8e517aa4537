//! A text being read by a model, whatever carries the model out; and what opens such texts.
//!
//! Knows no device. Invariant: what is said of a sequence holds on every runtime; how fast and how exact it is, is the
//! runtime's.

use std::ops::ControlFlow;

use crate::cpu::KvType;
use crate::model::Decoder;
use crate::{Error, Result, RuntimeMatrix};

/// A model and its past.
pub trait Sequence {
    /// Tokens of the vocabulary.
    fn vocab(&self) -> usize;

    /// Tokens read so far.
    fn position(&self) -> usize;

    /// Begins a new text.
    fn reset(&mut self);

    /// Forgets all but the first `tokens` that it has read, and says whether it could: of convolutions only the end of a text is
    /// remembered, so that a model that has some goes back to the beginning or not at all, and layers that see a window remember little
    /// more than that. Where it couldn't, nothing was forgotten.
    fn rewind(&mut self, tokens: usize) -> bool;

    /// Names how [`past`](Self::past) lays bytes out: the runtime, and the type of keys and values.
    fn past_layout(&self) -> String;

    /// All that is remembered of the tokens read, as bytes.
    ///
    /// # Errors
    /// When a device fails.
    fn past(&mut self) -> Result<Vec<u8>>;

    /// Remembers `past`, which a sequence of the same model and [layout](Self::past_layout) gave after reading `ids`, in the place of what was
    /// read.
    ///
    /// # Errors
    /// When there is no room for so many tokens, or the length is not theirs: then nothing was changed. When a device fails.
    fn restore(&mut self, ids: &[u32], past: &[u8]) -> Result<()>;

    /// Reads `ids` and gives the logits `[vocab]` of what follows the last one.
    ///
    /// # Errors
    /// When there are no ids, one is outside the vocabulary, or they don't fit the context; then nothing was read. When a
    /// device fails.
    fn prefill(&mut self, ids: &[u32]) -> Result<&[f32]>;

    /// Reads `ids` and gives the normed hidden states `[ids, hidden]`, from which [`logits`](Self::logits) are made.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    fn hidden(&mut self, ids: &[u32]) -> Result<Vec<f32>>;

    /// Logits `[count, vocab]` of the rows of `hidden` `[_, hidden]` from `first` on, at most
    /// [`logit_rows`](Self::logit_rows).
    ///
    /// # Errors
    /// When `hidden` has no such rows, or a device fails.
    fn logits(&mut self, hidden: &[f32], first: usize, count: usize) -> Result<&[f32]>;

    /// Rows of logits that are made at a time.
    fn logit_rows(&self) -> usize;

    /// Reads `ids` and gives the `k` likeliest ids after the last one with their logits, the likeliest first, ties by id.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill); when `k` is 0 or more than there are.
    fn top(&mut self, ids: &[u32], k: usize) -> Result<Vec<(u32, f32)>> {
        let vocab = self.vocab();
        if k == 0 || k > vocab {
            return Err(Error::Invalid(format!("the {k} likeliest tokens: want 1 to {vocab}")));
        }
        Ok(likeliest(self.prefill(ids)?, k))
    }

    /// Reads `ids` and writes up to `most` tokens, each the likeliest (of equal ones the first); `each` hears of it, and
    /// says whether to go on. The last one is not read.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    fn greedy(
        &mut self,
        ids: &[u32],
        most: usize,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<()> {
        if most == 0 {
            return Ok(());
        }
        let mut next = top1(self.prefill(ids)?) as u32;
        for written in 1..=most {
            if each(next).is_break() || written == most {
                break;
            }
            next = top1(self.prefill(&[next])?) as u32;
        }
        Ok(())
    }
}

/// What runs models: it has matrices of its own kind, and opens sequences over them.
pub trait Runtime {
    /// What it makes of a matrix in a file.
    type Matrix: RuntimeMatrix;

    /// What it runs on, in a word, and the instructions or the family that decide its kernels.
    ///
    /// # Errors
    /// When what was asked for is not there.
    fn describe(&self) -> Result<[String; 2]>;

    /// The most exact type of keys and values that it has.
    fn exact_kv(&self) -> KvType;

    /// A sequence of up to `context` tokens, keys and values kept as `kv`.
    ///
    /// # Errors
    /// When the model was made for less, the memory doesn't suffice, or the runtime lacks something that is asked for.
    fn sequence<'m>(
        &self,
        decoder: &'m Decoder<Self::Matrix, Vec<f32>>,
        context: usize,
        kv: KvType,
    ) -> Result<Box<dyn Sequence + 'm>>;
}

/// Refuses a past of `tokens` and `bytes` where there is room for `context` tokens, and so many take `wanted` bytes.
pub(crate) fn check_past(tokens: usize, context: usize, bytes: usize, wanted: u64) -> Result<()> {
    if tokens > context {
        return Err(Error::Invalid(format!("a past of {tokens} tokens, with room for {context}")));
    }
    if bytes as u64 != wanted {
        return Err(Error::Invalid(format!("a past of {bytes} bytes, and {tokens} tokens take {wanted}")));
    }
    Ok(())
}

/// The `k` ids with the highest logits, and these, the highest first, ties by id; `k` is 1 to as many as there are.
pub(crate) fn likeliest(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    let likelier = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if k < all.len() {
        all.select_nth_unstable_by(k - 1, likelier);
        all.truncate(k);
    }
    all.sort_by(likelier);
    all
}

/// The id with the highest logit; the first of several.
pub(crate) fn top1(logits: &[f32]) -> usize {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best
}

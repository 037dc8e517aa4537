//! A device as one of the runtimes.
//!
//! Knows no model.

use std::ops::ControlFlow;

use super::Decoder;
use super::device::Device;
use super::matrix::Matrix;
use super::options::{Options, PASS};
use super::session::Session;
use crate::cpu::KvType;
use crate::{Result, Runtime, Sequence};

/// Values of logits made at a time (16 MiB), whatever the vocabulary.
const LOGITS: usize = 1 << 22;

/// Sequences on devices of one kind.
#[derive(Debug, Clone)]
pub struct Metal<F> {
    /// What it runs on, for people: the chip, and its GPU family.
    pub description: [String; 2],
    /// Gives a sequence its device, with nothing allocated on it.
    pub open: F,
}

impl<D: Device + 'static, F: Fn() -> Result<D>> Runtime for Metal<F> {
    type Matrix = Matrix;

    fn describe(&self) -> Result<[String; 2]> {
        Ok(self.description.clone())
    }

    fn exact_kv(&self) -> KvType {
        KvType::F16
    }

    fn sequence<'m>(
        &self,
        decoder: &'m Decoder,
        context: usize,
        kv: KvType,
    ) -> Result<Box<dyn Sequence + 'm>> {
        let rows = (LOGITS / decoder.config.vocab_size).clamp(1, PASS.min(context).max(1));
        let options = Options::new(context).with_kv(kv).with_logit_rows(rows);
        Ok(Box::new(Session::new(decoder, options, (self.open)()?)?))
    }
}

impl<D: Device> Sequence for Session<'_, D> {
    fn vocab(&self) -> usize {
        self.vocab()
    }

    fn position(&self) -> usize {
        self.position()
    }

    fn reset(&mut self) {
        self.reset();
    }

    fn rewind(&mut self, tokens: usize) -> bool {
        self.rewind(tokens)
    }

    fn past_layout(&self) -> String {
        self.past_layout()
    }

    fn past(&mut self) -> Result<Vec<u8>> {
        self.past()
    }

    fn restore(&mut self, ids: &[u32], past: &[u8]) -> Result<()> {
        self.restore(ids, past)
    }

    fn prefill(&mut self, ids: &[u32]) -> Result<&[f32]> {
        self.prefill(ids)
    }

    fn hidden(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.hidden(ids)
    }

    fn logits(&mut self, hidden: &[f32], first: usize, count: usize) -> Result<&[f32]> {
        self.logits(hidden, first, count)
    }

    fn logit_rows(&self) -> usize {
        self.logit_rows()
    }

    fn top(&mut self, ids: &[u32], k: usize) -> Result<Vec<(u32, f32)>> {
        self.top(ids, k)
    }

    fn greedy(
        &mut self,
        ids: &[u32],
        most: usize,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<()> {
        self.greedy(ids, most, each)
    }
}

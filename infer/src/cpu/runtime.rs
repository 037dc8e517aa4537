//! The CPU as one of the runtimes.
//!
//! Knows no model.

use qat_quant::kernels::Isa;

use super::kv::KvType;
use super::matrix::Matrix;
use super::session::{CpuDecoder, RunOptions, Session};
use crate::{Result, Runtime, Sequence};

/// Sequences on this processor, on as many threads as the process may use.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

impl Runtime for Cpu {
    type Matrix = Matrix;

    fn describe(&self) -> Result<[String; 2]> {
        Ok(["cpu".into(), Isa::active()?.name().into()])
    }

    fn exact_kv(&self) -> KvType {
        KvType::F32
    }

    fn sequence<'m>(
        &self,
        decoder: &'m CpuDecoder,
        context: usize,
        kv: KvType,
    ) -> Result<Box<dyn Sequence + 'm>> {
        Ok(Box::new(Session::new(decoder, &RunOptions::new(context).with_kv(kv))?))
    }
}

impl Sequence for Session<'_> {
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
}

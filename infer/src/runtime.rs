//! Which runtime a model runs on, and what all of them can do.
//!
//! Whoever scores a model or has it write asks a [`Sequence`], and doesn't know who reads. Knows no sampling and no text.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::str::FromStr;

use tokenizers::Tokenizer;

use crate::cpu::{self, KvType};
use crate::files::Activations;
use crate::model::Config;
use crate::{Error, Result, Size, metal};

/// One text being read by a model.
pub trait Sequence {
    /// Tokens read so far.
    fn position(&self) -> usize;

    /// Begins a new text.
    fn reset(&mut self);

    /// Reads `ids` and gives the logits `[vocab]` of what follows the last one.
    ///
    /// # Errors
    /// When there are no ids, one is outside the vocabulary, or they don't fit the context: then nothing was read. When
    /// the device fails.
    fn prefill(&mut self, ids: &[u32]) -> Result<&[f32]>;

    /// Reads `ids` and gives the normed hidden states `[ids, hidden]`, from which [`logits`](Self::logits) are made.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    fn hidden(&mut self, ids: &[u32]) -> Result<Vec<f32>>;

    /// Logits `[count, vocab]` of the rows of `hidden` `[_, hidden]` from `first` on.
    ///
    /// # Errors
    /// When `hidden` has no such rows, or they are more than [`logit_rows`](Self::logit_rows); when the device fails.
    fn logits(&mut self, hidden: &[f32], first: usize, count: usize) -> Result<&[f32]>;

    /// Rows of logits that are made at a time.
    fn logit_rows(&self) -> usize;

    /// Reads `ids` and gives the `k` likeliest ids after the last one with their logits, the likeliest first, ties by id.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill); when `k` is 0 or more than there are.
    fn top(&mut self, ids: &[u32], k: usize) -> Result<Vec<(u32, f32)>>;

    /// Reads `ids` and writes up to `most` tokens, each the likeliest; `each` hears of it, and says whether to go on.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), with the tokens to write counted in.
    fn greedy(
        &mut self,
        ids: &[u32],
        most: usize,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<()>;
}

/// Who runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The processor.
    Cpu,
    /// Apple's GPU.
    Metal,
}

/// A runtime as users ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Apple's GPU where there is one that will do, else the processor.
    Auto,
    /// Nothing else.
    Only(Runtime),
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Metal => "metal",
        })
    }
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Only(Runtime::Cpu)),
            "metal" => Ok(Self::Only(Runtime::Metal)),
            "cuda" => Err(Error::Invalid(
                "--device cuda: packed models run on the CPU and on Metal; use --device cpu".into(),
            )),
            _ => Err(Error::Invalid(format!("--device {name}: want auto, cpu or metal"))),
        }
    }
}

impl Choice {
    /// The runtime that is meant on this machine.
    ///
    /// # Errors
    /// When Metal is asked for and can't be had, with the reason.
    pub fn runtime(self) -> Result<Runtime> {
        match self {
            Self::Auto => Ok(if chip::usable().is_ok() { Runtime::Metal } else { Runtime::Cpu }),
            Self::Only(Runtime::Metal) => chip::usable().map(|()| Runtime::Metal),
            Self::Only(runtime) => Ok(runtime),
        }
    }
}

/// A model ready to run on a runtime.
#[derive(Debug)]
pub enum Loaded {
    /// On the processor.
    Cpu(cpu::Model),
    /// On Apple's GPU.
    Metal(metal::Model),
}

macro_rules! of_any {
    ($loaded:expr, $model:ident => $body:expr) => {
        match $loaded {
            Loaded::Cpu($model) => $body,
            Loaded::Metal($model) => $body,
        }
    };
}

impl Loaded {
    /// Opens a packed directory or a float one for a runtime.
    ///
    /// # Errors
    /// When it is damaged, or asks for something that the decoder lacks.
    pub fn open(dir: &Path, runtime: Runtime) -> Result<Self> {
        match runtime {
            Runtime::Cpu => cpu::Model::open(dir).map(Self::Cpu),
            Runtime::Metal => metal::Model::open(dir).map(Self::Metal),
        }
    }

    /// What it was opened for.
    pub fn runtime(&self) -> Runtime {
        match self {
            Self::Cpu(_) => Runtime::Cpu,
            Self::Metal(_) => Runtime::Metal,
        }
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        of_any!(self, model => &model.decoder.config)
    }

    /// The directory it came from.
    pub fn origin(&self) -> &Path {
        of_any!(self, model => &model.origin)
    }

    /// What its files weigh.
    pub fn size(&self) -> Size {
        of_any!(self, model => model.size)
    }

    /// The tokenizer beside the weights.
    ///
    /// # Errors
    /// When it can't be read or gives ids that the model doesn't have.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        of_any!(self, model => model.tokenizer())
    }

    /// Chooses what the inputs of packed matrices are rounded to, whatever the manifest says of how the model was trained.
    pub fn set_activations(&mut self, activations: Activations) {
        of_any!(self, model => model.set_activations(activations));
    }

    /// The type of keys and values that rounds least.
    pub fn widest_kv(&self) -> KvType {
        match self {
            Self::Cpu(_) => KvType::F32,
            Self::Metal(_) => KvType::F16,
        }
    }

    /// Instructions that it runs with, or the GPU's name.
    ///
    /// # Errors
    /// When this processor lacks the instruction set that was asked for, or there is no GPU.
    pub fn isa(&self) -> Result<String> {
        match self {
            Self::Cpu(_) => Ok(qat_quant::kernels::Isa::active()?.name().to_owned()),
            Self::Metal(_) => chip::name(),
        }
    }

    /// A text of up to `context` tokens, with logits of up to `rows` tokens at a time (on the processor as many as fit a
    /// bounded memory).
    ///
    /// # Errors
    /// When the model was made for less, or memory or the device doesn't allow it.
    pub fn sequence(&self, context: usize, kv: KvType, rows: usize) -> Result<Box<dyn Sequence + '_>> {
        match self {
            Self::Cpu(model) => {
                let options = cpu::RunOptions::new(context).with_kv(kv);
                Ok(Box::new(cpu::Session::new(&model.decoder, &options)?))
            }
            Self::Metal(model) => {
                let options = metal::Options::new(context).with_kv(kv);
                let rows = rows.clamp(1, metal::PASS.min(context));
                chip::sequence(&model.decoder, options.with_logit_rows(rows))
            }
        }
    }
}

/// What there is of Metal on this machine.
#[cfg(any(target_os = "macos", target_os = "ios"))]
mod chip {
    use super::Sequence;
    use crate::Result;
    use crate::metal::{Chip, Decoder, Options, Session};

    pub(super) fn usable() -> Result<()> {
        Chip::open().map(|_| ())
    }

    pub(super) fn name() -> Result<String> {
        Chip::describe().map(|chip| chip.name)
    }

    pub(super) fn sequence(decoder: &Decoder, options: Options) -> Result<Box<dyn Sequence + '_>> {
        Ok(Box::new(Session::new(decoder, options, Chip::open()?)?))
    }
}

/// What there is of Metal on this machine: nothing.
#[cfg(not(any(target_os = "macos", target_os = "ios")))]
mod chip {
    use super::Sequence;
    use crate::metal::{Decoder, Options};
    use crate::{Error, Result};

    pub(super) fn usable() -> Result<()> {
        Err(none())
    }

    pub(super) fn name() -> Result<String> {
        Err(none())
    }

    pub(super) fn sequence(_: &Decoder, _: Options) -> Result<Box<dyn Sequence>> {
        Err(none())
    }

    fn none() -> Error {
        Error::Invalid(format!(
            "--device metal: Metal is Apple's, and this is {}; use --device cpu",
            std::env::consts::OS
        ))
    }
}

/// The sequence that a type's own methods of the same names make.
macro_rules! sequence_by_own_methods {
    () => {
        fn position(&self) -> usize {
            self.position()
        }

        fn reset(&mut self) {
            self.reset();
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
    };
}

impl<D: metal::Device> Sequence for metal::Session<'_, D> {
    sequence_by_own_methods!();

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

impl Sequence for cpu::Session<'_> {
    sequence_by_own_methods!();

    fn top(&mut self, ids: &[u32], k: usize) -> Result<Vec<(u32, f32)>> {
        let logits = self.prefill(ids)?;
        if k == 0 || k > logits.len() {
            return Err(Error::Invalid(format!("the {k} likeliest tokens: want 1 to {}", logits.len())));
        }
        let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        let likelier = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if k < all.len() {
            all.select_nth_unstable_by(k - 1, likelier);
            all.truncate(k);
        }
        all.sort_by(likelier);
        Ok(all)
    }

    fn greedy(
        &mut self,
        ids: &[u32],
        most: usize,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut ids = ids.to_vec();
        for _ in 0..most {
            let next = crate::eval::top1(self.prefill(&ids)?) as u32;
            if each(next).is_break() {
                break;
            }
            ids = vec![next];
        }
        Ok(())
    }
}

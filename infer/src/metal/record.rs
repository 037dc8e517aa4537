//! What a model asks of the GPU: its buffers, and the list of every kind of pass.
//!
//! Knows no device. Invariant: where in the text a list may run depends on nothing in it but the size of its grids; the
//! position is in the buffer `step`.

use super::Decoder;
use super::buffers::{Buffer, Buffers};
use super::list::{BufferId, List};
use super::lower::{Lowering, Part, attention_kernel};
use super::matrix::Matrix;
use super::options::Options;
use crate::Result;
use crate::model::Sight;
use crate::plan::{Plan, Turn};

/// What is done after the hidden states of a pass are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tail {
    /// Nothing: more of the text follows, or hidden states are read.
    Nothing,
    /// Logits of the last token.
    Logits,
    /// These, and the greatest of them becomes the next pass's id.
    Argmax,
    /// These, and so many of the greatest.
    Top(u32),
}

/// What tells one list of a model from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Ids to hidden states.
    Body {
        /// How many ids.
        tokens: usize,
        /// Positions before the first of them: for one token, what decides into how many parts they are cut.
        past: usize,
        /// What follows.
        tail: Tail,
    },
    /// Hidden states of so many tokens, from the first of the body's last buffer on, to logits.
    Head {
        /// How many rows.
        rows: usize,
    },
}

/// A model's plan, the buffers that it works with, and the lists that it becomes.
#[derive(Debug)]
pub struct Script<'m> {
    pub(super) decoder: &'m Decoder,
    pub(super) plan: Plan<'m, &'m Matrix>,
    pub(super) buffers: Buffers,
    pub(super) options: Options,
}

impl<'m> Script<'m> {
    /// The script of a model that runs as `options` say.
    ///
    /// # Errors
    /// What [`Options`] can't be honoured for; a model that asks for something the kernels lack.
    pub fn new(decoder: &'m Decoder, options: Options) -> Result<Self> {
        options.check(&decoder.config)?;
        let plan = Plan::new(decoder)?;
        let buffers = Buffers::new(decoder, &plan, &options);
        Ok(Self { decoder, plan, buffers, options })
    }

    /// The buffers; a [`BufferId`] is a place in this list.
    pub fn buffers(&self) -> &[Buffer] {
        self.buffers.all()
    }

    /// What the buffers of [constants](super::Content::Constants) begin with.
    pub fn constants(&self) -> impl Iterator<Item = (BufferId, Vec<u8>)> {
        self.buffers.constants(self.decoder, &self.plan.ropes, self.options.context)
    }

    /// Into how many parts attention to everything cuts `past` positions of one token.
    pub(super) fn parts(&self, past: usize) -> u32 {
        let config = &self.decoder.config;
        let kernel =
            attention_kernel(config, &self.options, &Turn::default(), Sight::all(config.query_scalar));
        kernel.parts(past as u32)
    }

    /// Where the body leaves the hidden states.
    pub(super) fn hidden(&self) -> BufferId {
        self.buffers.body[self.plan.body.output.0]
    }

    /// Where the head leaves the logits.
    pub(super) fn logits(&self) -> BufferId {
        self.buffers.head[self.plan.head.output.0]
    }

    /// The list of a pass.
    ///
    /// # Errors
    /// When the model asks for something the kernels lack.
    ///
    /// # Panics
    /// When a pass has no tokens, or more than there is room for.
    pub fn list(&self, pass: Pass) -> Result<List> {
        match pass {
            Pass::Body { tokens, past, tail } => {
                let mut body = Lowering::new(self, Part::Body, tokens, past);
                body.program(&self.plan.body)?;
                if tail == Tail::Nothing {
                    return Ok(body.list);
                }
                let mut head = Lowering::new(self, Part::Head { first: tokens - 1 }, 1, 0).after(body.list);
                head.program(&self.plan.head)?;
                head.choose(tail);
                Ok(head.list)
            }
            Pass::Head { rows } => {
                let mut head = Lowering::new(self, Part::Head { first: 0 }, rows, 0);
                head.program(&self.plan.head)?;
                Ok(head.list)
            }
        }
    }
}

//! Carries out programs: the threads, the buffers' operations, the KV cache and the position in the text.
//!
//! Knows no model. Invariants: what a token gets depends neither on how tokens were cut into calls nor on the number of
//! threads (no tolerance is needed between prefill and decoding: the bits are the same); a token allocates nothing once
//! the buffers are there.

use qat_quant::vectorized;

use super::attention::Attention;
use super::inputs::{Inputs, Norm};
use super::kv::{Cache, KvType};
use super::lanes;
use super::pool::{Chunks, Joined, Pool, Tiles};
use super::program::{Epilogue, Op, Product, Program, Turn, Value};
use super::rotation::Rotation;
use super::stand_in::{Isa, PANEL};
use crate::model::{Config, Rope};
use crate::{Error, Result};

/// Threads and past of one sequence.
#[derive(Debug)]
pub(super) struct Engine {
    pool: Pool,
    isa: Isa,
    inputs: Inputs,
    cache: Cache,
    attention: Attention,
    rotations: Vec<Rotation>,
    /// Tokens in the cache; the position of the next one.
    position: usize,
}

/// The memory of a program.
#[derive(Debug)]
pub(super) struct Buffers(Vec<Vec<f32>>);

impl Buffers {
    /// Memory for passes of up to `tokens`.
    pub(super) fn new(program: &Program<'_>, tokens: usize) -> Self {
        Self(program.widths.iter().map(|width| vec![0.0; tokens * width]).collect())
    }

    /// Makes room for passes of `tokens`.
    pub(super) fn fit(&mut self, program: &Program<'_>, tokens: usize) {
        for (buffer, width) in self.0.iter_mut().zip(&program.widths) {
            if buffer.len() < tokens * width {
                *buffer = vec![0.0; tokens * width];
            }
        }
    }

    /// The first `len` elements of a buffer.
    pub(super) fn get(&self, value: Value, len: usize) -> &[f32] {
        &self.0[value.0][..len]
    }

    /// The same, to be written.
    pub(super) fn get_mut(&mut self, value: Value, len: usize) -> &mut [f32] {
        &mut self.0[value.0][..len]
    }

    /// Takes a buffer out, so that it can be written while others are read; [`put`](Self::put) it back.
    fn take(&mut self, value: Value) -> Vec<f32> {
        std::mem::take(&mut self.0[value.0])
    }

    fn put(&mut self, value: Value, buffer: Vec<f32>) {
        self.0[value.0] = buffer;
    }
}

impl Engine {
    /// Threads, and an empty cache for `capacity` tokens.
    ///
    /// # Errors
    /// When the threads can't be had, the cache doesn't fit the memory, or this processor lacks the instruction set that
    /// was asked for.
    pub(super) fn new(config: &Config, ropes: &[Rope], capacity: usize, kv: KvType, threads: usize) -> Result<Self> {
        let cache = Cache::new(config, kv, capacity)?;
        Ok(Self {
            pool: Pool::new(threads)?,
            isa: Isa::active()?,
            inputs: Inputs::default(),
            attention: Attention::new(*cache.shape(), capacity, threads),
            rotations: ropes.iter().map(|rope| Rotation::new(rope, capacity)).collect(),
            cache,
            position: 0,
        })
    }

    /// Tokens seen so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Forgets what it has seen; keeps the memory.
    pub(super) fn reset(&mut self) {
        self.position = 0;
        self.cache.clear();
    }

    /// The KV cache.
    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Refuses what a pass could not take.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or the tokens don't fit the context.
    pub(super) fn check(&self, ids: &[u32], vocab: usize) -> Result<()> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Invalid(format!(
                "token id {id} is outside the model's vocabulary of {vocab}; does the tokenizer belong to the model?"
            )));
        }
        if self.position + ids.len() > self.cache.capacity() {
            return Err(Error::Invalid(format!(
                "{} tokens after {} don't fit a context of {}; make the context longer or the text shorter",
                ids.len(),
                self.position,
                self.cache.capacity()
            )));
        }
        Ok(())
    }

    /// Takes `ids` through a program from ids to hidden states, and into the past. They have been
    /// [checked](Self::check), and the buffers fit.
    pub(super) fn read(&mut self, program: &Program<'_>, buffers: &mut Buffers, ids: &[u32]) {
        self.cache.extend_to(self.position + ids.len());
        self.rotations.iter_mut().for_each(|rotation| rotation.extend_to(self.position + ids.len()));
        self.run(program, buffers, ids, ids.len());
        self.position += ids.len();
    }

    /// Carries out a program on `tokens` rows.
    pub(super) fn run(&mut self, program: &Program<'_>, buffers: &mut Buffers, ids: &[u32], tokens: usize) {
        self.inputs.fit(tokens, program.widest_input());
        for op in &program.ops {
            match op {
                Op::Embed { table, out } => table.gather(ids, buffers.get_mut(*out, tokens * table.cols())),
                Op::Norm { x, norm, out } => self.norm(buffers, tokens, *x, *norm, *out),
                Op::Products { x, norm, products, outs, epilogue } => {
                    self.prepare(buffers, tokens, *x, *norm, products);
                    match epilogue {
                        Epilogue::Store => self.store(buffers, tokens, *x, products, outs),
                        Epilogue::Add => self.accumulate(buffers, tokens, *x, &products[0], outs[0]),
                        Epilogue::Gate => self.gate_products(buffers, tokens, *x, products, outs),
                    }
                }
                Op::Turn { x, heads, turn } => {
                    let width = heads * self.cache.shape().head_dim;
                    self.turn(&mut buffers.get_mut(*x, tokens * width), width, *turn);
                }
                Op::Attention { layer, q, k, v, turns, out } => {
                    self.attend(buffers, tokens, *layer, [*q, *k, *v], turns, *out);
                }
                Op::Gate { gate, up } => self.pairwise(buffers, *gate, *up, tokens, lanes::swiglu),
                Op::Add { to, from } => self.pairwise(buffers, *to, *from, tokens, lanes::add),
            }
        }
    }
}

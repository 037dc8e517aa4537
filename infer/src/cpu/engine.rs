//! Carries out programs: the threads, the buffers' operations, the KV cache and the position in the text.
//!
//! Knows no model. Invariants: what a token gets depends neither on how tokens were cut into calls nor on the number of
//! threads (no tolerance is needed between prefill and decoding: the bits are the same); a token allocates nothing once
//! the buffers are there.

use qat_quant::vectorized;

use super::attention::Attention;
use super::buffers::{Buffer, Buffers};
use super::convolution::Recent;
use super::inputs::Inputs;
use super::kv::{KvCache, KvType};
use super::lanes;
use super::matrix::Needs;
use super::operand::{AT_ONCE, Operand, add, keep};
use super::pool::{Chunks, Joined, Pool, Tiles};
use super::rotation::Rotation;
use super::{Product, Program};
use crate::model::{AttentionShape, Config, Gate, Rope, Sight};
use crate::plan::{Epilogue, MOST, Norm, Op, Turn, Value, Weight as _};
use crate::sequence::check_past;
use crate::{Error, Result};
use qat_quant::kernels::{Isa, PANEL};

/// Threads and past of one sequence.
#[derive(Debug)]
pub(super) struct Engine {
    pool: Pool,
    isa: Isa,
    inputs: Inputs,
    cache: KvCache,
    attention: Attention,
    rotations: Vec<Rotation>,
    /// What the convolutions remember.
    recent: Recent,
    /// Tokens in the cache; the position of the next one.
    position: usize,
}

impl Engine {
    /// Threads, and an empty cache for `capacity` tokens.
    ///
    /// # Errors
    /// When the threads can't be had, the cache doesn't fit the memory, or this processor lacks the instruction set that
    /// was asked for.
    pub(super) fn new(
        config: &Config,
        ropes: &[Rope],
        capacity: usize,
        kv: KvType,
        threads: usize,
    ) -> Result<Self> {
        let cache = KvCache::new(config, kv, capacity)?;
        Ok(Self {
            pool: Pool::new(threads)?,
            isa: Isa::active()?,
            inputs: Inputs::default(),
            attention: Attention::new(*cache.shape(), capacity, threads),
            rotations: ropes.iter().map(|rope| Rotation::new(rope, capacity)).collect(),
            recent: Recent::new(config),
            cache,
            position: 0,
        })
    }

    /// Has products made by the instructions of `isa`.
    pub(super) fn set_isa(&mut self, isa: Isa) {
        self.isa = isa;
    }

    /// Tokens seen so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Forgets what it has seen; keeps the memory.
    pub(super) fn reset(&mut self) {
        self.position = 0;
        self.cache.clear();
        self.recent.clear();
    }

    /// Forgets all but the first `tokens`, and says whether it could. What the cache holds beyond the position is never looked at.
    pub(super) fn rewind(&mut self, tokens: usize) -> bool {
        let can = tokens == self.position
            || tokens < self.position && self.recent.is_nothing() && self.cache.reaches(tokens);
        match tokens {
            0 => self.reset(),
            _ if can => self.position = tokens,
            _ => return false,
        }
        true
    }

    /// What it has seen, as bytes.
    pub(super) fn past(&self) -> Vec<u8> {
        let mut bytes = self.cache.past(self.position);
        self.recent.append_to(&mut bytes);
        bytes
    }

    /// Takes `past` of `tokens` tokens in the place of what it has seen.
    ///
    /// # Errors
    /// When there is no room for so many tokens, or the length is not theirs.
    pub(super) fn restore(&mut self, tokens: usize, past: &[u8]) -> Result<()> {
        let cached = self.cache.past_bytes(tokens);
        let wanted = (cached + self.recent.bytes()) as u64;
        check_past(tokens, self.cache.capacity(), past.len(), wanted)?;
        self.cache.restore(tokens, &past[..cached]);
        self.recent.restore(&past[cached..]);
        self.position = tokens;
        Ok(())
    }

    /// The KV cache.
    pub(super) fn cache(&self) -> &KvCache {
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
                Op::Embed { table, scale, out } => {
                    let rows = buffers.get_mut(*out, tokens * table.cols());
                    table.gather(ids, rows);
                    if *scale != 1.0 {
                        rows.iter_mut().for_each(|value| *value *= scale);
                    }
                }
                Op::Norm { x, norm, out } => self.norm(buffers, tokens, *x, *norm, *out),
                Op::Products { x, norm, products, outs, epilogue } => {
                    self.prepare(buffers, tokens, *x, *norm, products);
                    match epilogue {
                        Epilogue::Store => self.store(buffers, tokens, *x, products, outs),
                        Epilogue::Add => self.accumulate(buffers, tokens, *x, &products[0], outs[0]),
                        Epilogue::Gate(by) => {
                            self.gate_products(buffers, tokens, *x, (*by, products), outs);
                        }
                    }
                }
                Op::Turn { x, heads, turn } => {
                    let width = heads * self.cache.shape().head_dim;
                    self.turn(buffers.get_mut(*x, tokens * width), width, *turn);
                }
                Op::Attention { layer, q, k, v, turns, sight, out } => {
                    self.attend(buffers, tokens, (*layer, *sight), [*q, *k, *v], turns, *out);
                }
                Op::ShortConv { layer, x, kernel, width, out } => {
                    let mut to = buffers.take(*out);
                    let x = buffers.get(*x, tokens * 3 * width);
                    self.recent.convolve(&self.pool, *layer, x, kernel, &mut to[..tokens * width]);
                    buffers.put(*out, to);
                }
                Op::Gate { by, gate, up, width } => {
                    self.pairwise(
                        buffers,
                        [*gate, *up],
                        [tokens, *width],
                        #[inline(always)]
                        |gate, up| lanes::gate(*by, gate, up),
                    );
                }
                Op::Add { to, from, width } => {
                    self.pairwise(buffers, [*to, *from], [tokens, *width], lanes::add);
                }
            }
        }
    }

    fn norm(&mut self, buffers: &mut Buffers, tokens: usize, x: Value, norm: Norm<'_>, out: Value) {
        let width = norm.weight.len();
        let mut to = buffers.take(out);
        let x = buffers.get(x, tokens * width);
        self.pool.each(Chunks::new(&mut to[..tokens * width], width), |token, to| {
            vectorized(
                #[inline(always)]
                || lanes::rms_norm(&x[token * width..][..width], norm.weight, norm.eps, to),
            );
        });
        buffers.put(out, to);
    }

    /// The inputs of products, as all of them need it.
    fn prepare(
        &mut self,
        buffers: &Buffers,
        tokens: usize,
        x: Value,
        norm: Option<Norm<'_>>,
        products: &[Product<'_>],
    ) {
        let cols = products[0].matrix.cols();
        let needs = products.iter().map(|p| p.matrix.needs()).fold(Needs::default(), |a, b| a | b);
        self.inputs.prepare(&self.pool, buffers.get(x, tokens * cols), cols, norm, needs);
    }

    /// What was prepared from `x`, for the tasks that multiply by it.
    fn operand<'a>(
        &'a self,
        buffers: &'a Buffers,
        tokens: usize,
        x: Value,
        product: &Product<'_>,
    ) -> Operand<'a> {
        let x = buffers.get(x, tokens * product.matrix.cols());
        Operand { isa: self.isa, inputs: &self.inputs, x, tokens }
    }

    /// The size of tasks that make `panels` panels of outputs: one panel for all tokens, or, for one token, as many panels
    /// as leave each thread enough tasks to end when the others do.
    fn tile(&self, tokens: usize, panels: usize) -> [usize; 2] {
        const TASKS: usize = 12;
        let at_once =
            if tokens == 1 { (panels / (self.pool.threads() * TASKS)).clamp(1, AT_ONCE) } else { 1 };
        [tokens, at_once * PANEL]
    }

    /// Products of one input, each stored: one list of tasks over the panels of all matrices.
    fn store(
        &self,
        buffers: &mut Buffers,
        tokens: usize,
        x: Value,
        products: &[Product<'_>],
        outs: &[Value],
    ) {
        let mut to: [Buffer; MOST] =
            std::array::from_fn(|i| outs.get(i).map(|o| buffers.take(*o)).unwrap_or_default());
        let panels = products.iter().map(|p| p.matrix.panels()).sum();
        let mut rows = products.iter().map(|p| p.matrix.rows());
        let parts = to.each_mut().map(|to| {
            let rows = rows.next().unwrap_or(0);
            Tiles::new(&mut to[..tokens * rows], [tokens, rows], self.tile(tokens, panels))
        });
        let operand = self.operand(buffers, tokens, x, &products[0]);
        self.pool.each(Joined(parts), |_, (which, mut tile)| {
            operand.multiply(&products[which], &mut tile, keep);
        });
        outs.iter().zip(to).for_each(|(out, to)| buffers.put(*out, to));
    }

    /// A product added to what is there.
    fn accumulate(&self, buffers: &mut Buffers, tokens: usize, x: Value, product: &Product<'_>, out: Value) {
        let rows = product.matrix.rows();
        let mut to = buffers.take(out);
        let operand = self.operand(buffers, tokens, x, product);
        let tile = self.tile(tokens, product.matrix.panels());
        let tiles = Tiles::new(&mut to[..tokens * rows], [tokens, rows], tile);
        self.pool.each(tiles, |_, mut tile| {
            operand.multiply(product, &mut tile, add);
        });
        buffers.put(out, to);
    }

    /// Two products of one input, of which what the gate makes of the first, times the second, is stored.
    fn gate_products(
        &self,
        buffers: &mut Buffers,
        tokens: usize,
        x: Value,
        (by, products): (Gate, &[Product<'_>]),
        outs: &[Value],
    ) {
        let rows = products[0].matrix.rows();
        let (mut gate, mut up) = (buffers.take(outs[0]), buffers.take(outs[1]));
        let operand = self.operand(buffers, tokens, x, &products[0]);
        let tile = self.tile(tokens, products[0].matrix.panels());
        let tiles = |of| Tiles::new(of, [tokens, rows], tile);
        let parts = (tiles(&mut gate[..tokens * rows]), tiles(&mut up[..tokens * rows]));
        self.pool.each(parts, |_, (mut gate, mut up)| {
            operand.multiply(&products[0], &mut gate, keep);
            operand.multiply(&products[1], &mut up, keep);
            vectorized(
                #[inline(always)]
                || (0..tokens).for_each(|token| lanes::gate(by, gate.row(token), up.row(token))),
            );
        });
        buffers.put(outs[0], gate);
        buffers.put(outs[1], up);
    }

    /// Norm and rotation of the heads of each row of `width`.
    fn turn(&self, x: &mut [f32], width: usize, turn: Turn<'_>) {
        let head_dim = self.cache.shape().head_dim;
        let (rotation, position) = (turn.rotation.map(|which| &self.rotations[which]), self.position);
        self.pool.each(Chunks::new(x, width), |token, row| {
            vectorized(
                #[inline(always)]
                || turn_row(row, head_dim, turn.norm, rotation.map(|r| r.at(position + token))),
            );
        });
    }

    /// Turns queries and keys, takes keys and values into the cache, and attends.
    fn attend(
        &mut self,
        buffers: &mut Buffers,
        tokens: usize,
        (layer, sight): (usize, Sight),
        [q, k, v]: [Value; 3],
        turns: &[Turn<'_>; 2],
        out: Value,
    ) {
        let AttentionShape { heads, kv_heads, head_dim } = *self.cache.shape();
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        for (x, width, turn) in [(q, width, turns[0]), (k, kv_width, turns[1])] {
            if turn.norm.is_some() || turn.rotation.is_some() {
                self.turn(buffers.get_mut(x, tokens * width), width, turn);
            }
        }
        let (keys, values) = (buffers.get(k, tokens * kv_width), buffers.get(v, tokens * kv_width));
        self.cache.write(&self.pool, layer, self.position, keys, values);
        let mut to = buffers.take(out);
        let queries = buffers.get(q, tokens * width);
        let to_rows = &mut to[..tokens * width];
        self.attention.attend(&self.pool, &self.cache, (layer, sight), self.position, queries, to_rows);
        buffers.put(out, to);
    }

    /// `combine(a, b)` for the rows of two buffers, in place in the first.
    fn pairwise(
        &self,
        buffers: &mut Buffers,
        [a, b]: [Value; 2],
        [tokens, width]: [usize; 2],
        combine: impl Fn(&mut [f32], &[f32]) + Sync,
    ) {
        let mut to = buffers.take(a);
        let from = buffers.get(b, tokens * width);
        self.pool.each(Chunks::new(&mut to[..tokens * width], width), |token, row| {
            vectorized(
                #[inline(always)]
                || combine(row, &from[token * width..][..width]),
            );
        });
        buffers.put(a, to);
    }
}

/// Norms and rotates the heads of a row, whichever of the two there is.
#[inline(always)]
fn turn_row(row: &mut [f32], head_dim: usize, norm: Option<Norm<'_>>, angles: Option<(&[f32], &[f32])>) {
    for head in row.chunks_exact_mut(head_dim) {
        if let Some(Norm { weight, eps }) = norm {
            lanes::rms_norm_in_place(head, weight, eps);
        }
        if let Some((cos, sin)) = angles {
            lanes::rotate(head, cos, sin);
        }
    }
}

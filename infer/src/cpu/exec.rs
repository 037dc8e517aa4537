//! The decoder's operations on the CPU, over matrices as they are stored and an f32 KV cache.
//!
//! Knows no files and no text. Invariants: what a token gets does not depend on how tokens were cut into calls, nor on
//! the number of threads (so no tolerance is needed between prefill and decoding: the bits are the same); no memory is
//! allocated per token once the buffers are warm.

use qat_quant::int8_tokens;

use super::buffer::{Buffer, Pool};
use super::cache::LayerCache;
use super::lanes;
use super::matrix::Matrix;
use super::rotation::Rotation;
use super::rows::for_each_row;
use crate::files::Activations;
use crate::model::{AttentionShape, Config, Exec, Linear, Rope};
use crate::{Error, Result};

/// Executes one sequence of at most `capacity` tokens.
#[derive(Debug)]
pub struct CpuExec {
    pool: Pool,
    layers: Vec<LayerCache>,
    rotations: Vec<Rotation>,
    capacity: usize,
    /// Tokens in the cache; the position of the next one.
    position: usize,
}

impl CpuExec {
    /// An empty cache for `capacity` tokens of a model.
    pub fn new(config: &Config, capacity: usize) -> Self {
        let Config { heads, kv_heads, head_dim, .. } = *config;
        let shape = AttentionShape { heads, kv_heads, head_dim };
        let layers = (0..config.layers).map(|_| LayerCache::new(shape, capacity)).collect();
        Self { pool: Pool::default(), layers, rotations: Vec::new(), capacity, position: 0 }
    }

    /// Tokens seen so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Takes the `tokens` of a finished forward pass into the past.
    pub fn advance(&mut self, tokens: usize) {
        self.position += tokens;
    }

    /// Forgets what it has seen; keeps the memory.
    pub fn reset(&mut self) {
        self.position = 0;
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    fn check_ids(&self, ids: &[u32], vocab: usize) -> Result<()> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Invalid(format!(
                "token id {id} is outside the model's vocabulary of {vocab}; does the tokenizer belong to the model?"
            )));
        }
        if self.position + ids.len() > self.capacity {
            return Err(Error::Invalid(format!(
                "{} tokens after {} don't fit a context of {}; make the context longer or the text shorter",
                ids.len(),
                self.position,
                self.capacity
            )));
        }
        Ok(())
    }

    fn multiply(&self, x: &Buffer, matrix: &Matrix) -> Result<Buffer> {
        let mut out = self.pool.take(x.rows(), matrix.rows());
        matrix.matmul(x, x.rows(), &mut out)?;
        Ok(out)
    }

    /// The inputs as a matrix with int8 activations sees them.
    fn int8(&self, x: &Buffer) -> Buffer {
        let mut rounded = self.pool.take(x.rows(), x.width());
        rounded.copy_from_slice(x);
        int8_tokens(&mut rounded, x.width());
        rounded
    }
}

impl Exec for CpuExec {
    type T = Buffer;
    type M = Matrix;
    type V = Vec<f32>;
    type Error = Error;

    fn embed(&mut self, table: &Matrix, ids: &[u32]) -> Result<Buffer> {
        self.check_ids(ids, table.rows())?;
        let mut out = self.pool.take(ids.len(), table.cols());
        table.gather(ids, &mut out)?;
        Ok(out)
    }

    fn rms_norm(&mut self, x: &Buffer, weight: &Vec<f32>, eps: f32) -> Result<Buffer> {
        let width = x.width();
        let mut out = self.pool.take(x.rows(), width);
        for_each_row(
            &mut out,
            width,
            2 * width,
            #[inline(always)]
            |token, out: &mut [f32]| {
                lanes::rms_norm(&x[token * width..][..width], weight, eps, out);
            },
        );
        Ok(out)
    }

    fn linears<const N: usize>(
        &mut self,
        x: &Buffer,
        linears: [&Linear<Matrix, Vec<f32>>; N],
    ) -> Result<[Buffer; N]> {
        let is_int8 = |linear: &&Linear<Matrix, _>| linear.weight.activations() == Activations::Int8Token;
        let rounded = linears.iter().any(is_int8).then(|| self.int8(x));
        let mut outs = linears.map(|linear| self.pool.take(x.rows(), linear.weight.rows()));
        for (out, linear) in outs.iter_mut().zip(linears) {
            let x = rounded.as_ref().filter(|_| is_int8(&linear)).unwrap_or(x);
            linear.weight.matmul(x, x.rows(), out)?;
            if let Some(bias) = &linear.bias {
                for_each_row(
                    out,
                    bias.len(),
                    bias.len(),
                    #[inline(always)]
                    |_, row: &mut [f32]| lanes::add(row, bias),
                );
            }
        }
        Ok(outs)
    }

    fn unembed(&mut self, x: &Buffer, table: &Matrix) -> Result<Buffer> {
        match table.activations() {
            Activations::Float => self.multiply(x, table),
            Activations::Int8Token => self.multiply(&self.int8(x), table),
        }
    }

    fn head_norm(&mut self, mut x: Buffer, weight: &Vec<f32>, heads: usize, eps: f32) -> Result<Buffer> {
        let head_dim = x.width() / heads;
        for_each_row(
            &mut x,
            head_dim,
            2 * head_dim,
            #[inline(always)]
            |_, head: &mut [f32]| lanes::rms_norm_in_place(head, weight, eps),
        );
        Ok(x)
    }

    fn rope(&mut self, mut x: Buffer, heads: usize, rope: &Rope) -> Result<Buffer> {
        let at = match self.rotations.iter().position(|rotation| rotation.is_of(rope)) {
            Some(at) => at,
            None => {
                self.rotations.push(Rotation::new(rope, self.capacity));
                self.rotations.len() - 1
            }
        };
        let (position, width) = (self.position, x.width());
        let rotation = &mut self.rotations[at];
        rotation.extend_to(position + x.rows());
        let rotation = &*rotation;
        for_each_row(
            &mut x,
            width,
            2 * width,
            #[inline(always)]
            |token, row: &mut [f32]| {
                let (cos, sin) = rotation.at(position + token);
                row.chunks_exact_mut(width / heads).for_each(|head| lanes::rotate(head, cos, sin));
            },
        );
        Ok(x)
    }

    fn attention(
        &mut self,
        layer: usize,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        shape: &AttentionShape,
    ) -> Result<Buffer> {
        let cache = &mut self.layers[layer];
        debug_assert_eq!(cache.shape(), shape, "the cache of layer {layer} was made for another model");
        cache.write(self.position, &k, &v);
        let mut out = self.pool.take(q.rows(), q.width());
        cache.attend(self.position, &q, &mut out);
        Ok(out)
    }

    fn swiglu(&mut self, mut gate: Buffer, up: Buffer) -> Result<Buffer> {
        let width = gate.width();
        for_each_row(
            &mut gate,
            width,
            16 * width,
            #[inline(always)]
            |token, gate: &mut [f32]| {
                lanes::swiglu(gate, &up[token * width..][..width]);
            },
        );
        Ok(gate)
    }

    fn add(&mut self, mut a: Buffer, b: Buffer) -> Result<Buffer> {
        let width = a.width();
        for_each_row(
            &mut a,
            width,
            width,
            #[inline(always)]
            |token, a: &mut [f32]| lanes::add(a, &b[token * width..][..width]),
        );
        Ok(a)
    }
}

//! Causal attention with grouped query heads (GQA, arXiv 2305.13245).
//!
//! On the CPU one pass per key head, over blocks of queries: scores, softmax and output of a block stay in the core's
//! cache, keys after the block are never touched, and no `[t, t]` matrix reaches memory, not even for the backward
//! pass, which computes the scores again (as FlashAttention does, arXiv 2205.14135, but with whole rows). Knows no rotary
//! embedding and no cache of keys. Where a window holds several documents, or a layer sees the
//! last few tokens only, keys before what a query sees are touched by nobody either.

mod borders;
mod heads;
mod on_gpu;

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

pub use self::borders::Borders;
use self::borders::Sight;
use self::heads::HeadShape;
use super::gpu::{Path, path};
use super::tile::{Left, TILE_ROWS, multiply_add};
use super::{Floats, floats, floats_out, softmax, tape};

const NAME: &str = "causal_attention";

/// Queries of a block, a multiple of the lanes of a product: with 512 keys a block of scores is 64 KiB.
const BLOCK: usize = 32;

/// Attention of `q` `[b, t, heads, d]` over `k`, `v` `[b, t, kv_heads, d]`, scaled by 1/√d; position p sees 0..=p.
/// Query head h reads key head ⌊h·kv_heads/heads⌋. Gives `[b, t, heads·d]`.
///
/// # Errors
/// Shapes other than these, `heads` that is no multiple of `kv_heads`; dtypes other than f32 on the CPU.
pub fn causal_attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    attention_apart(q, k, v, (q.dim(D::Minus1)? as f32).powf(-0.5), None)
}

/// The same with scores times `scale`, and within documents and windows: a position sees nothing before what `borders` say of it.
///
/// # Errors
/// As [`causal_attention`]; borders of other windows.
pub fn attention_apart(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f32,
    borders: Option<&Borders>,
) -> Result<Tensor> {
    let (b, t, heads, d) = q.dims4()?;
    let (_, _, kv_heads, _) = k.dims4()?;
    let grouped = kv_heads > 0 && heads % kv_heads == 0;
    if !grouped || k.dims() != [b, t, kv_heads, d] || v.dims() != k.dims() {
        candle_core::bail!(
            "{NAME}: q {:?}: want k and v [{b}, {t}, a divisor of {heads}, {d}], found {:?} and {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    if q.elem_count() == 0 {
        candle_core::bail!("{NAME}: q {:?}: want at least one element", q.dims());
    }
    borders.map_or(Ok(()), |borders| borders.check(NAME, b, t))?;
    match path(q.device()) {
        Path::Cpu => {
            let shape = HeadShape { t, d, kv_heads, group: heads / kv_heads };
            let op = Attention { shape, scale, borders: borders.cloned() };
            tape::apply3(&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, op)
        }
        Path::Kernels => on_gpu::attention([q, k, v], scale, borders),
    }
}

/// What the tests hold every implementation to, in operations of candle.
#[cfg(test)]
fn composed(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (b, t, heads, d) = q.dims4()?;
    let kv_heads = k.dim(2)?;
    let q = q.transpose(1, 2)?.contiguous()?.reshape((b * kv_heads, heads / kv_heads * t, d))?;
    let k = k.transpose(1, 2)?.contiguous()?.reshape((b * kv_heads, t, d))?;
    let v = v.transpose(1, 2)?.contiguous()?.reshape((b * kv_heads, t, d))?;
    let weights = softmax::composed(&q.matmul(&k.t()?)?, (d as f32).powf(-0.5), t)?;
    weights.matmul(&v)?.reshape((b, heads, t, d))?.transpose(1, 2)?.reshape((b, t, heads * d))
}

/// Scratch of one unit, for one block of queries at a time.
struct Block {
    scores: Vec<f32>,
    weights: Vec<f32>,
    d_scores: Vec<f32>,
    /// `[BLOCK, cols]`: a block of the output or of the query gradient.
    out: Vec<f32>,
    panel: Vec<[f32; TILE_ROWS]>,
}

impl Block {
    fn new(shape: HeadShape) -> Self {
        let square = || vec![0f32; BLOCK * shape.rows()];
        Self {
            scores: square(),
            weights: square(),
            d_scores: square(),
            out: vec![0f32; BLOCK * shape.cols()],
            panel: vec![[0f32; TILE_ROWS]; shape.rows().max(shape.d)],
        }
    }

    /// `scores = a·bᵗ` over `seen` keys, with `a` `[len, cols]` and `bt` `[d, seen]`, its rows as far apart as in `[d, rows]`.
    #[inline(always)]
    fn score(&mut self, a: &[f32], bt: &[f32], (len, seen): (usize, usize), shape: HeadShape) {
        let scores = &mut self.scores[..len * seen];
        scores.fill(0.0);
        let a = Left::Rows { values: a, stride: shape.cols() };
        multiply_add(a, (bt, shape.rows()), (scores, seen), (len, seen, shape.d), &mut self.panel);
    }

    /// `weights = softmax(scores)`, where row i sees the keys `range(i)`.
    #[inline(always)]
    fn soften(&mut self, range: impl Fn(usize) -> Range<usize>, (len, seen): (usize, usize), scale: f32) {
        let scores = self.scores[..len * seen].chunks_exact_mut(seen);
        for (i, (scores, weights)) in scores.zip(self.weights.chunks_exact_mut(seen)).enumerate() {
            let Range { start, end } = range(i);
            scores[..start].fill(f32::NEG_INFINITY);
            scores[end..].fill(f32::NEG_INFINITY);
            softmax::softmax_row(scores, scale, weights);
        }
    }

    /// `out = a·b` with `a` one of the score-shaped buffers, and `b` `[rows, cols]`.
    #[inline(always)]
    fn mix(&mut self, gradient: bool, b: &[f32], (len, seen): (usize, usize), shape: HeadShape) {
        let a = if gradient { &self.d_scores } else { &self.weights };
        let out = &mut self.out[..len * shape.cols()];
        out.fill(0.0);
        let a = Left::Rows { values: a, stride: seen };
        multiply_add(a, (b, shape.cols()), (out, shape.cols()), (len, shape.cols(), seen), &mut self.panel);
    }
}

struct Attention {
    shape: HeadShape,
    /// What scores are multiplied by.
    scale: f32,
    /// Where documents begin; none: each window is one.
    borders: Option<Borders>,
}

impl Attention {
    /// What the queries of sequence `sequence` see.
    fn sight(&self, sequence: usize) -> Sight<'_> {
        Sight::of(self.borders.as_ref(), sequence)
    }

    /// The outputs `[group, t, d]` of the query heads of key head `unit`, from one sequence.
    #[inline(always)]
    fn forward_unit(&self, (sequence, unit): (usize, usize), [q, k, v]: [&[f32]; 3], out: &mut [f32]) {
        let shape = self.shape;
        let kt = shape.transpose(&shape.gather(k, shape.kv_heads, unit));
        let v = shape.gather(v, shape.kv_heads, unit);
        let (mut block, sight) = (Block::new(shape), self.sight(sequence));
        for (member, out) in out.chunks_exact_mut(shape.t * shape.d).enumerate() {
            let q = shape.gather(q, shape.heads(), unit * shape.group + member);
            for (first, len) in shape.blocks() {
                let from = sight.from(first);
                let size = (len, first + len - from);
                block.score(&q[first * shape.cols()..], &kt[from..], size, shape);
                block.soften(|i| sight.range(first + i, from), size, self.scale);
                block.mix(false, &v[from * shape.cols()..], size, shape);
                shape.scatter(&block.out, first, out);
            }
        }
    }

    /// dq `[group, t, d]`, dk and dv `[t, d]` of key head `unit`, from one sequence and its output gradient `g`.
    #[inline(always)]
    fn backward_unit(
        &self,
        (sequence, unit): (usize, usize),
        [q, k, v, g]: [&[f32]; 4],
        [dq, dk, dv]: [&mut [f32]; 3],
    ) {
        let shape = self.shape;
        let cols = shape.cols();
        let k = shape.gather(k, shape.kv_heads, unit);
        let kt = shape.transpose(&k);
        let vt = shape.transpose(&shape.gather(v, shape.kv_heads, unit));
        let (mut dk_sum, mut dv_sum) = (vec![0f32; k.len()], vec![0f32; k.len()]);
        let (mut block, sight) = (Block::new(shape), self.sight(sequence));
        for (member, dq) in dq.chunks_exact_mut(shape.t * shape.d).enumerate() {
            let q = shape.gather(q, shape.heads(), unit * shape.group + member);
            let g = shape.gather(g, shape.heads(), unit * shape.group + member);
            for (first, len) in shape.blocks() {
                let from = sight.from(first);
                let seen = first + len - from;
                let (q, g) = (&q[first * cols..], &g[first * cols..]);
                block.score(q, &kt[from..], (len, seen), shape);
                block.soften(|i| sight.range(first + i, from), (len, seen), self.scale);
                block.score(g, &vt[from..], (len, seen), shape);
                let rows = block.weights.chunks_exact(seen).zip(block.scores.chunks_exact(seen)).take(len);
                for ((weights, d_weights), d_scores) in rows.zip(block.d_scores.chunks_exact_mut(seen)) {
                    softmax::softmax_row_backward(weights, d_weights, self.scale, d_scores);
                }
                block.mix(true, &k[from * cols..], (len, seen), shape);
                shape.scatter(&block.out, first, dq);
                for (left, right, sum) in
                    [(&block.d_scores, q, &mut dk_sum), (&block.weights, g, &mut dv_sum)]
                {
                    let left = Left::Columns { values: left, stride: seen };
                    let sum = &mut sum[from * cols..];
                    multiply_add(left, (right, cols), (sum, cols), (seen, cols, len), &mut block.panel);
                }
            }
        }
        shape.scatter(&dk_sum, 0, dk);
        shape.scatter(&dv_sum, 0, dv);
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = self.shape;
        let (q, k, v) = (floats(NAME, q, lq)?, floats(NAME, k, lk)?, floats(NAME, v, lv)?);
        let (q_len, kv_len) = (shape.t * shape.heads() * shape.d, shape.t * shape.kv_heads * shape.d);
        let mut out = vec![0f32; q.len()];
        out.par_chunks_mut(shape.group * shape.t * shape.d).enumerate().for_each(|(unit, out)| {
            let (sequence, unit) = (unit / shape.kv_heads, unit % shape.kv_heads);
            let inputs = [
                &q[sequence * q_len..][..q_len],
                &k[sequence * kv_len..][..kv_len],
                &v[sequence * kv_len..][..kv_len],
            ];
            qat_quant::vectorized(
                #[inline(always)]
                || self.forward_unit((sequence, unit), inputs, out),
            );
        });
        let out = shape.interleave(&out, shape.heads());
        floats_out(out, (q.len() / q_len, shape.t, shape.heads() * shape.d))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let shape = self.shape;
        let grad = grad.contiguous()?;
        let (mut dq, mut dk) = (vec![0f32; q.elem_count()], vec![0f32; k.elem_count()]);
        let mut dv = vec![0f32; k.elem_count()];
        {
            let held =
                [Floats::of(NAME, q)?, Floats::of(NAME, k)?, Floats::of(NAME, v)?, Floats::of(NAME, &grad)?];
            let inputs = held.each_ref().map(|x| -> &[f32] { x });
            let head = shape.t * shape.d;
            let outputs = dq
                .par_chunks_mut(shape.group * head)
                .zip(dk.par_chunks_mut(head))
                .zip(dv.par_chunks_mut(head));
            outputs.enumerate().for_each(|(unit, ((dq, dk), dv))| {
                let (sequence, unit) = (unit / shape.kv_heads, unit % shape.kv_heads);
                let sequences = q.dims()[0];
                let inputs = inputs.map(|x| &x[sequence * (x.len() / sequences)..][..x.len() / sequences]);
                qat_quant::vectorized(
                    #[inline(always)]
                    || self.backward_unit((sequence, unit), inputs, [dq, dk, dv]),
                );
            });
        }
        let back = |x: Vec<f32>, heads: usize, like: &Tensor| {
            Tensor::from_vec(shape.interleave(&x, heads), like.shape(), like.device()).map(Some)
        };
        Ok((back(dq, shape.heads(), q)?, back(dk, shape.kv_heads, k)?, back(dv, shape.kv_heads, v)?))
    }
}

#[cfg(test)]
mod tests;

//! Attention on a GPU: candle's matrix products around a softmax of our own.
//!
//! Scores are made for some key heads at a time and computed again in the backward pass, so that neither scores nor weights
//! are kept and their room is bounded, whatever the window. The heads of a group are stacked as rows over their common
//! keys: nothing is repeated in memory.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{Borders, NAME};
use crate::ops::{
    gpu::{Backward, Bind, Grid, Typed, Work, attach, typed, word},
    softmax::{self, Within},
};

const LIBRARY: Typed = typed!("heads", "../gpu/common.metal", "heads.metal");

/// Scores that are in memory at a time, unless those of a single key head are more: 128 MiB in f32.
const SCORES: usize = 1 << 25;

/// Attention of `q` `[b, t, heads, d]` over `k`, `v` `[b, t, kv_heads, d]`, which fit each other.
pub(super) fn attention(qkv: [&Tensor; 3], scale: f32, borders: Option<&Borders>) -> Result<Tensor> {
    attention_within(SCORES, qkv, scale, borders)
}

/// The same with at most `scores` scores at a time.
pub(super) fn attention_within(
    scores: usize,
    [q, k, v]: [&Tensor; 3],
    scale: f32,
    borders: Option<&Borders>,
) -> Result<Tensor> {
    let (b, t, heads, d) = q.dims4()?;
    let units = Units { b, t, heads, kv_heads: k.dim(2)?, d, scores, scale };
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let firsts = borders.map(|borders| Tensor::new(borders.firsts(), q.device())).transpose()?;
    let [by_q, by_k, by_v] = [units.gather(&q)?, units.gather(&k)?, units.gather(&v)?];
    let chunks = units.chunks().map(|chunk| {
        let of = |x: &Tensor| x.narrow(0, chunk.start, chunk.len());
        let weights = of(&by_q)?.matmul(&of(&by_k)?.t()?)?;
        softmax::soften(&weights, scale, t, units.within(firsts.as_ref(), &chunk))?;
        weights.matmul(&of(&by_v)?)
    });
    let mixed = units.scatter(&Tensor::cat(&chunks.collect::<Result<Vec<_>>>()?, 0)?, heads)?;
    attach(mixed.reshape((b, t, heads * d))?, &[&q, &k, &v], GpuAttention { units, firsts, by_q, by_k, by_v })
}

/// The key heads of all sequences, each with the query heads of its group.
#[derive(Clone, Copy)]
struct Units {
    b: usize,
    t: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
    /// Scores that may be in memory at a time.
    scores: usize,
    /// What scores are multiplied by.
    scale: f32,
}

impl Units {
    /// `[b, t, heads or kv_heads, d]` as `[units, rows, d]`.
    fn gather(self, x: &Tensor) -> Result<Tensor> {
        let swapped = swap_middle(x, (self.b, self.t, x.elem_count() / (self.b * self.t * self.d), self.d))?;
        swapped.reshape((self.b * self.kv_heads, (), self.d))
    }

    /// The way back.
    fn scatter(self, x: &Tensor, heads: usize) -> Result<Tensor> {
        swap_middle(x, (self.b, heads, self.t, self.d))
    }

    /// Where the documents of the units `chunk` begin.
    fn within<'a>(self, firsts: Option<&'a Tensor>, chunk: &Range<usize>) -> Option<Within<'a>> {
        let units = (chunk.start, self.heads / self.kv_heads, self.kv_heads);
        firsts.map(|firsts| Within { firsts, units })
    }

    fn chunks(self) -> impl Iterator<Item = Range<usize>> {
        let units = self.b * self.kv_heads;
        let of_unit = self.heads / self.kv_heads * self.t * self.t;
        let len = (self.scores / of_unit).clamp(1, units);
        (0..units).step_by(len).map(move |first| first..units.min(first + len))
    }
}

/// `x` of `[outer, a, b, d]` as `[outer, b, a, d]`.
pub(super) fn swap_middle(x: &Tensor, (outer, a, b, d): (usize, usize, usize, usize)) -> Result<Tensor> {
    let x = x.detach().contiguous()?;
    let mut work = Work::default();
    let out = work.output_in(x.dtype(), (outer, b, a, d));
    let elements = x.elem_count();
    let shape = [word(elements)?, word(a)?, word(b)?, word(d)?];
    let binds = [Bind::Input(0), Bind::Output(out)];
    let (kernel, threads) = match d % 4 == 0 && x.layout().start_offset() % 4 == 0 {
        true => ("swap_middle_by_four", elements / 4),
        false => ("swap_middle", elements),
    };
    work.add(LIBRARY.of(x.dtype())?, kernel, Grid::Each(threads), binds, &shape)?;
    let [out] = work.run(NAME, &[&x])?;
    Ok(out)
}

struct GpuAttention {
    units: Units,
    /// Where documents begin, u32 `[b, t]`.
    firsts: Option<Tensor>,
    by_q: Tensor,
    by_k: Tensor,
    by_v: Tensor,
}

impl Backward for GpuAttention {
    const NAME: &'static str = NAME;
    const READS_INPUTS: bool = false;

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let units = self.units;
        let by_g = units.gather(grad)?;
        let mut parts = [const { Vec::new() }; 3];
        for chunk in units.chunks() {
            let of = |x: &Tensor| x.narrow(0, chunk.start, chunk.len());
            let (q, k, v, g) = (of(&self.by_q)?, of(&self.by_k)?, of(&self.by_v)?, of(&by_g)?);
            let weights = q.matmul(&k.t()?)?;
            let within = units.within(self.firsts.as_ref(), &chunk);
            softmax::soften(&weights, units.scale, units.t, within)?;
            let d_scores = g.matmul(&v.t()?)?;
            softmax::soften_backward(&weights, &d_scores, units.scale, units.t, within)?;
            let [dq, dk, dv] = &mut parts;
            dq.push(d_scores.matmul(&k)?);
            dk.push(d_scores.t()?.matmul(&q)?);
            dv.push(weights.t()?.matmul(&g)?);
        }
        let heads = [units.heads, units.kv_heads, units.kv_heads];
        let whole = parts
            .iter()
            .zip(heads)
            .map(|(part, heads)| units.scatter(&Tensor::cat(part, 0)?, heads).map(Some));
        whole.collect()
    }
}

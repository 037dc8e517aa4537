//! The softmax of causal attention: query at position p sees keys 0..=p.
//!
//! Knows no heads: rows are positions modulo `t`. Masked entries are exactly zero in the value and in the gradient,
//! and are never read.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};

use super::gpu::{Backward, Bind, Grid, Path, Typed, Work, attach, path, typed, word};
use super::{Floats, floats, floats_out, for_each_chunk, lanes, tape};

const NAME: &str = "causal_softmax";
const LIBRARY: Typed = typed!("softmax", "gpu/common.metal", "softmax.metal");

/// softmax(`scale`·`scores`) over the last dimension of `scores` `[.., q_rows, t]`, where row r is the query at
/// position r mod `t` (several heads that share their keys may be stacked in `q_rows`) and sees positions up to its
/// own. Entries after it are exactly 0.
///
/// # Errors
/// A last dimension other than `t`, or `q_rows` that is no multiple of it; dtypes other than f32 on the CPU.
pub fn causal_softmax(scores: &Tensor, scale: f32, t: usize) -> Result<Tensor> {
    let (rows, columns) = (scores.dim(D::Minus2)?, scores.dim(D::Minus1)?);
    if t == 0 || columns != t || rows % t != 0 {
        candle_core::bail!("{NAME}: want [.., multiple of {t}, {t}], found {:?}", scores.dims());
    }
    match path(scores.device()) {
        Path::Cpu => tape::apply1(&scores.contiguous()?, CausalSoftmax { scale, t }),
        Path::Kernels => on_gpu(scores, scale, t),
    }
}

fn on_gpu(scores: &Tensor, scale: f32, t: usize) -> Result<Tensor> {
    let scores = scores.contiguous()?;
    let weights = scores.detach().copy()?;
    soften(&weights, scale, t, None)?;
    attach(weights, &[&scores], GpuSoftmax { scale, t })
}

/// Where the documents of rows begin.
#[derive(Clone, Copy)]
pub(super) struct Within<'a> {
    /// u32 `[windows, t]`: for each position the first that it sees.
    pub(super) firsts: &'a Tensor,
    /// The key head of all windows that the first row is of, query heads of a key head, key heads of a window.
    pub(super) units: (usize, usize, usize),
}

impl Within<'_> {
    fn words(self) -> Result<[u32; 3]> {
        let (first, group, kv_heads) = self.units;
        Ok([word(first)?, word(group)?, word(kv_heads)?])
    }
}

/// [`causal_softmax`] on a GPU, in place and outside any graph; `within` documents where there are several.
pub(super) fn soften(scores: &Tensor, scale: f32, t: usize, within: Option<Within>) -> Result<()> {
    let mut work = Work::default();
    let rows = scores.elem_count() / t;
    let mut shape = vec![word(rows)?, word(t)?, scale.to_bits()];
    let library = LIBRARY.of(scores.dtype())?;
    match within {
        None => {
            work.add(library, "causal_softmax", Grid::Simdgroups(rows), [Bind::InOut(0)], &shape)?;
            let [] = work.run(NAME, &[scores])?;
        }
        Some(within) => {
            shape.extend(within.words()?);
            let binds = [Bind::InOut(0), Bind::Input(1)];
            work.add(library, "document_softmax", Grid::Simdgroups(rows), binds, &shape)?;
            let [] = work.run(NAME, &[scores, within.firsts])?;
        }
    }
    Ok(())
}

/// Turns `grad`, the gradient of what [`soften`] made, into that of the scores, in place.
pub(super) fn soften_backward(
    weights: &Tensor,
    grad: &Tensor,
    scale: f32,
    t: usize,
    within: Option<Within>,
) -> Result<()> {
    let mut work = Work::default();
    let rows = weights.elem_count() / t;
    let mut shape = vec![word(rows)?, word(t)?, scale.to_bits()];
    let library = LIBRARY.of(weights.dtype())?;
    match within {
        None => {
            let binds = [Bind::Input(0), Bind::InOut(1)];
            work.add(library, "causal_softmax_backward", Grid::Simdgroups(rows), binds, &shape)?;
            let [] = work.run(NAME, &[weights, grad])?;
        }
        Some(within) => {
            shape.extend(within.words()?);
            let binds = [Bind::Input(0), Bind::InOut(1), Bind::Input(2)];
            work.add(library, "document_softmax_backward", Grid::Simdgroups(rows), binds, &shape)?;
            let [] = work.run(NAME, &[weights, grad, within.firsts])?;
        }
    }
    Ok(())
}

struct GpuSoftmax {
    scale: f32,
    t: usize,
}

impl Backward for GpuSoftmax {
    const NAME: &'static str = NAME;
    const READS_INPUTS: bool = false;
    const READS_VALUE: bool = true;

    fn backward(&self, _: &[&Tensor], weights: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let d_scores = grad.copy()?;
        soften_backward(weights, &d_scores, self.scale, self.t, None)?;
        Ok(vec![Some(d_scores)])
    }
}

/// What the tests hold every implementation to, in operations of candle.
#[cfg(test)]
pub(super) fn composed(scores: &Tensor, scale: f32, t: usize) -> Result<Tensor> {
    let scaled = (scores.reshape(((), t, t))? * f64::from(scale))?;
    let visible = lower_triangle(t, scores.device())?.broadcast_as(scaled.shape())?;
    // Far below any score yet finite: candle's Metal kernels are compiled with fast math, which assumes no infinity.
    let masked = Tensor::full(-1e30f32, scaled.shape(), scores.device())?.to_dtype(scores.dtype())?;
    let scaled = visible.where_cond(&scaled, &masked)?;
    let shifted = scaled.broadcast_sub(&scaled.max_keepdim(D::Minus1)?.detach())?;
    let weights = shifted.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.reshape(scores.shape())
}

/// 1 where the column is not after the row, as u8 `[t, t]`.
#[cfg(test)]
fn lower_triangle(t: usize, device: &candle_core::Device) -> Result<Tensor> {
    let positions = Tensor::arange(0u32, t as u32, device)?;
    positions.reshape((1, t))?.broadcast_le(&positions.reshape((t, 1))?)
}

struct CausalSoftmax {
    scale: f32,
    t: usize,
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (scores, t) = (floats(NAME, scores, layout)?, self.t);
        let mut weights = vec![0f32; scores.len()];
        for_each_chunk(
            t,
            [&mut weights],
            [scores],
            #[inline(always)]
            |first, [weights], [scores]| {
                for (i, (w, s)) in weights.chunks_exact_mut(t).zip(scores.chunks_exact(t)).enumerate() {
                    let seen = (first + i) % t + 1;
                    softmax_row(&s[..seen], self.scale, &mut w[..seen]);
                }
            },
        );
        floats_out(weights, layout.shape().clone())
    }

    /// ds = scale·w·(g − ⟨g, w⟩).
    fn bwd(&self, scores: &Tensor, weights: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let t = self.t;
        let grad = grad.contiguous()?;
        let mut out = vec![0f32; scores.elem_count()];
        for_each_chunk(
            t,
            [&mut out],
            [&Floats::of(NAME, weights)?, &Floats::of(NAME, &grad)?],
            #[inline(always)]
            |first, [out], [w, g]| {
                let rows = out.chunks_exact_mut(t).zip(w.chunks_exact(t).zip(g.chunks_exact(t)));
                for (i, (out, (w, g))) in rows.enumerate() {
                    let seen = (first + i) % t + 1;
                    softmax_row_backward(&w[..seen], &g[..seen], self.scale, &mut out[..seen]);
                }
            },
        );
        Tensor::from_vec(out, scores.shape(), scores.device()).map(Some)
    }
}

/// `w = softmax(scale·s)`. A NaN or +∞ among the scores makes the whole row NaN.
#[inline(always)]
pub(super) fn softmax_row(s: &[f32], scale: f32, w: &mut [f32]) {
    let shift = lanes::max_of(s, |v| v * scale);
    let total = lanes::map_sum(s, w, |v| lanes::exp(v * scale - shift));
    lanes::scale(w, 1.0 / total);
}

#[inline(always)]
pub(super) fn softmax_row_backward(w: &[f32], g: &[f32], scale: f32, out: &mut [f32]) {
    let mean = lanes::dot(w, g);
    for ((out, &w), &g) in out.iter_mut().zip(w).zip(g) {
        *out = scale * w * (g - mean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_matches, bits, uniform};
    use crate::ops::gpu::host;
    use candle_core::DType;

    /// exp is good to 2.4e-7, its argument of magnitude ≤ 10 is rounded to 6e-7, the sum adds 8 roundings.
    const TOLERANCE: f64 = 2e-6;

    #[test]
    fn value_and_gradient_agree_with_finite_differences() -> Result<()> {
        for (shape, t) in [(vec![2, 1, 1], 1), (vec![2, 3, 14, 7], 7), (vec![20, 20], 20)] {
            for scale in [0.35, -1.0] {
                let inputs = [uniform(5, 5.0, &shape)?];
                let reference = |x: &[Tensor]| composed(&x[0], scale, t);
                assert_matches(|x| causal_softmax(&x[0], scale, t), reference, &inputs, TOLERANCE)?;
            }
        }
        Ok(())
    }

    #[test]
    fn the_kernels_agree_with_finite_differences() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for (shape, t) in [(vec![2, 1, 1], 1), (vec![2, 3, 14, 7], 7), (vec![33, 33], 33)] {
            for scale in [0.35, -1.0] {
                let inputs = [uniform(5, 5.0, &shape)?];
                let reference = |x: &[Tensor]| composed(&x[0], scale, t);
                assert_matches(|x| on_gpu(&x[0], scale, t), reference, &inputs, TOLERANCE)?;
            }
        }
        Ok(())
    }

    #[test]
    fn the_kernels_never_read_a_score_in_the_future() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        let t = 40;
        let scores = uniform(6, 3.0, &[2 * t, t])?;
        let mut poisoned = scores.to_vec2::<f32>()?;
        for (r, row) in poisoned.iter_mut().enumerate() {
            row[r % t + 1..].fill(f32::NAN);
        }
        let poisoned = Tensor::new(poisoned, scores.device())?;
        assert_eq!(bits(&on_gpu(&scores, 0.5, t)?)?, bits(&on_gpu(&poisoned, 0.5, t)?)?);
        Ok(())
    }

    #[test]
    fn a_score_in_the_future_is_never_read() -> Result<()> {
        let t = 5;
        let scores = uniform(6, 3.0, &[2 * t, t])?;
        let mut poisoned = scores.to_vec2::<f32>()?;
        for (r, row) in poisoned.iter_mut().enumerate() {
            row[r % t + 1..].fill(f32::NAN);
        }
        let poisoned = Tensor::new(poisoned, scores.device())?;
        let clean = causal_softmax(&scores, 0.5, t)?;
        assert_eq!(bits(&clean)?, bits(&causal_softmax(&poisoned, 0.5, t)?)?);
        for (r, row) in clean.to_vec2::<f32>()?.iter().enumerate() {
            assert!(row[r % t + 1..].iter().all(|&v| v.to_bits() == 0), "row {r}: {row:?}");
        }
        Ok(())
    }

    #[test]
    fn nan_and_infinite_scores_give_nan_rows_and_no_panic() -> Result<()> {
        for bad in [f32::NAN, f32::INFINITY] {
            let scores = Tensor::new(&[[1f32, 0.0], [bad, 2.0]], &candle_core::Device::Cpu)?;
            let weights = causal_softmax(&scores, 1.0, 2)?.to_vec2::<f32>()?;
            assert_eq!(weights[0], [1.0, 0.0]);
            assert!(weights[1].iter().all(|v| v.is_nan()), "{weights:?}");
        }
        Ok(())
    }

    #[test]
    fn in_bf16_the_kernels_round_the_value_once_and_its_gradient_is_that_of_what_was_rounded() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for t in [7, 33] {
            let scores = uniform(5, 5.0, &[2 * t, t])?.to_dtype(DType::BF16)?;
            let [weights, wide] = [scores.copy()?, scores.to_dtype(DType::F32)?];
            soften(&weights, 0.35, t, None)?;
            soften(&wide, 0.35, t, None)?;
            assert_eq!(bits(&weights.to_dtype(DType::F32)?)?, bits(&rounded(&wide)?)?);
            let gradient = uniform(6, 1.0, &[2 * t, t])?.to_dtype(DType::BF16)?;
            let [found, want] = [gradient.copy()?, gradient.to_dtype(DType::F32)?];
            soften_backward(&weights, &found, 0.35, t, None)?;
            soften_backward(&weights.to_dtype(DType::F32)?, &want, 0.35, t, None)?;
            assert_eq!(bits(&found.to_dtype(DType::F32)?)?, bits(&rounded(&want)?)?);
        }
        Ok(())
    }

    fn rounded(x: &Tensor) -> Result<Tensor> {
        x.to_dtype(DType::BF16)?.to_dtype(DType::F32)
    }
}

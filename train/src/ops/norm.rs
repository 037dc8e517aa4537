//! Root-mean-square normalization over the last dimension (Zhang & Sennrich, arXiv 1910.07467).
//!
//! y = x · r · w with r = 1/√(mean(x²) + ε). Knows nothing of layers: `[.., d]` in, `[.., d]` out, so that a hidden
//! state and one head of it (qk-norm) are the same call.

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};
use qat_quant::vectorized;
use rayon::prelude::*;

use super::gpu::{Backward, Bind, Grid, Path, SUM, Typed, Work, attach, path, typed, word};
use super::{Floats, floats, floats_out, for_each_chunk, lanes, rows_per_chunk, tape};

const NAME: &str = "rms_norm";
const LIBRARY: Typed = typed!("norm", "gpu/common.metal", "norm.metal");

/// Normalizes each row of `x` `[.., d]` to root mean square 1 and multiplies by `weight` `[d]`.
///
/// # Errors
/// A weight whose length is not the last dimension of `x`; dtypes other than f32 on the CPU.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let d = x.dim(D::Minus1)?;
    if weight.dims() != [d] || d == 0 {
        candle_core::bail!(
            "{NAME}: x {:?}: want a weight of the last dimension, found {:?}",
            x.dims(),
            weight.dims()
        );
    }
    match path(x.device()) {
        Path::Cpu => tape::apply2(&x.contiguous()?, &weight.contiguous()?, RmsNorm { eps }),
        Path::Kernels => on_gpu(x, weight, eps),
    }
}

fn on_gpu(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let (d, rows) = (weight.elem_count(), x.elem_count() / weight.elem_count());
    let mut work = Work::default();
    let y = work.output_like(&x);
    let binds = [Bind::Input(0), Bind::Input(1), Bind::Output(y)];
    let shape = [word(rows)?, word(d)?, 1, eps.to_bits()];
    work.add(LIBRARY.of(x.dtype())?, "rms_norm", Grid::Rows { rows, width: d }, binds, &shape)?;
    let [y] = work.run(NAME, &[&x, &weight])?;
    attach(y, &[&x, &weight], GpuRmsNorm { eps })
}

/// The gradients of `RmsNorm` in two kernels.
struct GpuRmsNorm {
    eps: f32,
}

impl Backward for GpuRmsNorm {
    const NAME: &'static str = NAME;

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        /// Rows of partial weight gradients: enough threadgroups for every GPU, few enough to be added up quickly.
        const PARTIALS: usize = 1024;
        let (x, weight) = (inputs[0], inputs[1]);
        let (d, rows) = (weight.elem_count(), x.elem_count() / weight.elem_count());
        let rows_each = rows.div_ceil(PARTIALS).max(1);
        let groups = rows.div_ceil(rows_each);
        let mut work = Work::default();
        let (dx, partials) = (work.output_like(x), work.output((groups, d)));
        let dw = work.output(d);
        let binds =
            [Bind::Input(0), Bind::Input(1), Bind::Input(2), Bind::Output(dx), Bind::Output(partials)];
        let shape = [word(rows)?, word(d)?, word(rows_each)?, self.eps.to_bits()];
        let grid = Grid::Rows { rows: groups, width: d };
        work.add(LIBRARY.of(x.dtype())?, "rms_norm_backward", grid, binds, &shape)?;
        let binds = [Bind::Made(partials), Bind::Output(dw)];
        work.add(SUM.f32, "sum_rows", Grid::Columns(d), binds, &[word(groups)?, word(d)?, 1f32.to_bits()])?;
        let [dx, _, dw] = work.run(NAME, &[x, weight, g])?;
        Ok(vec![Some(dx), Some(dw)])
    }
}

/// What the tests hold every implementation to, in operations of candle.
#[cfg(test)]
fn composed(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    x.broadcast_div(&root)?.broadcast_mul(weight)
}

struct RmsNorm {
    eps: f32,
}

impl RmsNorm {
    /// r of one row.
    #[inline(always)]
    fn reciprocal_root(&self, x: &[f32]) -> f32 {
        1.0 / (lanes::dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }

    /// For one row, with h = g·w: dx = r·(h − x·r²·mean(h·x)); adds g·x·r to `dw`.
    #[inline(always)]
    fn row_backward(&self, x: &[f32], w: &[f32], g: &[f32], dx: &mut [f32], dw: &mut [f32]) {
        let r = self.reciprocal_root(x);
        let along = r * r * lanes::dot3(g, w, x) / x.len() as f32;
        for ((((dx, dw), &x), &w), &g) in dx.iter_mut().zip(dw).zip(x).zip(w).zip(g) {
            *dx = r * (g * w - x * along);
            *dw += g * (x * r);
        }
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (floats(NAME, x, lx)?, floats(NAME, w, lw)?);
        let d = w.len();
        let mut y = vec![0f32; x.len()];
        for_each_chunk(
            d,
            [&mut y],
            [x],
            #[inline(always)]
            |_, [y], [x]| {
                for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                    let r = self.reciprocal_root(x);
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                        *y = x * r * w;
                    }
                }
            },
        );
        floats_out(y, lx.shape().clone())
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (dx, dw) = {
            let (x, w, g) = (Floats::of(NAME, x)?, Floats::of(NAME, w)?, Floats::of(NAME, &g)?);
            let d = w.len();
            let chunk = rows_per_chunk(d) * d;
            let mut dx = vec![0f32; x.len()];
            // One partial weight gradient per chunk of rows, added up in order below.
            let mut partials = vec![0f32; x.len().div_ceil(chunk) * d];
            let outputs = dx.par_chunks_mut(chunk).zip(partials.par_chunks_mut(d));
            outputs.zip(x.par_chunks(chunk).zip(g.par_chunks(chunk))).for_each(|((dx, dw), (x, g))| {
                vectorized(
                    #[inline(always)]
                    || {
                        for ((dx, x), g) in
                            dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(g.chunks_exact(d))
                        {
                            self.row_backward(x, &w, g, dx, dw);
                        }
                    },
                );
            });
            let mut dw = vec![0f32; d];
            partials.chunks_exact(d).for_each(|partial| lanes::add(&mut dw, partial));
            (dx, dw)
        };
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        let dw = Tensor::from_vec(dw, w.shape(), w.device())?;
        Ok((Some(dx), Some(dw)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_close, assert_matches, assert_rounds_once, flat, uniform};
    use crate::ops::gpu::host;

    /// A row's sums have d ≤ 70 terms in 16 lanes, about 8 sequential roundings of 6e-8 each, and five more in the
    /// expression: 1e-6 relative to the largest term; the weight gradient sums `rows` of them.
    const TOLERANCE: f64 = 2e-6;

    #[test]
    fn value_and_gradients_agree_with_finite_differences() -> Result<()> {
        for (rows, d) in [(1, 3), (5, 16), (7, 70)] {
            let inputs = [uniform(1, 2.0, &[rows, d])?, uniform(2, 1.5, &[d])?];
            let reference = |t: &[Tensor]| composed(&t[0], &t[1], 1e-3);
            assert_matches(|t| rms_norm(&t[0], &t[1], 1e-3), reference, &inputs, TOLERANCE)?;
        }
        Ok(())
    }

    #[test]
    fn the_kernels_agree_with_finite_differences() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        // One thread's worth, several simdgroups, more than a threadgroup; rows shared out in ragged runs.
        for (rows, d) in [(1, 3), (7, 70), (2, 300), (301, 2)] {
            let inputs = [uniform(1, 2.0, &[rows, d])?, uniform(2, 1.5, &[d])?];
            let reference = |t: &[Tensor]| composed(&t[0], &t[1], 1e-3);
            // The weight gradient sums 301 rows one after the other: at most 301 roundings of 6e-8, typically 17.
            assert_matches(|t| on_gpu(&t[0], &t[1], 1e-3), reference, &inputs, TOLERANCE * 2.0)?;
        }
        Ok(())
    }

    #[test]
    fn a_transposed_input_is_normalized_along_its_own_last_dimension() -> Result<()> {
        let (x, weight) = (uniform(1, 2.0, &[6, 3, 4])?.transpose(0, 2)?, uniform(2, 1.5, &[6])?);
        let want = flat(&composed(&x, &weight, 1e-5)?)?;
        assert_close("value", &rms_norm(&x, &weight, 1e-5)?, &want, TOLERANCE)
    }

    #[test]
    fn a_weight_of_the_wrong_length_is_refused() -> Result<()> {
        let message =
            rms_norm(&uniform(1, 1.0, &[2, 8])?, &uniform(2, 1.0, &[4])?, 1e-5).unwrap_err().to_string();
        assert!(message.contains("x [2, 8]: want a weight of the last dimension, found [4]"), "{message}");
        Ok(())
    }

    #[test]
    fn in_bf16_the_kernels_round_once_and_the_weights_gradient_not_at_all() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for (rows, d) in [(7, 70), (2, 300), (1500, 2)] {
            let inputs = [uniform(1, 2.0, &[rows, d])?, uniform(2, 1.5, &[d])?];
            assert_rounds_once(|t| rms_norm(&t[0], &t[1], 1e-3), &inputs, &[1])?;
        }
        Ok(())
    }
}

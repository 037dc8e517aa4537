//! A gated causal convolution of each channel over the last few tokens: what most layers of LFM2 have in place of attention.
//!
//! A row of x is b, c and u: y = c·m with m[t] = Σⱼ kernel[j]·p[t − (taps − 1) + j] and p = b·u. Knows no projections. Invariant: no
//! window sees another one, nor a document in a window; before the first token there are zeros.

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};
use qat_quant::vectorized;
use rayon::prelude::*;

use super::attention::Borders;
use super::gpu::{Backward, Bind, Grid, Path, SUM, Typed, Work, attach, path, typed, word};
use super::{Floats, floats, floats_out, lanes, rows_per_chunk, tape};

const NAME: &str = "short_conv";
const LIBRARY: Typed = typed!("short_conv", "gpu/common.metal", "short_conv.metal");

/// Convolves `x` `[windows · ctx, 3 · width]`, windows of `ctx` tokens one after the other, with `kernel` `[width, 1, taps]`, whose
/// last tap is the token's own: `[windows · ctx, width]`.
///
/// # Errors
/// Shapes that don't go together; dtypes other than f32 on the CPU.
pub fn short_conv(x: &Tensor, kernel: &Tensor, ctx: usize) -> Result<Tensor> {
    short_conv_apart(x, kernel, ctx, None)
}

/// The same within documents, where `borders` says where those begin: before the first token of each there are zeros.
///
/// # Errors
/// As [`short_conv`]; borders of other windows.
pub fn short_conv_apart(
    x: &Tensor,
    kernel: &Tensor,
    ctx: usize,
    borders: Option<&Borders>,
) -> Result<Tensor> {
    let (rows, thirds) = x.dims2()?;
    let (width, one, taps) = kernel.dims3()?;
    let fits = thirds == 3 * width && one == 1 && taps > 0 && ctx > 0 && rows % ctx.max(1) == 0;
    if !fits {
        candle_core::bail!(
            "{NAME}: x {:?} in windows of {ctx}: want whole windows and three times the channels of the kernel {:?}",
            x.dims(),
            kernel.dims()
        );
    }
    borders.map_or(Ok(()), |borders| borders.check(NAME, rows / ctx, ctx))?;
    let (x, kernel) = (x.contiguous()?, kernel.contiguous()?);
    let op = ShortConv { width, taps, ctx, places: borders.map(Borders::places) };
    match path(x.device()) {
        Path::Cpu => tape::apply2(&x, &kernel, op),
        Path::Kernels => op.on_gpu(&x, &kernel),
    }
}

#[derive(Debug)]
struct ShortConv {
    width: usize,
    taps: usize,
    ctx: usize,
    /// Tokens before each row in its own document; without it, in its window.
    places: Option<Vec<u32>>,
}

/// The three parts of a row.
#[inline(always)]
fn thirds(row: &[f32], width: usize) -> [&[f32]; 3] {
    [&row[..width], &row[width..2 * width], &row[2 * width..3 * width]]
}

impl ShortConv {
    /// The kernel's `Shape`.
    fn shape(&self, rows: usize, rows_each: usize) -> Result<[u32; 6]> {
        let apart = u32::from(self.places.is_some());
        Ok([word(rows)?, word(self.width)?, word(self.taps)?, word(self.ctx)?, word(rows_each)?, apart])
    }

    /// The places for the kernels; nothing is read of them where there are none.
    fn places_on(&self, device: &Device) -> Result<Tensor> {
        Tensor::new(self.places.as_deref().unwrap_or(&[0]), device)
    }

    /// Tokens before row `row` that it may see.
    #[inline(always)]
    fn place(&self, row: usize) -> usize {
        self.places.as_ref().map_or(row % self.ctx, |places| places[row] as usize)
    }

    fn on_gpu(self, x: &Tensor, kernel: &Tensor) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let mut work = Work::default();
        let y = work.output_in(x.dtype(), (rows, self.width));
        let binds = [Bind::Input(0), Bind::Input(1), Bind::Input(2), Bind::Output(y)];
        work.add(
            LIBRARY.of(x.dtype())?,
            "short_conv",
            Grid::Each(rows * self.width),
            binds,
            &self.shape(rows, 1)?,
        )?;
        let [y] = work.run(NAME, &[x, kernel, &self.places_on(x.device())?])?;
        attach(y, &[x, kernel], self)
    }

    /// The taps one after the other, `[taps, width]`, so that a loop over channels reads them side by side.
    fn by_tap(&self, kernel: &[f32]) -> Vec<f32> {
        (0..self.taps).flat_map(|tap| kernel.iter().skip(tap).step_by(self.taps)).copied().collect()
    }

    /// m of row `row` of `x`.
    #[inline(always)]
    fn mix(&self, x: &[f32], by_tap: &[f32], row: usize, m: &mut [f32]) {
        m.fill(0.0);
        for (tap, weights) in by_tap.chunks_exact(self.width).enumerate() {
            let before = self.taps - 1 - tap;
            if self.place(row) < before {
                continue;
            }
            let [b, _, u] = thirds(&x[(row - before) * 3 * self.width..], self.width);
            for (((m, w), b), u) in m.iter_mut().zip(weights).zip(b).zip(u) {
                *m += w * (b * u);
            }
        }
    }

    /// The gradients of row `row` of `x`; `m` and `dp` are scratch, `[width]`.
    #[inline(always)]
    fn row_backward(
        &self,
        [x, by_tap, g]: [&[f32]; 3],
        row: usize,
        dx: &mut [f32],
        [m, dp]: [&mut [f32]; 2],
    ) {
        let width = self.width;
        self.mix(x, by_tap, row, m);
        dp.fill(0.0);
        for (tap, weights) in by_tap.chunks_exact(width).enumerate() {
            let behind = self.taps - 1 - tap;
            let later = row + behind;
            if later * width >= g.len() || self.place(later) < behind {
                continue;
            }
            let [_, c, _] = thirds(&x[later * 3 * width..], width);
            let g = &g[later * width..][..width];
            for (((dp, w), g), c) in dp.iter_mut().zip(weights).zip(g).zip(c) {
                *dp += w * (g * c);
            }
        }
        let [b, _, u] = thirds(&x[row * 3 * width..], width);
        let (db, rest) = dx.split_at_mut(width);
        let (dc, du) = rest.split_at_mut(width);
        let g = &g[row * width..][..width];
        db.iter_mut().zip(&*dp).zip(u).for_each(|((db, dp), u)| *db = dp * u);
        dc.iter_mut().zip(&*m).zip(g).for_each(|((dc, m), g)| *dc = g * m);
        du.iter_mut().zip(&*dp).zip(b).for_each(|((du, dp), b)| *du = dp * b);
    }

    /// Adds what row `row` of `x` says of the weights to `by_tap` `[taps, width]`.
    #[inline(always)]
    fn add_weights(&self, x: &[f32], g: &[f32], row: usize, by_tap: &mut [f32]) {
        let width = self.width;
        let [_, c, _] = thirds(&x[row * 3 * width..], width);
        let g = &g[row * width..][..width];
        for (tap, sums) in by_tap.chunks_exact_mut(width).enumerate() {
            let before = self.taps - 1 - tap;
            if self.place(row) < before {
                continue;
            }
            let [b, _, u] = thirds(&x[(row - before) * 3 * width..], width);
            for ((((sum, g), c), b), u) in sums.iter_mut().zip(g).zip(c).zip(b).zip(u) {
                *sum += g * c * (b * u);
            }
        }
    }
}

impl Backward for ShortConv {
    const NAME: &'static str = NAME;

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        /// Rows of partial gradients of the weights.
        const PARTIALS: usize = 256;
        let (x, kernel) = (inputs[0], inputs[1]);
        let rows = x.dim(0)?;
        let rows_each = rows.div_ceil(PARTIALS).max(1);
        let groups = rows.div_ceil(rows_each);
        let weights = self.width * self.taps;
        let shape = self.shape(rows, rows_each)?;
        let mut work = Work::default();
        let (dx, partials) = (work.output_like(x), work.output((groups, weights)));
        let dw = work.output(kernel.shape());
        let binds = [Bind::Input(0), Bind::Input(1), Bind::Input(2), Bind::Input(3), Bind::Output(dx)];
        let library = LIBRARY.of(x.dtype())?;
        work.add(library, "short_conv_backward", Grid::Each(rows * self.width), binds, &shape)?;
        let binds = [Bind::Input(0), Bind::Input(2), Bind::Input(3), Bind::Output(partials)];
        work.add(library, "short_conv_weights", Grid::Each(groups * self.width), binds, &shape)?;
        let binds = [Bind::Made(partials), Bind::Output(dw)];
        let sums = [word(groups)?, word(weights)?, 1f32.to_bits()];
        work.add(SUM.f32, "sum_rows", Grid::Columns(weights), binds, &sums)?;
        let [dx, _, dw] = work.run(NAME, &[x, kernel, g, &self.places_on(x.device())?])?;
        Ok(vec![Some(dx), Some(dw)])
    }
}

impl CustomOp2 for ShortConv {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        kernel: &CpuStorage,
        lk: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, by_tap) = (floats(NAME, x, lx)?, self.by_tap(floats(NAME, kernel, lk)?));
        let width = self.width;
        let mut y = vec![0f32; x.len() / 3];
        let rows_each = rows_per_chunk(width);
        y.par_chunks_mut(rows_each * width).enumerate().for_each(|(chunk, y)| {
            vectorized(
                #[inline(always)]
                || {
                    for (row, y) in (chunk * rows_each..).zip(y.chunks_exact_mut(width)) {
                        self.mix(x, &by_tap, row, y);
                        let [_, c, _] = thirds(&x[row * 3 * width..], width);
                        y.iter_mut().zip(c).for_each(|(y, c)| *y *= c);
                    }
                },
            );
        });
        floats_out(y, Shape::from((x.len() / (3 * width), width)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (dx, dw) = {
            let (x, g) = (Floats::of(NAME, x)?, Floats::of(NAME, &g)?);
            let by_tap = self.by_tap(&Floats::of(NAME, kernel)?);
            let (width, rows_each) = (self.width, rows_per_chunk(self.width));
            let mut dx = vec![0f32; x.len()];
            // One partial gradient of the weights per chunk of rows, added up in order below.
            let chunks = (g.len() / width).div_ceil(rows_each);
            let mut partials = vec![0f32; chunks * by_tap.len()];
            let outputs = dx.par_chunks_mut(rows_each * 3 * width).zip(partials.par_chunks_mut(by_tap.len()));
            outputs.enumerate().for_each(|(chunk, (dx, partial))| {
                let mut scratch = [vec![0f32; width], vec![0f32; width]];
                vectorized(
                    #[inline(always)]
                    || {
                        for (row, dx) in (chunk * rows_each..).zip(dx.chunks_exact_mut(3 * width)) {
                            let scratch = scratch.each_mut().map(Vec::as_mut_slice);
                            self.row_backward([&x, &by_tap, &g], row, dx, scratch);
                            self.add_weights(&x, &g, row, partial);
                        }
                    },
                );
            });
            let mut sums = vec![0f32; by_tap.len()];
            partials.chunks_exact(by_tap.len()).for_each(|partial| lanes::add(&mut sums, partial));
            let by_channel = |at: usize| sums[at % self.taps * width + at / self.taps];
            (dx, (0..sums.len()).map(by_channel).collect::<Vec<f32>>())
        };
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), Some(Tensor::from_vec(dw, kernel.shape(), kernel.device())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_matches, assert_rounds_once, uniform};
    use crate::ops::gpu::host;

    /// What the tests hold every implementation to, in operations of candle: one shifted product a tap.
    fn composed(x: &Tensor, kernel: &Tensor, ctx: usize) -> Result<Tensor> {
        let (width, _, taps) = kernel.dims3()?;
        let windows = x.dim(0)? / ctx;
        let part = |at: usize| x.narrow(1, at * width, width)?.reshape((windows, ctx, width));
        let p = (part(0)? * part(2)?)?.pad_with_zeros(1, taps - 1, 0)?;
        let mut m = p.narrow(1, 0, ctx)?.zeros_like()?;
        for tap in 0..taps {
            let weights = kernel.narrow(2, tap, 1)?.reshape((1, 1, width))?;
            m = (m + p.narrow(1, tap, ctx)?.broadcast_mul(&weights)?)?;
        }
        (part(1)? * m)?.reshape((windows * ctx, width))
    }

    /// Channels, taps, windows and their length: a window shorter than the kernel among them, and rows in several chunks.
    const CASES: [[usize; 4]; 5] = [[1, 2, 1, 1], [3, 3, 2, 5], [5, 4, 3, 2], [17, 3, 2, 9], [2, 3, 4, 70]];

    /// A sum of at most 4 products of three numbers, or for the weights of 280: products rounded thrice, sums once a term, 6e-8 each,
    /// typically 17 of them.
    const TOLERANCE: f64 = 3e-6;

    #[test]
    fn value_and_gradients_agree_with_finite_differences() -> Result<()> {
        for [width, taps, windows, ctx] in CASES {
            let inputs = [uniform(1, 2.0, &[windows * ctx, 3 * width])?, uniform(2, 1.0, &[width, 1, taps])?];
            let reference = |t: &[Tensor]| composed(&t[0], &t[1], ctx);
            assert_matches(|t| short_conv(&t[0], &t[1], ctx), reference, &inputs, TOLERANCE)?;
        }
        Ok(())
    }

    #[test]
    fn the_kernels_agree_with_finite_differences() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for [width, taps, windows, ctx] in CASES {
            let inputs = [uniform(1, 2.0, &[windows * ctx, 3 * width])?, uniform(2, 1.0, &[width, 1, taps])?];
            let reference = |t: &[Tensor]| composed(&t[0], &t[1], ctx);
            let op = || ShortConv { width, taps, ctx, places: None };
            assert_matches(|t| op().on_gpu(&t[0], &t[1]), reference, &inputs, TOLERANCE)?;
        }
        Ok(())
    }

    #[test]
    fn documents_of_a_window_are_convolved_as_if_each_stood_alone() -> Result<()> {
        // Two windows of 9: documents of 2, 1 and 6 rows, and of 4 and 5.
        let lens = [2, 1, 6, 4, 5];
        let firsts = [(0, 2), (2, 1), (3, 6), (0, 4), (4, 5)];
        let firsts = firsts.into_iter().flat_map(|(first, len)| vec![first; len]).collect();
        let borders = Borders::new(firsts, 9)?;
        let inputs = [uniform(1, 2.0, &[18, 9])?, uniform(2, 1.0, &[3, 1, 3])?];
        let reference = |t: &[Tensor]| {
            let mut at = 0;
            let mut parts = Vec::new();
            for len in lens {
                parts.push(composed(&t[0].narrow(0, at, len)?, &t[1], len)?);
                at += len;
            }
            Tensor::cat(&parts, 0)
        };
        assert_matches(|t| short_conv_apart(&t[0], &t[1], 9, Some(&borders)), reference, &inputs, TOLERANCE)?;
        if host::available() {
            let op = || ShortConv { width: 3, taps: 3, ctx: 9, places: Some(borders.places()) };
            assert_matches(|t| op().on_gpu(&t[0], &t[1]), reference, &inputs, TOLERANCE)?;
        }
        Ok(())
    }

    #[test]
    fn windows_that_are_cut_and_kernels_of_another_width_are_refused() -> Result<()> {
        let kernel = uniform(1, 1.0, &[4, 1, 3])?;
        for (shape, ctx) in [([6, 12], 4), ([6, 8], 3)] {
            let message = short_conv(&uniform(2, 1.0, &shape)?, &kernel, ctx).unwrap_err().to_string();
            assert!(message.contains("want whole windows and three times the channels"), "{message}");
        }
        Ok(())
    }

    #[test]
    fn in_bf16_the_kernels_round_once() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        // The weights stay f32.
        let inputs = [uniform(1, 2.0, &[18, 51])?, uniform(2, 1.0, &[17, 1, 3])?];
        assert_rounds_once(|t| short_conv(&t[0], &t[1], 9), &inputs, &[1])
    }
}

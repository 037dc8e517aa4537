//! The arithmetic of one group's grid, and the fake quantizer.
//!
//! This is the only place where a weight becomes a code or a code becomes a weight; packing, decoding, scale search
//! and gradients all call it. Knows no bytes. The invariant of the whole crate: [`fake_quant`] returns, to the bit,
//! what decoding the packed matrix returns.
//!
//! A scale is rounded to its storage type first, and codes are then the nearest on that *stored* grid. llama.cpp and
//! MLX pick codes with the unrounded scale, so ours differ from theirs in a few codes of a thousand and have less
//! error; what a file decodes to is the same in all of them.

use rayon::prelude::*;

use crate::{Format, Scales, simd::vectorized};

/// Weights handled by one task: fixed, so that no result depends on the number of threads.
pub(crate) const TASK: usize = 1 << 14;

/// The affine grid `scale·q + bias` with integer `q` in `lo..=hi`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub scale: f32,
    pub bias: f32,
    pub lo: f32,
    pub hi: f32,
}

impl Grid {
    #[inline(always)]
    pub fn new(levels: (i32, i32), scale: f32, bias: f32) -> Self {
        Self { scale, bias, lo: levels.0 as f32, hi: levels.1 as f32 }
    }

    /// Where `w` lies between the codes, in steps of the grid. A grid without a step has everything at code 0.
    #[inline(always)]
    pub fn position(self, w: f32) -> f32 {
        if self.scale == 0.0 { 0.0 } else { (w - self.bias) / self.scale }
    }

    /// The nearest code, ties to even, as an integral float. Adding zero turns −0 into +0: integers have no −0.
    #[inline(always)]
    pub fn code(self, w: f32) -> f32 {
        self.position(w).round_ties_even().clamp(self.lo, self.hi) + 0.0
    }

    /// The weight that a code stands for: two roundings, never fused.
    #[inline(always)]
    pub fn value(self, code: f32) -> f32 {
        self.scale * code + self.bias
    }
}

/// A matrix cut into spans: runs of consecutive weights that lie on one grid.
///
/// A span is a group, or for a format with one scale per tensor a piece of fixed length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spans<'a> {
    levels: (i32, i32),
    scales: &'a Scales,
    /// Weights of a span; the last span of a tensor-wide grid may be shorter.
    pub len: usize,
}

impl<'a> Spans<'a> {
    /// Spans of a `[rows, cols]` matrix, after checking that everything has the length it must have.
    pub fn new(format: Format, weights: usize, rows: usize, cols: usize, scales: &'a Scales) -> Self {
        assert_shape(format, weights, rows, cols);
        let groups = format.groups(rows, cols);
        let biases = if format.has_bias() { groups } else { 0 };
        assert_eq!((scales.scale.len(), scales.bias.len()), (groups, biases), "{format} scales and biases");
        Self { levels: format.levels(), scales, len: format.group_len().unwrap_or(256) }
    }

    /// How many groups there are.
    pub fn groups(self) -> usize {
        self.scales.scale.len()
    }

    /// The grid of span `index`, counted over the whole matrix.
    #[inline(always)]
    pub fn grid(self, index: usize) -> Grid {
        let group = if self.scales.scale.len() == 1 { 0 } else { index };
        let bias = self.scales.bias.get(group).copied().unwrap_or(0.0);
        Grid::new(self.levels, self.scales.scale[group], bias)
    }

    /// The grid and the range of each span of the task that starts at weight `start` and holds `weights`.
    #[inline(always)]
    pub fn of_task(
        self,
        start: usize,
        weights: usize,
    ) -> impl Iterator<Item = (usize, Grid, std::ops::Range<usize>)> {
        let first = start / self.len;
        (0..weights.div_ceil(self.len)).map(move |i| {
            let span = i * self.len..((i + 1) * self.len).min(weights);
            (first + i, self.grid(first + i), span)
        })
    }
}

/// Refuses a matrix that the caller should have refused: see [`Format::check_row_len`].
pub(crate) fn assert_shape(format: Format, weights: usize, rows: usize, cols: usize) {
    assert!(format.fits(cols), "{format} can't hold rows of {cols} weights");
    assert_eq!(weights, rows * cols, "a [{rows}, {cols}] matrix");
}

/// The matrix as its packed form will be read back: `decode(encode(w))` to the bit, without the bytes.
///
/// `w` and `out` are `[rows, cols]`; `scales` come from [`Scales::choose`] or [`Scales::rounded`]. A NaN weight stays
/// NaN where its group's scale is not zero, so that a diverged run is seen; packing refuses it.
///
/// # Panics
/// When a length is not what the shape and the format say.
pub fn fake_quant(format: Format, w: &[f32], rows: usize, cols: usize, scales: &Scales, out: &mut [f32]) {
    let spans = Spans::new(format, w.len(), rows, cols, scales);
    each(
        spans,
        w,
        out,
        #[inline(always)]
        |grid, w| grid.value(grid.code(w)),
    );
}

/// The codes of `w` as integral floats: [`values`] of them is [`fake_quant`] of `w`. Lengths as there.
///
/// # Panics
/// When a length is not what the shape and the format say.
pub fn codes(format: Format, w: &[f32], rows: usize, cols: usize, scales: &Scales, out: &mut [f32]) {
    let spans = Spans::new(format, w.len(), rows, cols, scales);
    each(
        spans,
        w,
        out,
        #[inline(always)]
        |grid, w| grid.code(w),
    );
}

/// The weights that `codes` stand for under `scales`, both `[rows, cols]`.
///
/// # Panics
/// When a length is not what the shape and the format say.
pub fn values(format: Format, codes: &[f32], rows: usize, cols: usize, scales: &Scales, out: &mut [f32]) {
    let spans = Spans::new(format, codes.len(), rows, cols, scales);
    each(
        spans,
        codes,
        out,
        #[inline(always)]
        |grid, code| grid.value(code),
    );
}

/// Sets each of `out` to `f` of its grid and of the element of `x` in its place.
fn each(spans: Spans, x: &[f32], out: &mut [f32], f: impl Fn(Grid, f32) -> f32 + Sync) {
    assert_eq!(out.len(), x.len(), "output of a matrix");
    out.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).enumerate().for_each(|(task, (out, x))| {
        vectorized(
            #[inline(always)]
            || {
                for (_, grid, span) in spans.of_task(task * TASK, x.len()) {
                    for (out, &x) in out[span.clone()].iter_mut().zip(&x[span]) {
                        *out = f(grid, x);
                    }
                }
            },
        );
    });
}

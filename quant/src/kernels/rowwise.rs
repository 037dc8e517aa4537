//! The specification of the product, in safe loops that the compiler vectorizes.
//!
//! A row is decoded to f32 and multiplied with the activation rows; the matrix never exists as floats. Each output is
//! a sum of `cols` products in [`LANES`] partial sums: lane l adds the products of columns l, l + 16, … in order (a row
//! that ends within sixteen columns goes on in zeros), and lanes are then added in halves (l + l+8, then l + l+4, …). A product is rounded before it is added (never fused).
//! That fixes the bits: tokens, rows and threads only decide which outputs are computed together.

use rayon::prelude::*;

use super::PANEL;
use crate::simd::{reduce, vectorized};

/// Partial sums of an output.
pub const LANES: usize = 16;

/// Outputs computed together: four times sixteen lanes are half of the AVX2 registers.
const BLOCK: usize = 4;

/// Rows that a task decodes before it multiplies them, so that activations are read from cache.
const ROWS: usize = 16;

/// Columns decoded at a time, a multiple of the lanes.
const SPAN: usize = 512;

/// Multiplications below which another thread costs more than it saves (about 20 µs of work).
const TASK: usize = 1 << 17;

/// A matrix that is read row by row.
pub(crate) trait Rows: Sync {
    /// Output channels.
    fn rows(&self) -> usize;
    /// Input channels.
    fn cols(&self) -> usize;
    /// Writes row `row` into `out`, `cols` long. Inlined into a vectorized loop.
    fn decode_row(&self, row: usize, out: &mut [f32]);
    /// Writes the columns of row `row` from `first` on into `out`.
    fn decode_part(&self, row: usize, first: usize, out: &mut [f32]);
}

impl Rows for crate::PackedRef<'_> {
    fn rows(&self) -> usize {
        crate::PackedRef::rows(self)
    }

    fn cols(&self) -> usize {
        crate::PackedRef::cols(self)
    }

    #[inline(always)]
    fn decode_row(&self, row: usize, out: &mut [f32]) {
        self.decode_row_inline(row, out);
    }

    fn decode_part(&self, _: usize, _: usize, _: &mut [f32]) {
        unimplemented!()
    }
}

/// `out = x · wᵀ`, see [`crate::kernels::matmul`].
pub(crate) fn matmul<W: Rows>(w: &W, x: &[f32], n: usize, out: &mut [f32]) {
    let (rows, cols) = (w.rows(), w.cols());
    assert_eq!(x.len(), n * cols, "{n} activation rows of {cols}");
    assert_eq!(out.len(), n * rows, "{n} output rows of {rows}");
    if out.is_empty() {
        return;
    }
    // For each task, its part of every token's output.
    let mut parts: Vec<_> = out.chunks_exact_mut(rows).map(|token| token.chunks_mut(ROWS)).collect();
    let tasks: Vec<Vec<&mut [f32]>> =
        (0..rows.div_ceil(ROWS)).map(|_| parts.iter_mut().filter_map(Iterator::next).collect()).collect();
    let tasks_a_thread = (TASK / (ROWS * cols * n)).max(1);
    tasks.into_par_iter().enumerate().with_min_len(tasks_a_thread).for_each_init(
        || vec![0.0; ROWS * cols],
        |decoded, (task, mut out)| {
            vectorized(
                #[inline(always)]
                || row_block(w, task * ROWS, decoded, x, &mut out),
            );
        },
    );
}

/// See [`super::float_panel`].
pub(super) fn panel<W: Rows>(
    w: &W,
    index: usize,
    x: &[f32],
    tokens: std::ops::Range<usize>,
    sink: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    let first_row = index * PANEL;
    let rows = PANEL.min(w.rows() - first_row);
    let mut first = tokens.start;
    while first < tokens.end {
        let count = BLOCK.min(tokens.end - first);
        let outputs = vectorized(
            #[inline(always)]
            || {
                let mut outputs = [[0.0; PANEL]; BLOCK];
                for row in 0..rows {
                    // A block of fewer tokens repeats its last one: the sums of the others don't change.
                    let sums = row_of_block(
                        w,
                        first_row + row,
                        std::array::from_fn(
                            #[inline(always)]
                            |t| &x[(first + t.min(count - 1)) * w.cols()..][..w.cols()],
                        ),
                    );
                    for t in 0..BLOCK {
                        outputs[t][row] = sums[t];
                    }
                }
                outputs
            },
        );
        (first..).zip(&outputs[..count]).for_each(|(token, outputs)| sink(token, outputs));
        first += count;
    }
}

/// Products of one row with four tokens, decoding [`SPAN`] columns at a time.
#[inline(always)]
fn row_of_block<W: Rows>(w: &W, row: usize, x: [&[f32]; BLOCK]) -> [f32; BLOCK] {
    let mut sums = [[0f32; LANES]; BLOCK];
    let mut decoded = [0.0; SPAN];
    for first in (0..w.cols()).step_by(SPAN) {
        let decoded = &mut decoded[..SPAN.min(w.cols() - first)];
        w.decode_part(row, first, decoded);
        sums = plus_span(
            sums,
            decoded,
            x.map(
                #[inline(always)]
                |x| &x[first..][..decoded.len()],
            ),
        );
    }
    sums.map(sum_lanes)
}

/// Outputs of up to [`ROWS`] rows from `first` on, for all tokens; `out[token][row]`.
#[inline(always)]
fn row_block<W: Rows>(w: &W, first: usize, decoded: &mut [f32], x: &[f32], out: &mut [&mut [f32]]) {
    let cols = w.cols();
    let rows = out.first().map_or(0, |token| token.len());
    let decoded = &mut decoded[..rows * cols];
    for (i, row) in decoded.chunks_exact_mut(cols).enumerate() {
        w.decode_row(first + i, row);
    }
    for (x, out) in x.chunks(BLOCK * cols).zip(out.chunks_mut(BLOCK)) {
        if let [a, b, c, d] = out {
            let x = block(x, cols);
            for (i, row) in decoded.chunks_exact(cols).enumerate() {
                [a[i], b[i], c[i], d[i]] = dot(row, x);
            }
        } else {
            for (x, out) in x.chunks_exact(cols).zip(out) {
                one_token(decoded, x, out);
            }
        }
    }
}

/// Outputs of all decoded rows for one token: rows take the place of the other tokens in the block.
#[inline(always)]
fn one_token(decoded: &[f32], x: &[f32], out: &mut [f32]) {
    let cols = x.len();
    for (rows, out) in decoded.chunks(BLOCK * cols).zip(out.chunks_mut(BLOCK)) {
        if let [a, b, c, d] = out {
            [*a, *b, *c, *d] = dot(x, block(rows, cols));
        } else {
            for (row, out) in rows.chunks_exact(cols).zip(out) {
                [*out] = dot(x, [row]);
            }
        }
    }
}

/// The first [`BLOCK`] rows of `of`.
#[inline(always)]
fn block(of: &[f32], cols: usize) -> [&[f32]; BLOCK] {
    std::array::from_fn(
        #[inline(always)]
        |i| &of[i * cols..(i + 1) * cols],
    )
}

/// Products of one row with `N` others of the same length; which are weights and which activations doesn't matter.
#[inline(always)]
fn dot<const N: usize>(row: &[f32], x: [&[f32]; N]) -> [f32; N] {
    plus_span([[0.0; LANES]; N], row, x).map(sum_lanes)
}

/// Adds the products of some columns to the lanes of `N` sums; but for the last columns, a multiple of the lanes.
#[inline(always)]
fn plus_span<const N: usize>(mut sums: [[f32; LANES]; N], row: &[f32], x: [&[f32]; N]) -> [[f32; LANES]; N] {
    let (whole, rest) = row.as_chunks::<LANES>();
    let x_whole = x.map(
        #[inline(always)]
        |x| &x.as_chunks::<LANES>().0[..whole.len()],
    );
    for (i, w) in whole.iter().enumerate() {
        for token in 0..N {
            sums[token] = plus_products(sums[token], w, &x_whole[token][i]);
        }
    }
    if !rest.is_empty() {
        let w = padded(rest);
        for token in 0..N {
            sums[token] = plus_products(sums[token], &w, &padded(&x[token][row.len() - rest.len()..]));
        }
    }
    sums
}

/// By value, which keeps the lanes in registers: updated in place, they are not vectorized.
#[inline(always)]
fn plus_products(sums: [f32; LANES], w: &[f32; LANES], x: &[f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(
        #[inline(always)]
        |lane| sums[lane] + w[lane] * x[lane],
    )
}

#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

#[inline(always)]
fn sum_lanes(sums: [f32; LANES]) -> f32 {
    reduce(sums, |a, b| a + b)
}

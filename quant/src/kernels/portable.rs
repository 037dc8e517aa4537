//! The specification of the product, in safe loops that the compiler vectorizes.
//!
//! A row is decoded to f32 and multiplied with the activation rows; the matrix never exists as floats. Each output is
//! a sum of `cols` products in [`LANES`] partial sums: lane l adds the products of columns l, l + 16, … in order, and
//! lanes are then added in halves (l + l+8, then l + l+4, …). A product is rounded before it is added (never fused).
//! That fixes the bits: tokens, rows and threads only decide which outputs are computed together.

use rayon::prelude::*;

use crate::simd::vectorized;

/// Partial sums of an output.
pub const LANES: usize = 16;

/// Activation rows multiplied together with one decoded row: four times sixteen lanes fill the AVX2 registers.
const TOKENS: usize = 4;

/// Rows that a task decodes before it multiplies them, so that activations are read from cache.
const ROWS: usize = 16;

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

/// Outputs of up to [`ROWS`] rows from `first` on, for all tokens; `out[token][row]`.
#[inline(always)]
fn row_block<W: Rows>(w: &W, first: usize, decoded: &mut [f32], x: &[f32], out: &mut [&mut [f32]]) {
    let cols = w.cols();
    let rows = out.first().map_or(0, |token| token.len());
    let decoded = &mut decoded[..rows * cols];
    for (i, row) in decoded.chunks_exact_mut(cols).enumerate() {
        w.decode_row(first + i, row);
    }
    for (x, out) in x.chunks(TOKENS * cols).zip(out.chunks_mut(TOKENS)) {
        if let [a, b, c, d] = out {
            let x = std::array::from_fn(|token| &x[token * cols..(token + 1) * cols]);
            for (i, row) in decoded.chunks_exact(cols).enumerate() {
                [a[i], b[i], c[i], d[i]] = dot::<TOKENS>(row, x);
            }
        } else {
            for (x, out) in x.chunks_exact(cols).zip(out) {
                for (out, row) in out.iter_mut().zip(decoded.chunks_exact(cols)) {
                    [*out] = dot(row, [x]);
                }
            }
        }
    }
}

/// Products of one row with `N` activation rows of the same length.
#[inline(always)]
fn dot<const N: usize>(row: &[f32], x: [&[f32]; N]) -> [f32; N] {
    let (whole, rest) = row.as_chunks::<LANES>();
    let x_whole = x.map(|x| &x.as_chunks::<LANES>().0[..whole.len()]);
    let x_rest = x.map(|x| &x[whole.len() * LANES..row.len()]);
    let mut sums = [[0f32; LANES]; N];
    for (i, w) in whole.iter().enumerate() {
        for (sums, x) in sums.iter_mut().zip(x_whole) {
            for lane in 0..LANES {
                sums[lane] += w[lane] * x[i][lane];
            }
        }
    }
    for (sums, x) in sums.iter_mut().zip(x_rest) {
        for ((sum, w), x) in sums.iter_mut().zip(rest).zip(x) {
            *sum += w * x;
        }
    }
    sums.map(add_lanes)
}

/// Adds lanes in halves.
#[inline(always)]
fn add_lanes(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

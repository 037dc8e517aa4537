//! How much of a column's rounding error each later column has to make good: a triangular factor of the inputs' moments.
//!
//! With H = XᵀX, damped, and U the upper triangular factor of H⁻¹ = UᵀU, an error of 1 in column j is made good best, with all
//! columns before it fixed, by −U[j,k]/U[j,j] in each column k behind it. H = R·Rᵀ with R upper triangular gives U = R⁻¹ directly,
//! so that H itself is never inverted. Factors are f64, and what is kept is f32.

use rayon::prelude::*;

use crate::{Error, simd::vectorized};

/// Shares of an error, for all pairs of columns.
#[derive(Debug, Clone)]
pub struct Feedback {
    cols: usize,
    /// `[cols, cols]`, row j: U[j,k]/U[j,j] for k > j.
    shares: Vec<f32>,
}

impl Feedback {
    /// The feedback for inputs with second moments `moments`: Σ x·xᵀ over tokens or their mean, `[cols, cols]`, symmetric.
    /// `damping` times the mean of the diagonal is added to it (GPTQ uses 0.01), which bounds what few tokens can claim. Columns
    /// that no input reaches take no part.
    ///
    /// # Errors
    /// Moments that are not finite, or damped too little to be positive definite; names the matrix `name`.
    ///
    /// # Panics
    /// When `moments` is not `[cols, cols]`.
    pub fn new(name: &str, mut moments: Vec<f64>, cols: usize, damping: f64) -> Result<Self, Error> {
        assert_eq!(moments.len(), cols * cols, "moments of {cols} inputs");
        if let Some(i) = moments.iter().position(|m| !m.is_finite()) {
            let (j, k) = (i / cols, i % cols);
            let problem = format!("moment [{j}, {k}] of its inputs is {}, want a finite number", moments[i]);
            return Err(Error::matrix(name, problem));
        }
        let diagonal = || (0..cols).map(|j| j * (cols + 1));
        let mean = diagonal().map(|at| moments[at]).sum::<f64>() / cols as f64;
        let unreached = if mean > 0.0 { mean } else { 1.0 };
        for at in diagonal() {
            let moment = if moments[at] > 0.0 { moments[at] } else { unreached };
            moments[at] = moment + damping * mean;
        }
        factor(name, &mut moments, cols)?;
        invert(&mut moments, cols);
        let shares = moments.par_iter().map(|&share| share as f32).collect();
        Ok(Self { cols, shares })
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The shares of the columns behind column `j`, in order.
    #[inline(always)]
    pub(super) fn behind(&self, j: usize) -> &[f32] {
        &self.shares[j * self.cols..][j + 1..self.cols]
    }
}

/// Rows that are one task at least; the work of a row is at most `cols` multiplications.
const ROWS: usize = 64;

/// Replaces the upper triangle of the symmetric `h` `[n, n]` by R of h = R·Rᵀ.
fn factor(name: &str, h: &mut [f64], n: usize) -> Result<(), Error> {
    for j in (0..n).rev() {
        let (above, from_j) = h.split_at_mut(j * n);
        let row = &mut from_j[..n];
        let pivot = row[j] - dot(&row[j + 1..], &row[j + 1..]);
        if pivot <= 0.0 {
            let problem =
                format!("the moments of its inputs have no Cholesky factor (pivot {j} is {pivot:e})");
            return Err(Error::matrix(name, format!("{problem}; calibrate on more text")));
        }
        row[j] = pivot.sqrt();
        let row = &*row;
        above.par_chunks_exact_mut(n).with_min_len(ROWS).for_each(|above| {
            above[j] = (above[j] - dot(&above[j + 1..], &row[j + 1..])) / row[j];
        });
    }
    Ok(())
}

/// Replaces the upper triangular R by the rows of U = R⁻¹, each divided by its diagonal element: U[j,k]/U[j,j] right of the diagonal.
fn invert(r: &mut [f64], n: usize) {
    const WIDTH: usize = 256;
    // U·R = 1 gives U[j,·]/U[j,j] = −Σ R[j,k]·U[k,·] over k > j, and U[k,·] is row k, with 1 on its diagonal, over R[k,k].
    for j in (0..n).rev() {
        let (to_j, below) = r.split_at_mut((j + 1) * n);
        let row = &mut to_j[j * n..];
        let parts: Vec<f64> =
            (j + 1..n).zip(below.chunks_exact(n)).map(|(k, row_k)| -row[k] / row_k[k]).collect();
        let behind = &mut row[j + 1..];
        behind.par_chunks_mut(WIDTH).enumerate().for_each(|(chunk, out)| {
            let first = j + 1 + chunk * WIDTH;
            vectorized(
                #[inline(always)]
                || accumulate(out, first, &parts, j + 1, below, n),
            );
        });
    }
}

/// Sets `out`, columns `first..`, to Σ parts[k]·(row k, with 1 on its diagonal) over the rows `below`, of which `top` is the first.
#[inline(always)]
fn accumulate(out: &mut [f64], first: usize, parts: &[f64], top: usize, below: &[f64], n: usize) {
    out.fill(0.0);
    let end = first + out.len();
    for (k, (part, row)) in (top..end).zip(parts.iter().zip(below.chunks_exact(n))) {
        if k >= first {
            out[k - first] += part;
        }
        let from = first.max(k + 1);
        for (out, share) in out[(from - first).min(end - first)..].iter_mut().zip(&row[from.min(end)..end]) {
            *out += part * share;
        }
    }
}

/// Σ a·b in eight lanes.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    vectorized(
        #[inline(always)]
        || {
            let (a, a_rest) = a.as_chunks::<LANES>();
            let (b, b_rest) = b.as_chunks::<LANES>();
            let mut sums = [0f64; LANES];
            for (a, b) in a.iter().zip(b) {
                for lane in 0..LANES {
                    sums[lane] += a[lane] * b[lane];
                }
            }
            let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
            sums.into_iter().sum::<f64>() + rest
        },
    )
}

//! Scales of the ternary grids {−s, 0, s}: BitNet's mean magnitude, and the exact least-squares optimum.
//!
//! Sums run in f64 over pieces of fixed length, so that no finite weight overflows and no thread count shows.

use rayon::prelude::*;

use crate::grid::TASK;

/// Mean magnitude of `w` (BitNet b1.58, arXiv 2402.17764, without its ε: a zero scale is a legal grid here).
#[inline(always)]
pub(super) fn absmean(w: &[f32]) -> f32 {
    (abs_sum(w) / w.len() as f64) as f32
}

/// [`absmean`] of a whole matrix.
pub(super) fn absmean_tensor(w: &[f32]) -> f32 {
    let parts: Vec<f64> = w.par_chunks(TASK).map(abs_sum).collect();
    (parts.iter().sum::<f64>() / w.len() as f64) as f32
}

#[inline(always)]
fn abs_sum(w: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0f64; LANES];
    let (whole, rest) = w.as_chunks::<LANES>();
    for w in whole {
        for lane in 0..LANES {
            sums[lane] += f64::from(w[lane].abs());
        }
    }
    sums.into_iter().chain(rest.iter().map(|w| f64::from(w.abs()))).sum()
}

/// The scale of least squared error of a group.
pub(super) fn optimum(w: &[f32]) -> f32 {
    const LONGEST: usize = 256;
    let mut magnitudes = [0u32; LONGEST];
    let magnitudes = &mut magnitudes[..w.len()];
    for (m, w) in magnitudes.iter_mut().zip(w) {
        *m = w.abs().to_bits();
    }
    magnitudes.sort_unstable();
    best_prefix(magnitudes)
}

/// [`optimum`] of a whole matrix.
pub(super) fn optimum_tensor(w: &[f32]) -> f32 {
    let mut magnitudes: Vec<u32> = w.par_iter().map(|w| w.abs().to_bits()).collect();
    magnitudes.par_sort_unstable();
    best_prefix(&magnitudes)
}

/// The best scale of `ascending` magnitudes, given as bits (which order as the numbers do).
///
/// When the k largest magnitudes get ±s and the rest 0, the best s is their mean and it saves (their sum)²/k of the
/// squared error. So the optimum over all s is the largest such saving over k.
fn best_prefix(ascending: &[u32]) -> f32 {
    let (mut sum, mut best) = (0f64, (0f64, 0f64));
    for (k, &bits) in (1..).map(f64::from).zip(ascending.iter().rev()) {
        sum += f64::from(f32::from_bits(bits));
        let saving = sum * sum / k;
        if saving > best.0 {
            best = (saving, sum / k);
        }
    }
    best.1 as f32
}

//! The runtimes' own rules: a group's scale (and bias) from its extremes, before rounding to the storage type.
//!
//! Group lengths are multiples of [`LANES`]; the order of comparison doesn't matter, as max and min are exact.

use crate::simd::reduce;

const LANES: usize = 16;

/// The smallest and the largest of `w`, and zero for an empty `w`.
#[inline(always)]
pub(super) fn extremes(w: &[f32]) -> (f32, f32) {
    let first = w.first().copied().unwrap_or(0.0);
    let (mut lows, mut highs) = ([first; LANES], [first; LANES]);
    for w in w.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            lows[lane] = lesser(w[lane], lows[lane]);
            highs[lane] = greater(w[lane], highs[lane]);
        }
    }
    (reduce(lows, lesser), reduce(highs, greater))
}

/// `f32::min` without its care for NaN, which takes three instructions instead of one.
#[inline(always)]
fn lesser(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// llama.cpp's `quantize_row_q4_0_ref`: the first element of largest magnitude over −8, so the scale has a sign.
#[inline(always)]
pub(super) fn q4_0(w: &[f32]) -> f32 {
    let (low, high) = extremes(w);
    let peak = if -low > high {
        low
    } else if high > -low {
        high
    } else {
        w.iter().copied().find(|v| v.abs() == high).unwrap_or(0.0)
    };
    peak / -8.0
}

/// llama.cpp's `quantize_row_q8_0_ref`: the largest magnitude over 127.
#[inline(always)]
pub(super) fn q8_0(w: &[f32]) -> f32 {
    let (low, high) = extremes(w);
    high.max(-low) / 127.0
}

/// `mx.quantize` (mode affine): `steps` = 2^bits − 1 steps from min to max; the edge of larger magnitude becomes the
/// bias and the scale is stretched until zero falls on a code. The scale is negative when that edge is the maximum.
#[inline(always)]
pub(super) fn mlx(w: &[f32], steps: f32) -> (f32, f32) {
    /// MLX's floor on the step, so that a constant group divides by something.
    const LEAST_STEP: f32 = 1e-7;
    let (low, high) = extremes(w);
    let step = ((high - low) / steps).max(LEAST_STEP);
    let (step, edge) = if low.abs() > high.abs() { (step, low) } else { (-step, high) };
    let code_of_zero = (edge / step).round_ties_even();
    if code_of_zero == 0.0 { (step, 0.0) } else { (edge / code_of_zero, edge) }
}

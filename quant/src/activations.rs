//! int8 activations with one scale per token, as BitNet b1.58 and the int8 kernels of the runtimes have them.
//!
//! Knows no weights. The trainer and the runtime call the same function, so both see the same activations.

use rayon::prelude::*;

use crate::{grid::TASK, simd::vectorized};

/// Rounds each row of `x` (`[tokens, cols]`) in place to `a·q`, `a = max|x|/127` and `q = clamp(round_ties_even(x·(127/max|x|)), −128, 127)`, each
/// operation rounded to f32: the codes are those of transformers' BitNet layers, also where a value lies between two of them. A row of
/// zeros stays zero.
///
/// # Panics
/// When `cols` is 0 or doesn't divide the length of `x`.
pub fn int8_tokens(x: &mut [f32], cols: usize) {
    assert!(cols > 0 && x.len().is_multiple_of(cols), "{} activations in rows of {cols}", x.len());
    x.par_chunks_mut(cols * (TASK / cols).max(1)).for_each(|x| {
        vectorized(
            #[inline(always)]
            || {
                for row in x.chunks_exact_mut(cols) {
                    int8_token(row);
                }
            },
        );
    });
}

#[inline(always)]
fn int8_token(row: &mut [f32]) {
    let (scale, inverse) = int8_scale(row);
    if scale == 0.0 {
        row.fill(0.0);
        return;
    }
    for x in row {
        *x = scale * (*x * inverse).round_ties_even().clamp(-128.0, 127.0);
    }
}

/// A token whose values are all smaller is zero: its scale would be no normal number, which GPUs take for zero. 2⁻¹¹⁹; a kernel of each
/// GPU has the same number.
const LEAST_PEAK: f32 = f32::from_bits((127 - 119) << 23);

/// The scale of one token and its inverse, each rounded by itself; both 0 for a token of zeros.
#[inline(always)]
pub(crate) fn int8_scale(row: &[f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let mut peaks = [0f32; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for x in whole {
        for lane in 0..LANES {
            let magnitude = x[lane].abs();
            peaks[lane] = if magnitude > peaks[lane] { magnitude } else { peaks[lane] };
        }
    }
    let peak = peaks.into_iter().chain(rest.iter().map(|x| x.abs())).fold(0.0, f32::max);
    if peak < LEAST_PEAK { (0.0, 0.0) } else { (peak / 127.0, 127.0 / peak) }
}

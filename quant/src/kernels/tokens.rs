//! The activations of a product, for several tokens: rounded to int8 or left as floats, with the sums of each
//! [`CHUNK`] of columns beside them, which every row of every matrix shares.
//!
//! Knows no weights. Invariant: rounding is that of [`crate::int8_tokens`], which the trainer calls.

use crate::activations::int8_scale;
use crate::simd::vectorized;

/// Columns of an activation sum, and of a chunk of a panel.
pub const CHUNK: usize = 32;

/// Tokens rounded to int8, each with one scale.
#[derive(Debug, Clone, Copy)]
pub struct Int8Tokens<'a> {
    /// `[n, cols]`, −127..=127.
    pub codes: &'a [i8],
    /// Sums of the codes of each chunk, `[n, ceil(cols / CHUNK)]`.
    pub sums: &'a [i32],
    /// What a code is multiplied by, `[n]`.
    pub scales: &'a [f32],
}

/// Tokens as floats.
#[derive(Debug, Clone, Copy)]
pub struct FloatTokens<'a> {
    /// `[n, cols]`.
    pub values: &'a [f32],
    /// Sums of the values of each chunk, `[n, ceil(cols / CHUNK)]`, as [`float_sums`] makes them.
    pub sums: &'a [f32],
}

/// The activations of a product.
#[derive(Debug, Clone, Copy)]
pub enum Tokens<'a> {
    /// Rounded to int8: sums of products are exact integers.
    Int8(Int8Tokens<'a>),
    /// As they are.
    Float(FloatTokens<'a>),
}

/// 1.5 · 2²³.
const ROUND: f32 = 12_582_912.0;

/// Rounds one token to `scale·code` and sums the codes of each chunk; returns the scale, 0 for a token of zeros.
///
/// # Panics
/// When `codes` isn't as long as `x`, or `sums` doesn't have one place for each chunk.
pub fn round_int8(x: &[f32], codes: &mut [i8], sums: &mut [i32]) -> f32 {
    assert_eq!(codes.len(), x.len(), "a code for each activation");
    assert_eq!(sums.len(), x.len().div_ceil(CHUNK), "a sum for each chunk of {}", x.len());
    vectorized(
        #[inline(always)]
        || {
            let (scale, inverse) = int8_scale(x);
            if scale == 0.0 {
                codes.fill(0);
                sums.fill(0);
                return 0.0;
            }
            for ((x, codes), sum) in x.chunks(CHUNK).zip(codes.chunks_mut(CHUNK)).zip(sums) {
                for (code, x) in codes.iter_mut().zip(x) {
                    // The sum has no bits left for a fraction: it is rounded to even, and its lowest byte is the code.
                    *code = ((x * inverse).clamp(-128.0, 127.0) + ROUND).to_bits() as i8;
                }
                *sum = codes.iter().map(|code| i32::from(*code)).sum();
            }
            scale
        },
    )
}

/// Sums the values of each chunk of one token: lane l adds columns l and l + 16, lanes are then added in halves.
///
/// # Panics
/// When `sums` doesn't have one place for each chunk.
pub fn float_sums(x: &[f32], sums: &mut [f32]) {
    const HALF: usize = CHUNK / 2;
    assert_eq!(sums.len(), x.len().div_ceil(CHUNK), "a sum for each chunk of {}", x.len());
    vectorized(
        #[inline(always)]
        || {
            for (x, sum) in x.chunks(CHUNK).zip(sums) {
                let mut lanes = [0.0; CHUNK];
                lanes[..x.len()].copy_from_slice(x);
                let halves: [f32; HALF] = std::array::from_fn(
                    #[inline(always)]
                    |lane| lanes[lane] + lanes[lane + HALF],
                );
                *sum = crate::simd::reduce(
                    halves,
                    #[inline(always)]
                    |a, b| a + b,
                );
            }
        },
    );
}

//! Products of activations with a matrix that stays packed, and with one stored as plain floats.
//!
//! Knows no layers and no tokens' meaning. [`portable`] is the specification: whatever executes a product gives the
//! bits that it gives.

mod float;
pub mod portable;

pub use float::{FloatRef, FloatType};

use crate::PackedRef;
pub use crate::simd::isa;

/// `out = x · wᵀ`: activations `x` `[n, cols]`, packed weights `w` `[rows, cols]`, `out` `[n, rows]`.
///
/// The result doesn't depend on `n`, the number of threads or the instruction set.
///
/// # Panics
/// When `x` or `out` has another length than that.
pub fn matmul(w: PackedRef<'_>, x: &[f32], n: usize, out: &mut [f32]) {
    portable::matmul(&w, x, n, out);
}

/// [`matmul`] with weights stored as floats: the float model through the same runtime.
///
/// # Panics
/// When `x` or `out` has another length than that.
pub fn matmul_float(w: FloatRef<'_>, x: &[f32], n: usize, out: &mut [f32]) {
    portable::matmul(&w, x, n, out);
}

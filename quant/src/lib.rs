//! What a number is: formats, how a group's scale is chosen, packing, and the packed kernels.
//!
//! Knows no model, no file and no training loop.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod activations;
mod error;
mod format;
mod gptq;
pub mod gradient;
mod grid;
pub mod kernels;
mod layout;
mod packed;
mod scales;
mod simd;

pub use activations::int8_tokens;
pub use error::Error;
pub use format::{Affine, Format, ScaleType};
pub use gptq::{Feedback, Rounded, gptq};
pub use grid::{codes, fake_quant, values};
pub use layout::tq1_0;
pub use packed::{Packed, PackedRef, pack, pack_codes};
pub use scales::{ScaleRule, Scales};
pub use simd::{vectorized, with_simd};

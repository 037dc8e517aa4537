//!
//! Knows no model, no file and no training loop.

mod activations;
mod error;
mod format;
pub mod gradient;
mod grid;
mod scales;
mod simd;

pub use activations::int8_tokens;
pub use error::Error;
pub use format::{Affine, Format, ScaleType};
pub use grid::fake_quant;
pub use scales::{ScaleRule, Scales};
pub use simd::{isa, vectorized};

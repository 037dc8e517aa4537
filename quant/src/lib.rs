//! What a number is: formats, how a group's scale is chosen, packing, and the packed kernels.
//!
//! Knows no model, no file and no training loop.

mod error;

pub use error::Error;

//! How a model runs: one decoder definition, the files it is read from, the packed executor and the scoring of what it says.
//!
//! Knows no gradients and no training.

pub mod cpu;
mod error;
pub mod eval;
pub mod files;
pub mod model;
#[cfg(test)]
mod shared;

pub use error::{Error, Result};

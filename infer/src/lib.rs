//! How a model runs: one decoder definition, the files it is read from, the packed executor, the scoring of what it says and
//! the measuring of its speed.
//!
//! Knows no gradients and no training.

pub mod bench;
pub mod chat;
mod choice;
pub mod cpu;
pub mod energy;
mod error;
pub mod eval;
pub mod export;
pub mod files;
mod float_model;
pub mod generate;
pub mod gguf;
pub mod metal;
pub mod model;
mod opened;
pub mod outline;
mod plan;
mod sequence;
#[cfg(test)]
mod shared;

pub use choice::{Choice, Chosen};
pub use error::{Error, Result};
pub use float_model::FloatModel;
pub use opened::{Opened, RuntimeMatrix, Size};
pub use sequence::{Runtime, Sequence};

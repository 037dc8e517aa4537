//! How weights move: recipes, data, teacher, losses, fake quantization, optimizer, checkpoints and the loop.

pub mod data;
mod error;

pub use error::{Error, Result};

//! How weights move: recipes, data, teacher, losses, fake quantization, optimizer, checkpoints and the loop.
//!
//! Knows no command line and prints nothing. The quantizers are `qat_quant`'s, the models and files `qat_infer`'s; here is
//! what has a gradient.

pub mod checkpoint;
pub mod data;
pub mod device;
mod error;
pub mod exec;
pub mod export;
pub mod forecast;
pub mod loss;
pub mod ops;
mod optim;
pub mod precision;
pub mod ranks;
pub mod recipe;
pub mod schedule;
pub mod student;
pub mod teacher_cache;
#[cfg(test)]
mod tiny;
pub mod trainer;

pub use error::{Error, Result};

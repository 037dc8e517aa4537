//! The portable executor: a model run on the CPU from the bytes of its files.
//!
//! One implementation of [`Exec`](crate::model::Exec). Matrices stay packed (or float, as stored); a row at a time is
//! decoded inside the product and forgotten.

mod buffer;
mod cache;
mod exec;
mod lanes;
mod matrix;
mod model;
mod pool;
mod rotation;
mod rows;
mod session;
#[cfg(test)]
mod tests;

pub use buffer::Buffer;
pub use exec::CpuExec;
pub use matrix::Matrix;
pub use model::{Model, Size};
pub use pool::Pool;
pub use session::{CpuDecoder, Session, check_context};

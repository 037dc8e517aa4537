//! The CPU runtime: a model turned once into a flat program, and threads that carry it out token by token.
//!
//! A directory becomes matrices in the kernels' own layout (`matrix.rs`). The decoder's one forward function
//! becomes a program of a few operations a layer (`../plan/`). `engine.rs` runs the program on `pool.rs`'s threads over the cache in `kv/`; `session.rs` is what callers hold.

mod attention;
mod buffers;
mod convolution;
mod engine;
mod inputs;
mod kv;
mod lanes;
mod matrix;
mod operand;
mod pool;
mod products;
mod rotation;
mod runtime;
mod session;
#[cfg(test)]
mod tests;

pub use attention::Attention;
pub use kv::{KvCache, KvType};
pub use matrix::Matrix;
pub use pool::Pool;
pub use runtime::Cpu;
pub use session::{CpuDecoder, RunOptions, Session, check_context};

/// A model with its matrices in the layout of the kernels.
pub type Model = crate::Opened<Matrix>;

/// A model's plan over the matrices of this runtime.
type Plan<'m> = crate::plan::Plan<'m, matrix::View<'m>>;
/// A program of it.
type Program<'m> = crate::plan::Program<'m, matrix::View<'m>>;
/// A product of it.
type Product<'m> = crate::plan::Product<'m, matrix::View<'m>>;

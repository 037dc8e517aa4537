//! The CPU runtime: a model turned once into a flat program, and threads that carry it out token by token.
//!
//! A directory becomes matrices in the kernels' own layout (`model.rs`, `matrix.rs`). The decoder's one forward function
//! is recorded (`record.rs`), neighbouring operations are fused (`fuse.rs`), and values share buffers (`program.rs`).
//! `engine.rs` runs the program on `pool.rs`'s threads over the cache in `kv/`; `session.rs` is what callers hold.

mod attention;
mod buffers;
mod engine;
mod fuse;
mod inputs;
mod kv;
mod lanes;
mod matrix;
mod model;
mod pool;
mod products;
mod program;
mod record;
mod rotation;
mod session;
#[cfg(test)]
mod tests;

pub use attention::Attention;
pub use kv::{KvCache, KvType};
pub use matrix::Matrix;
pub use model::{Model, Size};
pub use pool::Pool;
pub use session::{CpuDecoder, RunOptions, Session, check_context};

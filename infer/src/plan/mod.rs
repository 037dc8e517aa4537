//! A model as a plan: what is computed, in which order, in which buffers, whoever computes it.
//!
//! The decoder's one forward function is recorded (`record.rs`), neighbouring operations are fused (`fuse.rs`), and values
//! share buffers by their lives (`program.rs`). The CPU's engine carries a plan out as it is; for Metal it is lowered to
//! a list of dispatches. Knows no matrix but its size, and no device.

mod fuse;
mod program;
mod record;

pub(crate) use program::{Epilogue, MOST, Norm, Op, Product, Program, Turn, Value, Weight};
pub(crate) use record::{Matrix, Plan};

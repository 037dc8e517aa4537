//! The differentiable operations of the trainer, one file each.
//!
//! Every operation takes and gives f32 tensors, contiguous or not. On the CPU it is one fused pass with a
//! hand-written backward; on any other device it is a composition of candle operations that have gradients.
//! The two are held to the same f64 reference. Knows no model, no optimizer and no loop.
//!
//! Invariants: results do not depend on the number of threads (work is cut by shape, partial sums are joined in
//! order), and an operation never silently cuts the graph: where an input gets no gradient, its documentation says so.

mod activations;
mod attention;
#[cfg(test)]
pub(crate) mod check;
mod cpu;
mod embedding;
mod fake_quant;
pub(crate) mod lanes;
mod linear;
mod norm;
mod rope;
mod softmax;
mod swiglu;
mod tile;

pub use activations::quantize_activations;
pub use attention::causal_attention;
pub use embedding::embedding;
pub use fake_quant::{FakeQuant, Gradient, fake_quant, fake_quant_learned};
pub use linear::linear;
pub use norm::rms_norm;
pub use rope::rope;
pub use softmax::causal_softmax;
pub use swiglu::swiglu;

pub(crate) use cpu::{Floats, blend, floats, floats_out, for_each_chunk, rows_per_chunk};

//! GGUF, the file of llama.cpp and Ollama: read and written.
//!
//! Knows no runtime. Invariants: a file is hostile until checked; what is written here, llama.cpp's own reader takes.

mod blocks;
mod cursor;
pub(crate) mod hparams;
mod kind;
mod model;
mod names;
mod reader;
#[cfg(test)]
mod tests;
mod value;
pub(crate) mod vocabulary;
mod writer;

pub(crate) use hparams::architecture;
pub(crate) use names::{ROPE_FREQS, Rows, gguf_name, place};

pub use kind::Kind;
pub use model::GgufModel;
pub use reader::{Gguf, TensorInfo};
pub use value::{Array, Metadata, Value};
pub use writer::{Announced, GgufWriter};

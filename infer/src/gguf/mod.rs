//! GGUF, the file of llama.cpp and Ollama: read and written.
//!
//! Knows no runtime. Invariants: a file is hostile until checked; what is written here, llama.cpp's own reader takes.

mod cursor;
mod kind;
mod reader;
#[cfg(test)]
mod tests;
mod value;
mod writer;

pub use kind::Kind;
pub use reader::{Gguf, TensorInfo};
pub use value::{Array, Metadata, Value};
pub use writer::{Announced, GgufWriter};

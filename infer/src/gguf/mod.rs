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

pub(crate) use names::{Rows, gguf_name, place};
pub(crate) use writer::file_bytes;

use std::path::{Path, PathBuf};

use crate::files::CONFIG_FILE;

pub use kind::Kind;
pub use model::GgufModel;
pub use reader::{Gguf, TensorInfo};
pub use value::{Array, Metadata, Value};
pub use writer::{Announced, GgufWriter};

/// Name of the file in a directory that was exported.
pub const GGUF_FILE: &str = "model.gguf";

/// The GGUF file that `path` means: itself, or the one in an exported directory; none if it means something else.
pub fn at(path: &Path) -> Option<PathBuf> {
    let named = path.is_file() && path.extension().is_some_and(|extension| extension == "gguf");
    if named || Gguf::is_at(path) {
        return Some(path.to_owned());
    }
    let inside = path.join(GGUF_FILE);
    (inside.is_file() && !path.join(CONFIG_FILE).is_file()).then_some(inside)
}

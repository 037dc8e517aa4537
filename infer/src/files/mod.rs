//! What a model is on disk: foreign directories read, our own read and written.
//!
//! Knows no architecture and runs nothing. Invariants: input is hostile until checked, and every message names the
//! file, the thing in it and the fix; output appears whole or not at all.

mod announced;
mod base;
mod bitnet;
mod digest;
mod float;
mod header;
mod hf;
mod hf_writer;
mod manifest;
mod mapped;
mod mlx;
mod packed;
mod packed_writer;
mod shard_writer;
mod staged;
mod tensor_writer;
mod tensors;
#[cfg(test)]
mod tests;
mod tokenizer;

pub(crate) use announced::{Announced, entry};
pub(crate) use bitnet::ROWS as BITNET_ROWS;
pub(crate) use float::{dtype as float_dtype, load as load_floats, store as store_floats};
pub(crate) use hf::is_licence;
pub(crate) use hf_writer::with_dtype;
pub(crate) use mlx::{QUANTIZATION, QUANTIZATION_CONFIG};
pub(crate) use packed_writer::write_surroundings;
pub(crate) use shard_writer::SHARD;
pub(crate) use staged::write_error;
pub(crate) use tokenizer::parse_tokenizer;

pub use base::Base;
pub use bitnet::{BitNetDir, BitNetMatrix, LinearClass};
pub use digest::sha256_hex;
pub use header::TensorInfo;
pub use hf::{CONFIG_FILE, HfDir, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, companions};
pub use hf_writer::{HfWriter, PROVENANCE_FILE, check_written};
pub use manifest::{Activations, MANIFEST_FILE, Manifest, Storage, TensorEntry};
pub use mapped::{Bytes, Mapped};
pub use mlx::{MlxDir, MlxGrid, MlxMatrix};
pub use packed::{PackedDir, StoredMatrix};
pub use packed_writer::PackedWriter;
pub use shard_writer::ShardWriter;
pub use staged::{StagedDir, is_at, write_file_atomic};
pub use tensor_writer::TensorWriter;
pub use tensors::{INDEX_FILE, MODEL_FILE, TensorFiles, read_json};
pub use tokenizer::{load_tokenizer, same_tokens, tokenizer_sha256};
pub use tokenizers::Tokenizer;

//! What the files of a model promise, one sentence a test. Files are made in temporary directories with the
//! safetensors library, so that what is read here was not written by what is tested.
#![allow(clippy::unwrap_used, reason = "a test says by a panic what went wrong")]

mod hf;
mod mlx;
mod packed;
mod shared;
mod staged;
mod tensor_writer;
mod tensors;
mod writers;

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::*;
use crate::error::Error;

/// A tokenizer of `words` tokens, ids 0.., as `tokenizer.json` spells it.
fn word_tokenizer(words: usize) -> String {
    let vocab: serde_json::Map<_, _> = (0..words).map(|i| (format!("w{i}"), i.into())).collect();
    let model = serde_json::json!({"type": "WordLevel", "vocab": vocab, "unk_token": "w0"});
    serde_json::json!({"version": "1.0", "model": model}).to_string()
}

/// A folder with the tokenizer to copy, and where the model goes.
fn place() -> (TempDir, Vec<PathBuf>, PathBuf) {
    let dir = TempDir::new().unwrap();
    let tokenizer = dir.path().join(TOKENIZER_FILE);
    std::fs::write(&tokenizer, word_tokenizer(4)).unwrap();
    let target = dir.path().join("packed");
    (dir, vec![tokenizer], target)
}

/// Writes f32 tensors with the safetensors library.
fn write_f32(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, v)| v.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), b)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), b).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Writes `length`, `header` and `data` bytes of zeros: a safetensors file that may lie.
fn write_raw(path: &Path, length: u64, header: &str, data: usize) {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    std::fs::write(path, bytes).unwrap();
}

/// The message of a failure, with the directory of the test cut out.
fn message<T>(dir: &TempDir, result: Result<T, Error>) -> String {
    let Err(error) = result else { panic!("this should have failed") };
    error
        .to_string()
        .replace(&format!("{}/", dir.path().display()), "")
        .replace(&dir.path().display().to_string(), "DIR")
}

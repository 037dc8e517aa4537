//! A packed model in a directory: `model.safetensors`, `manifest.json`, `config.json`, the tokenizer.
//!
//! A packed matrix is a U8 tensor `[rows, row bytes]` under its Hugging Face name; a `ternary-tensor` matrix has its
//! one scale beside it, as BF16 `[1]` under `NAME_scale`. Norms, biases and matrices that were left alone are floats.
//!
//! Knows no architecture. Invariants: a [`PackedDir`] that exists holds the tensors that its manifest lists, under their
//! types and shapes, and nothing else; a tensor that is handed out agrees with the manifest in every byte, and has only
//! legal codes and finite numbers. So each tensor is read once for checking, when it is needed.

use std::path::{Path, PathBuf};

use half::bf16;
use qat_quant::{Format, PackedRef};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;

use super::digest::sha256_hex;
use super::float::{check_finite, dtype};
use super::hf::{CONFIG_FILE, TOKENIZER_FILE};
use super::manifest::{Activations, MANIFEST_FILE, Manifest, Storage, TensorEntry};
use super::mapped::Bytes;
use super::tensors::{MODEL_FILE, TensorFiles, read_json};
use crate::error::{Error, Result};

/// A matrix as the file holds it.
#[derive(Clone, Debug)]
pub struct StoredMatrix {
    /// How its elements are stored.
    pub storage: Storage,
    /// The blocks of all rows, or the floats, row-major.
    pub bytes: Bytes,
    /// The scale of a `ternary-tensor` matrix.
    pub tensor_scale: Option<f32>,
    /// What its inputs are rounded to.
    pub activations: Activations,
}

/// A packed model in a directory.
#[derive(Debug)]
pub struct PackedDir {
    /// The directory.
    pub path: PathBuf,
    /// The content of `config.json`.
    pub config: Value,
    /// The content of `manifest.json`.
    pub manifest: Manifest,
    tensors: TensorFiles,
}

impl PackedDir {
    /// Whether `path` claims to be a packed model: it has a `manifest.json`.
    pub fn is_at(path: &Path) -> bool {
        path.join(MANIFEST_FILE).is_file()
    }

    /// Opens the packed model at `path` and checks it against its manifest, all but the content of the tensors.
    ///
    /// # Errors
    /// A missing part; a manifest of another version; a checksum, shape, length or type that differs; a tensor that
    /// only one side has.
    pub fn open(path: &Path) -> Result<Self> {
        if !Self::is_at(path) {
            let problem =
                format!("has no {MANIFEST_FILE}; want a directory written by `qat export --format qat`");
            return Err(Error::file(path, problem));
        }
        let manifest = Manifest::read(&path.join(MANIFEST_FILE))?;
        check_files(path, &manifest)?;
        let config = read_json(&path.join(CONFIG_FILE))?;
        let tensors = TensorFiles::open_file(&path.join(MODEL_FILE))?;
        let dir = Self { path: path.to_owned(), config, manifest, tensors };
        dir.check_names()?;
        dir.manifest.tensors.iter().try_for_each(|(name, entry)| dir.check_type(name, entry))?;
        dir.check_totals()?;
        Ok(dir)
    }

    /// Reads every tensor and checks its content.
    ///
    /// # Errors
    /// A checksum that differs; a code or scale that no encoder writes.
    pub fn verify(&self) -> Result<()> {
        // The first in order of name, so that the same damage gives the same message.
        let problem = self.manifest.tensors.par_iter().find_map_first(|(n, e)| self.check(n, e).err());
        problem.map_or(Ok(()), Err)
    }

    /// The tensor `name` as a matrix `[rows, cols]`, checked, without a copy.
    ///
    /// # Errors
    /// When no tensor has that name, its shape is another, its checksum differs, or it has a code or scale that no
    /// encoder writes.
    pub fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<StoredMatrix> {
        self.stored(name, &[rows, cols])
    }

    /// The tensor `name` of any shape as it is stored, checked, without a copy.
    pub(crate) fn stored(&self, name: &str, shape: &[usize]) -> Result<StoredMatrix> {
        let entry = self.entry(name, shape)?;
        self.check(name, entry)?;
        Ok(StoredMatrix {
            storage: entry.storage,
            bytes: self.tensors.bytes(name)?,
            tensor_scale: self.tensor_scale(name, entry.storage)?,
            activations: entry.activations,
        })
    }

    /// The values of the float tensor `name` of `shape`, checked.
    ///
    /// # Errors
    /// When no tensor has that name, its shape is another, it is packed, its checksum differs, or a value is not finite.
    pub fn vector(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let entry = self.entry(name, shape)?;
        self.check_sum(name, entry, &self.tensors.bytes(name)?, None)?;
        self.tensors.f32(name, shape)
    }

    /// Whether a tensor of this name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.manifest.tensors.contains_key(name)
    }

    /// Path of `config.json`, for messages.
    pub fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG_FILE)
    }

    /// Path of `tokenizer.json`, which a model that reads no text lacks.
    pub fn tokenizer(&self) -> PathBuf {
        self.path.join(TOKENIZER_FILE)
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&TensorEntry> {
        let Some(entry) = self.manifest.tensors.get(name) else {
            let problem =
                format!("missing from {}; does config.json belong to it?", self.manifest_path().display());
            return Err(Error::tensor(name, problem));
        };
        if entry.shape != shape {
            let problem = format!("want {shape:?}, found {:?}; does config.json belong to it?", entry.shape);
            return Err(self.tensors.problem(name, problem));
        }
        Ok(entry)
    }

    fn tensor_scale(&self, name: &str, storage: Storage) -> Result<Option<f32>> {
        if storage != Storage::Packed(Format::TernaryTensor) {
            return Ok(None);
        }
        Ok(self.tensors.f32(&scale_name(name), &[1])?.first().copied())
    }

    fn manifest_path(&self) -> PathBuf {
        self.path.join(MANIFEST_FILE)
    }

    /// Manifest and file list the same tensors.
    fn check_names(&self) -> Result<()> {
        let listed = &self.manifest.tensors;
        let scale_of = |name: &str| {
            let owner = name.strip_suffix(SCALE).and_then(|owner| listed.get(owner));
            owner.is_some_and(|e| e.storage == Storage::Packed(Format::TernaryTensor))
        };
        let extra = self.tensors.names().find(|n| !listed.contains_key(*n) && !scale_of(n));
        if let Some(name) = extra {
            return Err(self.changed(name, &format!("is not listed in {MANIFEST_FILE}")));
        }
        match listed.keys().find(|name| !self.tensors.contains(name)) {
            Some(name) => Err(self.changed(name, &format!("listed in {MANIFEST_FILE}, missing here"))),
            None => Ok(()),
        }
    }

    /// The tensor `name` has the type and shape that `entry` says.
    fn check_type(&self, name: &str, entry: &TensorEntry) -> Result<()> {
        let (want_dtype, want_shape) = stored_as(entry);
        let found = self.tensors.info(name)?;
        if (found.dtype, &found.shape) == (want_dtype, &want_shape) {
            return Ok(());
        }
        let problem = format!(
            "{} of shape {:?} wants {want_dtype} {want_shape:?}, found {} {:?}",
            entry.storage, entry.shape, found.dtype, found.shape
        );
        Err(self.changed(name, &problem))
    }

    /// The tensor `name` has the content that `entry` says, and one that can be used.
    fn check(&self, name: &str, entry: &TensorEntry) -> Result<()> {
        let bytes = self.tensors.bytes(name)?;
        let scale = self.tensor_scale(name, entry.storage)?;
        self.check_sum(name, entry, &bytes, scale)?;
        match (entry.storage, &*entry.shape) {
            (Storage::Packed(format), &[rows, cols]) => {
                let valid = PackedRef::new(name, format, rows, cols, &bytes, scale)
                    .and_then(|packed| packed.validate(name));
                valid.map_err(|e| Error::file(self.tensors.origin(), format!("{e}; export the model again")))
            }
            (Storage::Float(float), _) => {
                check_finite(float, &bytes).map_err(|problem| self.tensors.problem(name, problem))
            }
            // The manifest has only matrices that are packed.
            (Storage::Packed(_), _) => Ok(()),
        }
    }

    /// The bytes of the tensor `name`, and the scale beside them, have the checksum of `entry`.
    fn check_sum(&self, name: &str, entry: &TensorEntry, bytes: &[u8], scale: Option<f32>) -> Result<()> {
        let beside = scale.map(|scale| stored_scale(name, scale)).transpose()?;
        let sha256 = sha256_hex(&[bytes, beside.as_ref().map_or(&[][..], |s| s)]);
        if sha256 == entry.sha256 {
            return Ok(());
        }
        let problem = format!("its SHA-256 is {sha256}, {MANIFEST_FILE} says {}", entry.sha256);
        Err(self.changed(name, &problem))
    }

    /// The numbers that the manifest derives from the tensors.
    fn check_totals(&self) -> Result<()> {
        let path = self.manifest_path();
        let model = self.tensors.origin();
        let bytes = model.metadata().map_err(|e| Error::io("cannot read", model, e))?.len();
        let bits = Manifest::bits_per_weight_of(&self.manifest.tensors);
        let said = (self.manifest.file_bytes, self.manifest.bits_per_weight);
        if said == (bytes, bits) {
            return Ok(());
        }
        let problem = format!(
            "says file_bytes {} and bits_per_weight {}, found {bytes} and {bits}; export the model again",
            said.0, said.1
        );
        Err(Error::file(&path, problem))
    }

    /// The error of a file that is not what was exported.
    fn changed(&self, name: &str, problem: &str) -> Error {
        let fix = "it was changed or damaged, export the model again";
        Error::file(self.tensors.origin(), format!("{name}: {problem}; {fix}"))
    }
}

const SCALE: &str = "_scale";

/// Name of the tensor that holds the scale of the `ternary-tensor` matrix `name`.
pub(super) fn scale_name(name: &str) -> String {
    format!("{name}{SCALE}")
}

/// The two bytes of the scale of the `ternary-tensor` matrix `name`.
pub(super) fn stored_scale(name: &str, scale: f32) -> Result<[u8; 2]> {
    let stored = bf16::from_f32(scale);
    if stored.to_f32().to_bits() != scale.to_bits() {
        return Err(Error::tensor(
            name,
            format!("its scale {scale} is no BF16 number; round it before packing"),
        ));
    }
    Ok(stored.to_le_bytes())
}

/// Element type and shape under which the file holds what `entry` describes.
pub(super) fn stored_as(entry: &TensorEntry) -> (Dtype, Vec<usize>) {
    match (entry.storage, &*entry.shape) {
        (Storage::Packed(format), &[rows, cols]) => (Dtype::U8, vec![rows, format.row_bytes(cols)]),
        (Storage::Packed(_), shape) => (Dtype::U8, shape.to_vec()),
        (Storage::Float(float), shape) => (dtype(float), shape.to_vec()),
    }
}

/// The config is there, and every file that the manifest lists is what it was. A tokenizer may be missing, but not
/// come from elsewhere.
fn check_files(path: &Path, manifest: &Manifest) -> Result<()> {
    for (name, required) in [(CONFIG_FILE, true), (TOKENIZER_FILE, path.join(TOKENIZER_FILE).exists())] {
        if required && !manifest.files.contains_key(name) {
            let problem = format!("lists no checksum of {name}; export the model again");
            return Err(Error::file(&path.join(MANIFEST_FILE), problem));
        }
    }
    for (name, want) in &manifest.files {
        let file = path.join(name);
        if Path::new(name).file_name() != Some(name.as_ref()) {
            let problem = format!("lists the file {name:?}; want a plain file name in the same directory");
            return Err(Error::file(&path.join(MANIFEST_FILE), problem));
        }
        let bytes = std::fs::read(&file).map_err(|e| Error::io("cannot read", &file, e))?;
        let found = sha256_hex(&[&bytes]);
        if found != *want {
            let problem = format!(
                "its SHA-256 is {found}, {MANIFEST_FILE} says {want}; it was changed or damaged, \
                 export the model again"
            );
            return Err(Error::file(&file, problem));
        }
    }
    Ok(())
}

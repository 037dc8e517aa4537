//! `manifest.json`: what each tensor of a packed directory is, and the checksums of it all.
//!
//! ```json
//! {
//!   "qat": 1,
//!   "tensors": {
//!     "model.layers.0.mlp.up_proj.weight":
//!       {"format": "int4-g32", "shape": [384, 128], "activations": "float", "sha256": "…"},
//!     "model.norm.weight":
//!       {"format": "float", "dtype": "F32", "shape": [128], "activations": "float", "sha256": "…"}
//!   },
//!   "bits_per_weight": 4.63,
//!   "file_bytes": 412340,
//!   "source": {…},
//!   "sha256": {"config.json": "…", "tokenizer.json": "…"}
//! }
//! ```
//!
//! `qat` is the version of this layout. A tensor's `sha256` is that of its bytes (of a `ternary-tensor` matrix: its
//! codes, then its scale); `bits_per_weight` counts every stored bit of every tensor, scales included;
//! `file_bytes` is the length of `model.safetensors`; `source` is free for the writer.
//!
//! Knows no bytes. Invariant: a [`Manifest`] that exists names known formats, and shapes that they can hold.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use qat_quant::Format;
use qat_quant::kernels::FloatType;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::digest::sha256_hex;
use super::float::{dtype, float_type};
use super::tensors::read_json;
use crate::error::{Error, Result};

/// Name of the manifest in its directory.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The version of the layout that is written, and the only one that is read.
const VERSION: u64 = 1;
/// Spelling of a tensor that is not packed.
const FLOAT: &str = "float";
/// More elements than any file has: sizes below can be multiplied by bytes without overflow.
const MAX_ELEMENTS: usize = 1 << 48;

/// What the inputs of a matrix are rounded to before they are multiplied; part of the model, since it was trained
/// with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// Nothing: f32.
    #[default]
    Float,
    /// 8-bit integers with one scale per token.
    Int8Token,
}

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Packed blocks: U8 `[rows, row bytes]` in the file.
    Packed(Format),
    /// Floats under their own type and shape.
    Float(FloatType),
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packed(format) => format.fmt(f),
            Self::Float(float) => write!(f, "{FLOAT} {}", dtype(*float)),
        }
    }
}

/// What the manifest says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// How its elements are stored.
    pub storage: Storage,
    /// Logical sizes, outermost first: `[rows, cols]` for a packed matrix.
    pub shape: Vec<usize>,
    /// What its inputs are rounded to.
    pub activations: Activations,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
}

impl TensorEntry {
    /// How many numbers it holds.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// How many bytes they take, scales included.
    pub fn stored_bytes(&self) -> usize {
        match (self.storage, &*self.shape) {
            (Storage::Packed(format), &[rows, cols]) => {
                let beside = if format == Format::TernaryTensor { 2 } else { 0 };
                rows * format.row_bytes(cols) + beside
            }
            (Storage::Packed(_), _) => 0,
            (Storage::Float(float), _) => self.elements() * float.bytes(),
        }
    }
}

/// The checked manifest of a packed directory.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Every tensor by its Hugging Face name.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// Stored bits of all tensors, scales and floats included, for each of their numbers.
    pub bits_per_weight: f64,
    /// Length of `model.safetensors`.
    pub file_bytes: u64,
    /// Where the model came from, in the words of its writer.
    pub source: Value,
    /// SHA-256 of `config.json` and of the tokenizer and other files, by file name.
    pub files: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    qat: u64,
    tensors: BTreeMap<String, RawTensor>,
    bits_per_weight: f64,
    file_bytes: u64,
    source: Value,
    sha256: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    format: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<safetensors::Dtype>,
    shape: Vec<usize>,
    activations: Activations,
    sha256: String,
}

impl Manifest {
    /// Reads and checks the manifest at `path`.
    ///
    /// # Errors
    /// When it is missing, not JSON, of another version, misspelt, or names a shape that its format can't hold.
    pub fn read(path: &Path) -> Result<Self> {
        let json: Value = read_json(path)?;
        let refused = |problem: String| Error::file(path, problem);
        match json.get("qat").and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(newer) if newer > VERSION => {
                let problem =
                    format!("has version {newer}, this qat reads version {VERSION}; use a newer qat");
                return Err(refused(problem));
            }
            _ => {
                return Err(refused(format!(
                    "want \"qat\": {VERSION}; is it the manifest of a packed model?"
                )));
            }
        }
        let raw: RawManifest = serde_json::from_value(json)
            .map_err(|e| refused(format!("{e}; export the model again with this version of qat")))?;
        let mut tensors = BTreeMap::new();
        for (name, raw) in raw.tensors {
            let entry = raw.checked(&name).map_err(|problem| refused(format!("{name}: {problem}")))?;
            tensors.insert(name, entry);
        }
        let RawManifest { bits_per_weight, file_bytes, source, sha256: files, .. } = raw;
        Ok(Self { tensors, bits_per_weight, file_bytes, source, files })
    }

    /// The manifest as it is written, ending in a new line.
    ///
    /// # Errors
    /// Never with the fields as they are; serde asks for it.
    pub fn to_json(&self) -> Result<String> {
        let raw = |entry: &TensorEntry| {
            let (format, dtype) = match entry.storage {
                Storage::Packed(format) => (format.to_string(), None),
                Storage::Float(float) => (FLOAT.to_owned(), Some(dtype(float))),
            };
            let TensorEntry { shape, activations, sha256, .. } = entry.clone();
            RawTensor { format, dtype, shape, activations, sha256 }
        };
        let raw = RawManifest {
            qat: VERSION,
            tensors: self.tensors.iter().map(|(name, entry)| (name.clone(), raw(entry))).collect(),
            bits_per_weight: self.bits_per_weight,
            file_bytes: self.file_bytes,
            source: self.source.clone(),
            sha256: self.files.clone(),
        };
        let json = serde_json::to_string_pretty(&raw)
            .map_err(|e| Error::Invalid(format!("the manifest can't be written as JSON: {e}")))?;
        Ok(json + "\n")
    }

    /// What tells this model from every other: the SHA-256 of the names and checksums of its tensors.
    pub fn identity(&self) -> String {
        let list: String = self.tensors.iter().map(|(name, e)| format!("{name} {}\n", e.sha256)).collect();
        sha256_hex(&[list.as_bytes()])
    }

    /// Stored bits for each number of `tensors`, scales included; 0 when there are none.
    pub fn bits_per_weight_of(tensors: &BTreeMap<String, TensorEntry>) -> f64 {
        let bytes: usize = tensors.values().map(TensorEntry::stored_bytes).sum();
        let elements: usize = tensors.values().map(TensorEntry::elements).sum();
        if elements == 0 { 0.0 } else { 8.0 * bytes as f64 / elements as f64 }
    }
}

impl RawTensor {
    fn checked(self, name: &str) -> Result<TensorEntry, String> {
        let Self { format, dtype, shape, activations, sha256 } = self;
        let elements = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        if !elements.is_some_and(|n| (1..=MAX_ELEMENTS).contains(&n)) {
            return Err(format!("shape {shape:?} is none that a weight has; export the model again"));
        }
        let storage = if format == FLOAT {
            let float = dtype.and_then(float_type);
            Storage::Float(float.ok_or("a float tensor wants \"dtype\" F32, F16 or BF16")?)
        } else {
            if dtype.is_some() {
                return Err(format!("{format} has no \"dtype\", only float has"));
            }
            Storage::Packed(format.parse().map_err(|e: qat_quant::Error| e.to_string())?)
        };
        if let Storage::Packed(format) = storage {
            let &[_, cols] = &*shape else {
                return Err(format!("{format} wants a shape of [rows, cols], found {shape:?}"));
            };
            format.check_row_len(name, cols).map_err(|e| e.to_string())?;
        }
        Ok(TensorEntry { storage, shape, activations, sha256 })
    }
}

//! A model with the BitNet layers of Hugging Face transformers, whatever its architecture.
//!
//! `config.json` says so under `quantization_config`. Offline, `X.weight` is U8 `[rows/4, cols]`: byte `[r, c]` holds the codes,
//! plus one, of rows r, r + rows/4, r + rows/2 and r + 3·rows/4, lowest bits first; `X.weight_scale` is one number, by which the class
//! `autobitlinear` multiplies and `bitlinear` divides. Online, `X.weight` are floats, which transformers rounds whenever it
//! multiplies by them: to `{−1, 0, 1}` times their mean magnitude. Either way inputs are rounded to 8 bits per token.
//!
//! Knows no architecture. Invariant: a matrix that is handed out has the shape that was asked for, legal codes and a finite scale,
//! which need not be a number of bf16.

use std::path::{Path, PathBuf};

use half::bf16;
use qat_quant::{Format, PackedRef, Scales, pack_codes};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;

use super::hf::{CONFIG_FILE, HfDir, TOKENIZER_FILE};
use super::manifest::{Activations, Storage};
use super::mlx::QUANTIZATION_CONFIG;
use super::packed::StoredMatrix;
use super::tensors::{TensorFiles, read_json};
use crate::error::{Error, Result};

/// Rows that share a byte.
pub(crate) const ROWS: usize = 4;
/// What `quant_method` says.
const METHOD: &str = "bitnet";
/// The least scale that transformers takes a mean for.
const LEAST: f64 = 1e-5;

/// A class of transformers that multiplies by ternary weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearClass {
    /// `scale · (W·x + b)`.
    AutoBitLinear,
    /// `W·x / (1/scale) + b`.
    BitLinear,
}

impl LinearClass {
    /// Both.
    pub const ALL: [Self; 2] = [Self::AutoBitLinear, Self::BitLinear];

    /// How `linear_class` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AutoBitLinear => "autobitlinear",
            Self::BitLinear => "bitlinear",
        }
    }

    /// The scale of weights beside which `stored` lies. Where that is the inverse of a number of bf16, as our own export
    /// writes it, it is that number.
    pub(crate) fn scale(self, stored: f32) -> f32 {
        match self {
            Self::AutoBitLinear => stored,
            Self::BitLinear => {
                let near = bf16::from_f32(1.0 / stored).to_f32();
                if 1.0 / near == stored { near } else { 1.0 / stored }
            }
        }
    }
}

/// A model with BitNet layers.
#[derive(Debug)]
pub struct BitNetDir {
    /// The directory.
    pub path: PathBuf,
    /// The content of `config.json` without what it says of quantization: that of the float model.
    pub config: Value,
    /// All tensors.
    pub tensors: TensorFiles,
    class: LinearClass,
    /// Weights are floats.
    is_online: bool,
    /// Modules, by name or the end of it, that are floats.
    floats: Vec<String>,
}

/// A ternary matrix of a [`BitNetDir`].
#[derive(Debug, Clone)]
pub struct BitNetMatrix {
    /// In blocks of `ternary-tensor`, with 8-bit inputs.
    pub stored: StoredMatrix,
    /// Bytes of the file that hold it.
    pub file_bytes: usize,
}

impl BitNetDir {
    /// Whether `path` claims to be a model of BitNet layers.
    pub fn is_at(path: &Path) -> bool {
        let says = |config: Value| config[QUANTIZATION_CONFIG]["quant_method"] == METHOD;
        read_json::<Value>(&path.join(CONFIG_FILE)).is_ok_and(says)
    }

    /// Opens the model at `path`.
    ///
    /// # Errors
    /// What a float directory is refused for; a class or a mode of layers that is not known, named with its key.
    pub fn open(path: &Path) -> Result<Self> {
        let HfDir { path, mut config, tensors } = HfDir::open(path)?;
        let said = config.as_object_mut().and_then(|keys| keys.shift_remove(QUANTIZATION_CONFIG));
        let said = said.unwrap_or(Value::Null);
        let wrong = |key: &str, wanted: &str| {
            let problem =
                format!("{QUANTIZATION_CONFIG}.{key}: {} is not supported; want {wanted}", said[key]);
            Error::file(&path.join(CONFIG_FILE), problem)
        };
        // Absent, it is the class of the first such models.
        let class = said["linear_class"].as_str().unwrap_or(LinearClass::BitLinear.name());
        let class = LinearClass::ALL.into_iter().find(|known| known.name() == class);
        let class = class.ok_or_else(|| wrong("linear_class", "\"autobitlinear\" or \"bitlinear\""))?;
        let is_online = match said["quantization_mode"].as_str() {
            Some("online") if class == LinearClass::AutoBitLinear => true,
            Some("offline") | None => false,
            Some(_) => {
                return Err(wrong("quantization_mode", "\"offline\", or \"online\" with autobitlinear"));
            }
        };
        if said["use_rms_norm"] == true {
            return Err(wrong("use_rms_norm", "false"));
        }
        let floats = said["modules_to_not_convert"].as_array().map(Vec::as_slice).unwrap_or_default();
        let floats = floats.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(Self { path, config, tensors, class, is_online, floats })
    }

    /// Path of `config.json`, for messages.
    pub fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG_FILE)
    }

    /// Path of `tokenizer.json`, which a model that reads no text lacks.
    pub fn tokenizer(&self) -> PathBuf {
        self.path.join(TOKENIZER_FILE)
    }

    /// Whether the weights are floats that are rounded whenever they are multiplied by.
    pub fn is_online(&self) -> bool {
        self.is_online
    }

    /// Whether the matrix `name` (`X.weight`, of a projection) is ternary.
    pub fn is_ternary(&self, name: &str) -> bool {
        let module = module(name);
        let is_named = |float: &String| module == float || module.ends_with(&format!(".{float}"));
        !self.floats.iter().any(is_named) && (self.is_online || self.tensors.contains(&scale_name(name)))
    }

    /// The ternary matrix `name` (`X.weight`, of a projection) of `shape`, or none where it is a float one.
    ///
    /// # Errors
    /// A part that is missing, or has another type or shape; a code that stands for nothing; numbers that are not finite.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Option<BitNetMatrix>> {
        if !self.is_ternary(name) {
            return Ok(None);
        }
        if !shape[1].is_multiple_of(ROWS) {
            let problem = format!("rows of {} weights; want a multiple of {ROWS}", shape[1]);
            return Err(self.tensors.problem(name, problem));
        }
        if self.is_online {
            return self.rounded(name, shape).map(Some);
        }
        self.unpacked(name, shape, &scale_name(name)).map(Some)
    }

    /// A matrix that is stored as codes.
    fn unpacked(&self, name: &str, [rows, cols]: [usize; 2], scale_name: &str) -> Result<BitNetMatrix> {
        if !rows.is_multiple_of(ROWS) {
            let problem = format!("has {rows} rows; want a multiple of {ROWS}, which share a byte");
            return Err(self.tensors.problem(name, problem));
        }
        self.tensors.check_shape(name, &[rows / ROWS, cols])?;
        let found = self.tensors.info(name)?.dtype;
        if found != Dtype::U8 {
            return Err(self.tensors.problem(name, format!("want U8, the codes, found {found}")));
        }
        let scale = self.class.scale(self.tensors.f32(scale_name, &[1])?[0]);
        if !(scale.is_finite() && scale > 0.0) {
            let problem = format!("makes a scale of {scale}; want a finite number above 0");
            return Err(self.tensors.problem(scale_name, problem));
        }
        let bytes = self.tensors.bytes(name)?;
        let quarter = rows / ROWS;
        let code = |at: usize| {
            let (row, column) = (at / cols, at % cols);
            f32::from(bytes[row % quarter * cols + column] >> (2 * (row / quarter)) & 3) - 1.0
        };
        let codes: Vec<f32> = (0..rows * cols).into_par_iter().map(code).collect();
        if let Some(at) = codes.iter().position(|code| *code > 1.0) {
            let problem = format!("element {at} has the code 3; want 0, 1 or 2");
            return Err(self.tensors.problem(name, problem));
        }
        let file_bytes = bytes.len() + self.tensors.bytes(scale_name)?.len();
        ternary(name, &codes, [rows, cols], scale, file_bytes)
    }

    /// A matrix of floats, rounded as transformers rounds it, in f32.
    fn rounded(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<BitNetMatrix> {
        let mut values = self.tensors.f32(name, &[rows, cols])?;
        let row_sums: Vec<f64> =
            values.par_chunks(cols).map(|row| row.iter().map(|w| f64::from(w.abs())).sum()).collect();
        let mean = (row_sums.iter().sum::<f64>() / (rows * cols) as f64).max(LEAST) as f32;
        let inverse = 1.0 / mean;
        values.par_iter_mut().for_each(|w| *w = (*w * inverse).round_ties_even().clamp(-1.0, 1.0));
        let file_bytes = self.tensors.bytes(name)?.len();
        ternary(name, &values, [rows, cols], 1.0 / inverse, file_bytes)
    }
}

impl BitNetMatrix {
    /// All weights, row-major.
    ///
    /// # Errors
    /// Never for a matrix that was handed out; its length is looked at again.
    pub fn values(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Vec<f32>> {
        let StoredMatrix { bytes, tensor_scale, .. } = &self.stored;
        Ok(PackedRef::new(name, Format::TernaryTensor, rows, cols, bytes, *tensor_scale)?.decode())
    }
}

fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

fn scale_name(name: &str) -> String {
    format!("{}.weight_scale", module(name))
}

/// `codes` in blocks, with a scale that may be any number.
fn ternary(
    name: &str,
    codes: &[f32],
    [rows, cols]: [usize; 2],
    scale: f32,
    file_bytes: usize,
) -> Result<BitNetMatrix> {
    let format = Format::TernaryTensor;
    let unscaled = Scales { scale: vec![1.0], bias: Vec::new() };
    let packed = pack_codes(name, format, codes, rows, cols, &unscaled)?;
    let stored = StoredMatrix {
        storage: Storage::Packed(format),
        bytes: packed.blocks.into(),
        tensor_scale: Some(scale),
        activations: Activations::Int8Token,
    };
    Ok(BitNetMatrix { stored, file_bytes })
}

//! A model in MLX's layout: Hugging Face's names, each quantized matrix in three tensors.
//!
//! Of the module `X`, `X.weight` is U32 `[rows, cols·bits/32]`, code i of a row in bits `i·bits..` of the words taken as one
//! little-endian number; `X.scales` and `X.biases` are floats `[rows, cols/group]`; a weight is `scale·code + bias`. Which
//! modules, and on what grid, `config.json` says under `quantization`.
//!
//! Knows no architecture. Invariant: a matrix that is handed out has the shape that was asked for and finite numbers only.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use qat_quant::kernels::FloatType;
use qat_quant::{Affine, Format, ScaleType};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;

use super::hf::{CONFIG_FILE, HfDir, TOKENIZER_FILE};
use super::manifest::{Activations, Storage};
use super::mapped::Bytes;
use super::packed::StoredMatrix;
use super::tensors::{TensorFiles, read_json};
use crate::error::{Error, Result};
use crate::model::Stored;

/// Where `config.json` says how matrices are quantized.
pub(crate) const QUANTIZATION: &str = "quantization";
/// The same again, for readers of Hugging Face's key.
pub(crate) const QUANTIZATION_CONFIG: &str = "quantization_config";

/// Bits of a code, and the consecutive weights that share a scale and a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MlxGrid {
    /// 2, 3, 4 or 8.
    pub bits: usize,
    /// 32, 64 or 128.
    pub group: usize,
}

impl MlxGrid {
    /// The grid, unless it is none that is known here.
    fn checked(bits: usize, group: usize) -> Result<Self, String> {
        Affine::new(bits, group, ScaleType::F16).map_err(|e| e.to_string())?;
        Ok(Self { bits, group })
    }
}

/// A model in MLX's layout.
#[derive(Debug)]
pub struct MlxDir {
    /// The directory.
    pub path: PathBuf,
    /// `config.json` without what it says of quantization: that of the float model.
    pub config: Value,
    /// All tensors.
    pub tensors: TensorFiles,
    /// The grid of every module that has scales; none in a float model.
    default: Option<MlxGrid>,
    /// Modules that differ from the default; none for those that are floats.
    modules: BTreeMap<String, Option<MlxGrid>>,
}

/// A quantized matrix of an [`MlxDir`].
#[derive(Debug, Clone)]
pub struct MlxMatrix {
    /// Bits and group.
    pub grid: MlxGrid,
    /// How scales and biases are stored.
    pub float: FloatType,
    shape: [usize; 2],
    words: Bytes,
    scales: Vec<f32>,
    biases: Vec<f32>,
}

impl MlxDir {
    /// Whether `path` claims to be a quantized MLX model: its `config.json` says `quantization`.
    pub fn is_at(path: &Path) -> bool {
        read_json::<Value>(&path.join(CONFIG_FILE)).is_ok_and(|config| config[QUANTIZATION].is_object())
    }

    /// Opens the model at `path`.
    ///
    /// # Errors
    /// What a float directory is refused for, and a quantization that is none of the affine grids. A model without any is
    /// one whose tensors are all floats.
    pub fn open(path: &Path) -> Result<Self> {
        let HfDir { path, mut config, tensors } = HfDir::open(path)?;
        let origin = path.join(CONFIG_FILE);
        let said = config.as_object_mut().and_then(|keys| {
            keys.shift_remove(QUANTIZATION_CONFIG);
            keys.shift_remove(QUANTIZATION)
        });
        let refused = |problem: String| Error::file(&origin, format!("{QUANTIZATION}: {problem}"));
        let default = said.as_ref().map(grid).transpose().map_err(refused)?;
        let mut modules = BTreeMap::new();
        for (name, value) in said.iter().filter_map(Value::as_object).flatten() {
            let module = match value {
                Value::Bool(false) => None,
                Value::Bool(true) => default,
                Value::Object(_) => {
                    Some(grid(value).map_err(|problem| refused(format!("{name}: {problem}")))?)
                }
                // The default's own keys.
                _ => continue,
            };
            modules.insert(name.clone(), module);
        }
        Ok(Self { path, config, tensors, default, modules })
    }

    /// Path of `config.json`, for messages.
    pub fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG_FILE)
    }

    /// Path of `tokenizer.json`, which a model that reads no text lacks.
    pub fn tokenizer(&self) -> PathBuf {
        self.path.join(TOKENIZER_FILE)
    }

    /// The quantized matrix that is some rows of a tensor, or none where that is a float one.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    pub(crate) fn stored(&self, stored: &Stored) -> Result<Option<MlxMatrix>> {
        let &[rows, cols] = &*stored.shape else { return Ok(None) };
        Ok(self.matrix(&stored.name, [rows, cols])?.map(|matrix| matrix.rows(stored.rows.clone())))
    }

    /// The quantized matrix `name` (`X.weight`) of `shape`, or none where it is a float tensor.
    ///
    /// # Errors
    /// A part that is missing, has another type or shape, or holds numbers that are not finite.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Option<MlxMatrix>> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let grid = self.modules.get(module).copied().unwrap_or(self.default);
        let part = |suffix: &str| format!("{module}.{suffix}");
        let Some(grid) = grid.filter(|_| self.tensors.contains(&part("scales"))) else { return Ok(None) };
        let [rows, cols] = shape;
        if cols == 0 || !cols.is_multiple_of(grid.group) {
            let problem = format!("rows of {cols} weights are no whole groups of {}", grid.group);
            return Err(self.tensors.problem(name, problem));
        }
        self.tensors.check_shape(name, &[rows, cols / 32 * grid.bits])?;
        let found = self.tensors.info(name)?.dtype;
        if found != Dtype::U32 {
            return Err(self.tensors.problem(name, format!("want U32, the codes, found {found}")));
        }
        let groups = [rows, cols / grid.group];
        let (float, _) = self.tensors.float(&part("scales"), &groups)?;
        Ok(Some(MlxMatrix {
            grid,
            float,
            shape,
            words: self.tensors.bytes(name)?,
            scales: self.tensors.f32(&part("scales"), &groups)?,
            biases: self.tensors.f32(&part("biases"), &groups)?,
        }))
    }
}

impl MlxMatrix {
    /// Some of its rows.
    pub fn rows(self, rows: Range<usize>) -> Self {
        let [all, cols] = self.shape;
        if rows == (0..all) {
            return self;
        }
        let of = |len: usize| rows.start * len..rows.end * len;
        let groups = of(cols / self.grid.group);
        Self {
            shape: [rows.len(), cols],
            words: self.words.slice(of(cols / 8 * self.grid.bits)).unwrap_or(self.words),
            scales: self.scales[groups.clone()].to_vec(),
            biases: self.biases[groups].to_vec(),
            ..self
        }
    }

    /// All weights, row-major.
    pub fn values(&self) -> Vec<f32> {
        let [_, cols] = self.shape;
        let MlxGrid { bits, group } = self.grid;
        let row_bytes = cols / 8 * bits;
        let mut values = vec![0.0; self.shape.iter().product()];
        values.par_chunks_mut(cols).zip(self.words.par_chunks(row_bytes)).enumerate().for_each(
            |(row, (out, bytes))| {
                let words = bytes.as_chunks::<4>().0;
                let word = |at: usize| words.get(at).map_or(0, |word| u64::from(u32::from_le_bytes(*word)));
                for (column, out) in out.iter_mut().enumerate() {
                    let bit = column * bits;
                    // A code of 3 bits may begin in one word and end in the next.
                    let window = word(bit / 32) | word(bit / 32 + 1) << 32;
                    let code = (window >> (bit % 32)) & ((1 << bits) - 1);
                    let at = row * (cols / group) + column / group;
                    *out = self.scales[at] * code as f32 + self.biases[at];
                }
            },
        );
        values
    }

    /// Bytes of the file that hold it.
    pub fn bytes(&self) -> usize {
        self.words.len() + self.float.bytes() * (self.scales.len() + self.biases.len())
    }

    /// The same matrix in blocks of `name`'s format, as the packed runtime takes it: no code, scale or bias is changed.
    ///
    /// # Errors
    /// Scales in f32 that are no numbers of f16 or bf16.
    pub fn stored(&self, name: &str) -> Result<StoredMatrix> {
        let [rows, cols] = self.shape;
        let MlxGrid { bits, group } = self.grid;
        let scale = self.scale_type(name)?;
        let format = Format::Affine(Affine::new(bits, group, scale)?);
        let code_bytes = group / 8 * bits;
        let mut blocks = Vec::with_capacity(rows * format.row_bytes(cols));
        for ((&s, &b), codes) in self.scales.iter().zip(&self.biases).zip(self.words.chunks_exact(code_bytes))
        {
            for number in [s, b] {
                let two = match scale {
                    ScaleType::F16 => half::f16::from_f32(number).to_le_bytes(),
                    ScaleType::BF16 => half::bf16::from_f32(number).to_le_bytes(),
                };
                blocks.extend_from_slice(&two);
            }
            blocks.extend_from_slice(codes);
        }
        let storage = Storage::Packed(format);
        Ok(StoredMatrix {
            storage,
            bytes: blocks.into(),
            tensor_scale: None,
            activations: Activations::Float,
        })
    }

    /// The two-byte float that holds every scale and bias.
    fn scale_type(&self, name: &str) -> Result<ScaleType> {
        let all_are =
            |float: FloatType| self.scales.iter().chain(&self.biases).all(|v| float.round(*v) == *v);
        if all_are(FloatType::F16) && self.float != FloatType::BF16 {
            return Ok(ScaleType::F16);
        }
        if all_are(FloatType::BF16) {
            return Ok(ScaleType::BF16);
        }
        let problem =
            "has scales or biases that neither f16 nor bf16 holds; export it again without --dtype f32";
        Err(Error::tensor(name, problem))
    }
}

/// The grid that `said`, the default or an override, names.
fn grid(said: &Value) -> Result<MlxGrid, String> {
    if let Some(mode) = said.get("mode").filter(|mode| *mode != "affine") {
        return Err(format!("mode {mode} is not supported; want \"affine\""));
    }
    let size = |key: &str| {
        let found = said.get(key).unwrap_or(&Value::Null);
        let number = found.as_u64().and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| format!("{key} is {found}, want a whole number"))
    };
    MlxGrid::checked(size("bits")?, size("group_size")?)
}

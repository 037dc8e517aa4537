//! MLX: safetensors in Hugging Face's names, each matrix as U32 words of codes, scales and biases, as mlx-lm and mlx-swift
//! load them.
//!
//! MLX's grid is `scale·code + bias` with unsigned codes. A grid of signed codes is contained in it: codes move up by an
//! offset, and the bias is the offset times the scale, negated. Scales, biases and plain floats of a model have one float type.
//!
//! Knows nothing of how a file is read back: that is [`MlxDir`]. Invariant: every scale and bias is exact in its float type.

use std::collections::BTreeMap;
use std::path::Path;

use qat_quant::kernels::FloatType;
use qat_quant::{Format, PackedRef, ScaleType};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::windows::{announced, check_windows};
use super::{Exporter, Options, ReadBack, Source};
use crate::files::{
    Announced, INDEX_FILE, MlxDir, MlxGrid, QUANTIZATION, QUANTIZATION_CONFIG, SHARD, ShardWriter, StagedDir,
    Storage, TensorFiles, float_dtype, with_dtype, write_surroundings,
};
use crate::model::{Config, Family, FileTensor, Param, RopeScaling, Stored, file_tensors};
use crate::{Error, Result};

pub(super) struct Mlx;

impl Exporter for Mlx {
    fn runtime(&self) -> &'static str {
        "MLX: mlx-lm, and mlx-swift's MLXLLM on Macs, iPhones and iPads"
    }

    fn library(&self) -> &'static str {
        "mlx"
    }

    fn usage(&self, name: &str) -> String {
        format!(
            "```sh\npip install mlx-lm\nmlx_lm.generate --model {name} --prompt \"Once upon a time\"\n```\n\nIn Swift, MLXLLM loads the \
             directory as it is.\n"
        )
    }

    fn knows(&self, config: &Config) -> Result<()> {
        match config.family {
            Family::BitNet => Err(Error::Invalid(
                "mlx: mlx-lm reads BitNet models in Hugging Face's packed files and in no others; export to bitnet, which it opens".into(),
            )),
            _ => Ok(()),
        }
    }

    fn check(&self, source: &Source, options: &Options) -> Result<()> {
        source.check_fused()?;
        check_windows("mlx", "mlx-lm", &source.config, options)?;
        float_type(source, options).map(|_| ())
    }

    fn holds(&self, param: &Param, storage: Storage) -> bool {
        match storage {
            Storage::Packed(format) => Lifted::of(format, &param.shape).is_some(),
            Storage::Float(_) => true,
        }
    }

    fn bytes(&self, config: &Config, tensors: &[(Param, Storage)], options: &Options) -> Option<u64> {
        let stored = || tensors.iter().map(|(_, storage)| *storage);
        let float = float_dtype(options.dtype.unwrap_or(preferred(stored())[0]));
        let mut files = Announced::sharded("mlx");
        let storages: BTreeMap<&str, Storage> = tensors.iter().map(|(p, s)| (p.name.as_str(), *s)).collect();
        for FileTensor { param, parts } in &file_tensors(config) {
            let storage = *storages.get(parts[0].name.as_str())?;
            let (Some(lifted), &[rows, cols]) = (Lifted::in_storage(param, storage), &*param.shape) else {
                files.add(&param.name, float, &param.shape);
                continue;
            };
            let MlxGrid { bits, group } = lifted.grid;
            files.add(&param.name, Dtype::U32, &[rows, cols / 32 * bits]);
            for beside in ["scales", "biases"] {
                files.add(&format!("{}.{beside}", param.module()), float, &[rows, cols / group]);
            }
        }
        Some(files.bytes())
    }

    fn write(&self, source: &Source, options: &Options, into: &StagedDir) -> Result<()> {
        let float = float_type(source, options)?;
        let config = config(source, float, options);
        write_surroundings(into, &config, &source.companions()?)?;
        let mut writer = ShardWriter::with(into.path(), "mlx", SHARD);
        for tensor in source.file_tensors() {
            let FileTensor { param, parts } = &tensor;
            match source.storage(&parts[0]) {
                Storage::Packed(format) => write_matrix(&mut writer, source, (&tensor, format), float)?,
                Storage::Float(_) => {
                    writer.add_values(&param.name, float, &param.shape, &source.file_values(&tensor)?)?;
                }
            }
        }
        writer.finish()?;
        write_index(source, into)
    }

    fn read_back<'a>(&self, source: &'a Source, dir: &Path) -> Result<Box<dyn ReadBack + 'a>> {
        Ok(Box::new(Written { dir: MlxDir::open(dir)?, config: &source.config }))
    }
}

/// A grid of ours inside one of MLX's.
#[derive(Debug, Clone, Copy)]
struct Lifted {
    grid: MlxGrid,
    /// What is added to our codes.
    offset: i16,
    /// Consecutive weights that have one scale in our format.
    span: usize,
}

impl Lifted {
    /// How MLX holds a matrix of `shape` in `format`, if it can.
    fn of(format: Format, shape: &[usize]) -> Option<Self> {
        let &[rows, cols] = shape else { return None };
        let largest_group = || [128, 64, 32].into_iter().find(|&group| cols.is_multiple_of(group));
        let (bits, group, offset) = match format {
            Format::Affine(affine) => (affine.bits(), affine.group(), 0),
            Format::Int4G32 => (4, 32, 8),
            Format::Int8G32 => (8, 32, 128),
            Format::TernaryG64 => (2, 64, 1),
            Format::TernaryG256 => (2, 128, 1),
            Format::TernaryTensor => (2, largest_group()?, 1),
        };
        let span = format.group_len().unwrap_or(rows * cols);
        Some(Self { grid: MlxGrid { bits, group }, offset, span })
    }

    fn in_storage(param: &Param, storage: Storage) -> Option<Self> {
        match storage {
            Storage::Packed(format) => Self::of(format, &param.shape),
            Storage::Float(_) => None,
        }
    }

    /// Scale and bias of each group, row-major.
    fn scales(self, matrix: &PackedRef<'_>) -> (Vec<f32>, Vec<f32>) {
        let ours = matrix.scales();
        let groups = matrix.rows() * matrix.cols() / self.grid.group;
        let repeat = |values: &[f32]| {
            (0..groups).map(|i| values[i * self.grid.group / self.span]).collect::<Vec<f32>>()
        };
        let scales = repeat(&ours.scale);
        let biases = match ours.bias.is_empty() {
            true => scales.iter().map(|scale| -f32::from(self.offset) * scale).collect(),
            false => repeat(&ours.bias),
        };
        (scales, biases)
    }

    /// The codes of all rows as little-endian bit streams, a whole number of words each.
    fn words(self, matrix: &PackedRef<'_>) -> Vec<u8> {
        let (cols, bits) = (matrix.cols(), self.grid.bits);
        let mut bytes = vec![0; matrix.rows() * (cols / 8 * bits)];
        let rows = bytes.par_chunks_mut(cols / 8 * bits).enumerate();
        rows.for_each_init(
            || vec![0; cols],
            |codes, (row, out)| {
                matrix.codes_row(row, codes);
                // Eight codes are `bits` whole bytes.
                for (out, codes) in out.chunks_exact_mut(bits).zip(codes.as_chunks::<8>().0) {
                    let word = codes.iter().enumerate().fold(0_u64, |word, (i, code)| {
                        word | u64::from((code + self.offset) as u16) << (i * bits)
                    });
                    out.copy_from_slice(&word.to_le_bytes()[..bits]);
                }
            },
        );
        bytes
    }
}

/// The one float type of the model: what was asked for, else two bytes that hold every scale and bias to the bit.
fn float_type(source: &Source, options: &Options) -> Result<FloatType> {
    if let Some(float) = options.dtype {
        return match inexact(source, float)? {
            None => Ok(float),
            Some(problem) => Err(problem),
        };
    }
    let candidates = preferred(source.stored().map(|(_, storage)| storage));
    let Some(problem) = inexact(source, candidates[0])? else { return Ok(candidates[0]) };
    match inexact(source, candidates[1])? {
        None => Ok(candidates[1]),
        Some(_) => Err(problem),
    }
}

/// The float types of two bytes, first the one that is more likely to hold the scales of matrices that are `stored` so.
fn preferred(mut stored: impl Iterator<Item = Storage>) -> [FloatType; 2] {
    let of_bf16 = |storage| match storage {
        Storage::Packed(Format::Affine(affine)) => affine.scale_type() == ScaleType::BF16,
        _ => false,
    };
    match stored.any(of_bf16) {
        true => [FloatType::BF16, FloatType::F16],
        false => [FloatType::F16, FloatType::BF16],
    }
}

/// The error of the first matrix with a scale or bias that `float` does not hold, if there is one.
fn inexact(source: &Source, float: FloatType) -> Result<Option<Error>> {
    for param in source.params() {
        let tensor = source.tensor(&param)?;
        let Some((matrix, lifted)) = tensor.packed()?.zip(Lifted::in_storage(&param, tensor.storage)) else {
            continue;
        };
        let (scales, biases) = lifted.scales(&matrix);
        if let Some(number) = scales.iter().chain(&biases).find(|v| float.round(**v) != **v) {
            let problem = format!(
                "its scale or bias {number} is no number of {float:?}, and MLX has one float type for a model; export with --dtype f32, \
                 or train all tensors with scales of one type (formats with or without -bf16)"
            );
            return Ok(Some(Error::tensor(&param.name, problem)));
        }
    }
    Ok(None)
}

fn write_matrix(
    writer: &mut ShardWriter,
    source: &Source,
    (FileTensor { param, parts }, format): (&FileTensor, Format),
    float: FloatType,
) -> Result<()> {
    let [rows, cols] = [param.shape[0], param.shape[1]];
    let (mut words, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    let mut grid = None;
    for part in parts {
        let lifted = Lifted::of(format, &part.shape).ok_or_else(|| {
            Error::tensor(&part.name, format!("MLX has no group that divides rows of {cols} weights"))
        })?;
        let tensor = source.tensor(part)?;
        let Some(matrix) = tensor.packed()? else { continue };
        words.extend(lifted.words(&matrix));
        let of_part = lifted.scales(&matrix);
        scales.extend(of_part.0);
        biases.extend(of_part.1);
        grid = Some(lifted.grid);
    }
    let Some(MlxGrid { bits, group }) = grid else { return Ok(()) };
    let module = param.module();
    writer.add(&param.name, Dtype::U32, &[rows, cols / 32 * bits], &words)?;
    writer.add_values(&format!("{module}.scales"), float, &[rows, cols / group], &scales)?;
    writer.add_values(&format!("{module}.biases"), float, &[rows, cols / group], &biases)
}

/// `config.json`: the model's, its float type, and the grid of each module, of which the commonest is the default.
fn config(source: &Source, float: FloatType, options: &Options) -> Value {
    let mut config = with_dtype(&source.config.to_json(), float);
    // mlx-lm turns texts of every length as long ones.
    if let RopeScaling::LongRope { short, original_context, .. } = &source.config.rope_scaling
        && announced(&source.config, options) <= *original_context
    {
        config["rope_scaling"]["long_factor"] = json!(short);
    }
    let matrices: Vec<(Param, Option<MlxGrid>)> = source
        .file_tensors()
        .into_iter()
        .filter(|tensor| tensor.param.shape.len() == 2)
        .map(|FileTensor { param, parts }| {
            let lifted = Lifted::in_storage(&param, source.storage(&parts[0]));
            (param, lifted.map(|lifted| lifted.grid))
        })
        .collect();
    let mut counts = BTreeMap::<MlxGrid, usize>::new();
    for grid in matrices.iter().filter_map(|(_, grid)| *grid) {
        *counts.entry(grid).or_default() += 1;
    }
    let Some((&default, _)) = counts.iter().max_by_key(|(_, count)| **count) else { return config };
    let mut quantization = json!({"group_size": default.group, "bits": default.bits, "mode": "affine"});
    for (param, grid) in matrices.iter().filter(|(_, grid)| *grid != Some(default)) {
        quantization[param.module()] = match grid {
            Some(grid) => json!({"group_size": grid.group, "bits": grid.bits}),
            None => json!(false),
        };
    }
    config[QUANTIZATION] = quantization.clone();
    config[QUANTIZATION_CONFIG] = quantization;
    config
}

/// The index that mlx-lm writes beside one file too.
fn write_index(source: &Source, into: &StagedDir) -> Result<()> {
    let tensors = TensorFiles::open(into.path())?;
    let mut weight_map = BTreeMap::new();
    let mut bytes = 0;
    for name in tensors.names() {
        bytes += tensors.bytes(name)?.len();
        let file = tensors.file_of(name)?.file_name().unwrap_or_default();
        weight_map.insert(name, file.to_string_lossy().into_owned());
    }
    let parameters: usize = source.params().iter().map(|param| param.shape.iter().product::<usize>()).sum();
    let metadata = json!({"total_size": bytes, "total_parameters": parameters});
    let index = json!({"metadata": metadata, "weight_map": weight_map});
    into.write(INDEX_FILE, format!("{index:#}\n").as_bytes())
}

struct Written<'a> {
    dir: MlxDir,
    config: &'a Config,
}

impl Written<'_> {
    fn stored(&self, param: &Param) -> Stored {
        Stored::of(param, self.config, |name| self.dir.tensors.contains(name))
    }
}

impl ReadBack for Written<'_> {
    fn values(&self, param: &Param) -> Result<Vec<f32>> {
        let stored = self.stored(param);
        match self.dir.stored(&stored)? {
            Some(matrix) => Ok(matrix.values()),
            None => self.dir.tensors.stored_f32(&stored),
        }
    }

    fn offset(&self, param: &Param) -> f32 {
        self.stored(param).offset
    }

    fn float(&self, param: &Param) -> Result<FloatType> {
        Ok(self.dir.tensors.stored_float(&self.stored(param))?.0)
    }
}

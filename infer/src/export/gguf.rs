//! A GGUF file for llama.cpp and what is built on it: the trained blocks as they are, with the metadata that llama.cpp reads a model by.
//!
//! | trained in | stored as |
//! |---|---|
//! | int4-g32 | Q4_0 |
//! | int8-g32 | Q8_0 |
//! | ternary-g64 | Q2_0 |
//! | ternary-g256 | TQ2_0, or TQ1_0 if asked for |
//! | ternary-tensor | as ternary-g256 where rows allow it, else as ternary-g64, with the one scale in every block |
//! | float | the smallest of F16, BF16 and F32 that is exact, or the one asked for; norms and biases F32 |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use qat_quant::kernels::FloatType;
use qat_quant::{Format, Scales, pack, tq1_0};

use super::card::{base_name, licence};
use super::windows::check_windows;
use super::{Exporter, Options, ReadBack, Source, SourceTensor};
use crate::files::{StagedDir, Storage, is_licence, store_floats};
use crate::gguf::{
    Announced, GGUF_FILE, Gguf, GgufModel, GgufWriter, Kind, Metadata, Rows, Value, file_bytes, gguf_name,
    hparams, place, vocabulary,
};
use crate::model::{Config, Family, FileTensor, Param, file_tensors};
use crate::{Error, Result};

/// The version of ggml's block layouts.
const QUANTIZATION_VERSION: u32 = 2;

pub(super) struct LlamaCpp;

impl Exporter for LlamaCpp {
    fn runtime(&self) -> &'static str {
        "llama.cpp and the programs built on it (LM Studio, Ollama, …), as GGUF"
    }

    fn library(&self) -> &'static str {
        "gguf"
    }

    fn usage(&self, name: &str) -> String {
        format!(
            "```sh\nllama-cli -m {name}/{GGUF_FILE}\n```\n\nTokenizer, chat template and settings are in the one file. Q2_0 (ternary in groups of \
             64) needs a llama.cpp of 2026; llama.cpp rounds activations to 8 bits on the processor, so that logits differ slightly from \
             one backend to another.\n"
        )
    }

    fn knows(&self, config: &Config) -> Result<()> {
        architecture(config).map(|_| ())
    }

    fn check(&self, source: &Source, options: &Options) -> Result<()> {
        source.check_fused()?;
        check_windows("gguf", "llama.cpp", &source.config, options)?;
        for param in source.params() {
            if source.storage(&param) == Storage::Packed(Format::TernaryTensor) {
                shared_scale(&param, &source.tensor(&param)?)?;
            }
        }
        Ok(())
    }

    fn holds(&self, param: &Param, storage: Storage) -> bool {
        match storage {
            Storage::Packed(Format::Affine(_)) => false,
            Storage::Packed(Format::TernaryTensor) => {
                param.shape.last().is_some_and(|&cols| Format::TernaryG64.fits(cols))
            }
            Storage::Packed(_) | Storage::Float(_) => true,
        }
    }

    fn bytes(&self, config: &Config, tensors: &[(Param, Storage)], options: &Options) -> Option<u64> {
        architecture(config).ok()?;
        let storages: BTreeMap<&str, Storage> = tensors.iter().map(|(p, s)| (p.name.as_str(), *s)).collect();
        let announced = |FileTensor { param, parts }: &FileTensor| {
            let name = gguf_name(&param.name, config.family)?;
            // Of floats whose type is free, values decide.
            let kind = kind_of(param, *storages.get(parts[0].name.as_str())?, options).ok()??;
            Some(Announced { name, shape: shape(param), kind })
        };
        file_bytes(&file_tensors(config).iter().map(announced).collect::<Option<Vec<_>>>()?)
    }

    fn write(&self, source: &Source, options: &Options, into: &StagedDir) -> Result<()> {
        let mut tensors: Vec<(String, FileTensor, Kind)> = Vec::new();
        for tensor in source.file_tensors() {
            let name = gguf_name(&tensor.param.name, source.config.family)
                .ok_or_else(|| Error::tensor(&tensor.param.name, "has no name in llama.cpp"))?;
            let kind = kind(source, &tensor, options)?;
            tensors.push((name, tensor, kind));
        }
        let factors = hparams::rope_tensors(&source.config);
        let of_params =
            tensors.iter().map(|(name, tensor, kind)| (name.as_str(), shape(&tensor.param), *kind));
        let of_factors = factors.iter().map(|(name, factors)| (*name, vec![factors.len()], Kind::F32));
        let announced = of_params.chain(of_factors).map(|(name, shape, kind)| Announced {
            name: name.into(),
            shape,
            kind,
        });
        let mut announced: Vec<Announced> = announced.collect();
        announced.sort_by(|a, b| place(&a.name).cmp(&place(&b.name)));
        let name = into.target().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let of_factors = factors.iter().map(|(_, factors)| factors.len()).sum();
        let metadata = metadata(source, options, &name, &tensors, of_factors)?;
        let mut writer = GgufWriter::create(&into.path().join(GGUF_FILE), &metadata, &announced)?;
        for Announced { name, .. } in &announced {
            if let Some((_, tensor, kind)) = tensors.iter().find(|(theirs, ..)| theirs == name) {
                let mut all = Vec::new();
                for part in &tensor.parts {
                    all.extend(bytes(source, part, *kind)?);
                }
                writer.write(name, &all)?;
            } else if let Some((_, factors)) = factors.iter().find(|(theirs, _)| theirs == name) {
                writer.write(name, &floats(name, FloatType::F32, factors)?)?;
            }
        }
        writer.finish()?;
        for file in source.companions()?.iter().filter(|file| is_licence(file)) {
            into.copy(file)?;
        }
        Ok(())
    }

    fn read_back<'a>(&self, source: &'a Source, dir: &Path) -> Result<Box<dyn ReadBack + 'a>> {
        let file = Gguf::open(&dir.join(GGUF_FILE))?;
        Ok(Box::new(Written(GgufModel::of(file, source.config.clone())?)))
    }
}

struct Written(GgufModel);

impl ReadBack for Written {
    fn values(&self, param: &Param) -> Result<Vec<f32>> {
        self.0.values(param)
    }

    fn float(&self, param: &Param) -> Result<FloatType> {
        Ok(self.0.kind(param)?.float().unwrap_or(FloatType::F32))
    }
}

/// llama.cpp's name of the model's architecture.
fn architecture(config: &Config) -> Result<&'static str> {
    let theirs = match config.family {
        Family::Gemma3 => {
            hparams::query_scalar([config.hidden_size, config.heads, config.head_dim, config.layers])
        }
        _ => config.query_scalar,
    };
    if theirs != config.query_scalar {
        let problem = format!(
            "gguf: llama.cpp divides the scores of such a Gemma 3 by the root of {theirs}, and query_pre_attn_scalar is {}; mlx and hf \
             take it",
            config.query_scalar
        );
        return Err(Error::Invalid(problem));
    }
    if config.family == Family::Phi3 && config.q_size() != config.hidden_size {
        let problem = format!(
            "gguf: llama.cpp wants the heads of a Phi-3 to be hidden_size = {} wide together, they are {}; hf takes them",
            config.hidden_size,
            config.q_size()
        );
        return Err(Error::Invalid(problem));
    }
    hparams::architecture(config.family).ok_or_else(|| {
        let problem = format!(
            "gguf: llama.cpp has no architecture for {:?} (its own \"bitnet\" has SiLU where this has ReLU²); bitnet, onnx and hf \
             have one",
            config.family.model_type()
        );
        Error::Invalid(problem)
    })
}

/// The shape of `param` in the file, where convolutions are matrices.
fn shape(param: &Param) -> Vec<usize> {
    match *param.shape.as_slice() {
        [channels, 1, taps] => vec![channels, taps],
        _ => param.shape.clone(),
    }
}

/// How a tensor of the file will be stored.
fn kind(source: &Source, FileTensor { param, parts }: &FileTensor, options: &Options) -> Result<Kind> {
    if let Some(kind) = kind_of(param, source.storage(&parts[0]), options)? {
        return Ok(kind);
    }
    let mut values = Vec::new();
    for part in parts {
        values.extend(source.tensor(part)?.values()?);
    }
    Ok(smallest_exact(&values).into())
}

/// How `param` will be stored that is in `storage`; none where its values decide.
fn kind_of(param: &Param, storage: Storage, options: &Options) -> Result<Option<Kind>> {
    let wide = if options.tq1 { Kind::TQ1_0 } else { Kind::TQ2_0 };
    Ok(Some(match storage {
        Storage::Packed(Format::Int4G32) => Kind::Q4_0,
        Storage::Packed(Format::Int8G32) => Kind::Q8_0,
        Storage::Packed(Format::TernaryG64) => Kind::Q2_0,
        Storage::Packed(Format::TernaryG256) => wide,
        Storage::Packed(Format::TernaryTensor) => {
            let fits = param.shape.last().is_some_and(|&cols| Format::TernaryG256.fits(cols));
            if fits { wide } else { Kind::Q2_0 }
        }
        Storage::Packed(format @ Format::Affine(_)) => {
            return Err(Error::tensor(&param.name, format!("GGUF has no {format}")));
        }
        Storage::Float(_) if param.shape.len() != 2 => Kind::F32,
        Storage::Float(_) => return Ok(options.dtype.map(Kind::from)),
    }))
}

/// The smallest float type, F16 before BF16, that holds every one of `values`.
fn smallest_exact(values: &[f32]) -> FloatType {
    let exact = |round: fn(f32) -> f32| values.iter().all(|&value| round(value) == value);
    if exact(|value| f16::from_f32(value).to_f32()) {
        FloatType::F16
    } else if exact(|value| bf16::from_f32(value).to_f32()) {
        FloatType::BF16
    } else {
        FloatType::F32
    }
}

/// The scale of a `ternary-tensor` matrix, which the blocks hold as f16.
fn shared_scale(param: &Param, tensor: &SourceTensor) -> Result<f32> {
    let scale = tensor.packed()?.and_then(|packed| packed.tensor_scale()).unwrap_or(0.0);
    if f16::from_f32(scale).to_f32() == scale {
        return Ok(scale);
    }
    let problem = format!(
        "its scale {scale} is no f16 number, which the ternary blocks of GGUF have; train it as ternary-g64 or ternary-g256"
    );
    Err(Error::tensor(&param.name, problem))
}

/// The bytes of `param` in the file.
fn bytes(source: &Source, param: &Param, kind: Kind) -> Result<Vec<u8>> {
    let tensor = source.tensor(param)?;
    let rows = Rows::of(&param.name, &source.config);
    let cols = if param.shape.len() == 2 { param.shape[1] } else { 1 };
    let Some(packed) = tensor.packed()? else {
        let values = rows.in_file_order(&tensor.values()?, cols);
        return floats(&param.name, kind.float().unwrap_or(FloatType::F32), &values);
    };
    let ours = match kind {
        Kind::TQ1_0 => Format::TernaryG256,
        _ => kind.format().unwrap_or(packed.format()),
    };
    let blocks = if packed.format() == Format::TernaryTensor {
        let scale = vec![shared_scale(param, &tensor)?; ours.groups(packed.rows(), cols)];
        pack(&param.name, ours, &packed.decode(), packed.rows(), cols, &Scales { scale, bias: Vec::new() })?
            .blocks
    } else {
        packed.blocks().to_vec()
    };
    let blocks = if rows.plain() { blocks } else { rows.in_file_order(&blocks, ours.row_bytes(cols)) };
    if kind != Kind::TQ1_0 {
        return Ok(blocks);
    }
    let narrow = blocks.as_chunks::<{ tq1_0::TQ2_0_BYTES }>().0.iter().map(tq1_0::from_tq2_0);
    // Codes were checked when the tensor was read.
    let narrow: Option<Vec<_>> = narrow.collect();
    narrow
        .map(|blocks| blocks.concat())
        .ok_or_else(|| Error::tensor(&param.name, "has a code that is not ternary"))
}

fn floats(name: &str, float: FloatType, values: &[f32]) -> Result<Vec<u8>> {
    store_floats(float, values).map_err(|problem| Error::tensor(name, problem))
}

/// What llama.cpp reads the model by, in the order of its converter.
fn metadata(
    source: &Source,
    options: &Options,
    name: &str,
    tensors: &[(String, FileTensor, Kind)],
    of_factors: usize,
) -> Result<Metadata> {
    let config = &source.config;
    let mut metadata = Metadata::new(Path::new(GGUF_FILE));
    let elements = |tensor: &FileTensor| tensor.param.shape.iter().product::<usize>();
    let weights = tensors.iter().map(|(_, tensor, _)| elements(tensor)).sum::<usize>() + of_factors;
    let architecture = architecture(config)?;
    metadata.set("general.architecture", Value::from(architecture));
    metadata.set("general.type", Value::from("model"));
    let base = base_name(&source.dir.manifest.source);
    // A run's exports lie in directories that are called after their formats.
    let of_base = base.as_deref().and_then(|base| Path::new(base).file_name());
    metadata.set(
        "general.name",
        Value::String(of_base.map_or_else(|| name.to_owned(), |base| base.to_string_lossy().into_owned())),
    );
    if let Some(base) = base {
        metadata.set("general.base_model.count", Value::U32(1));
        metadata.set("general.base_model.0.name", Value::String(base));
    }
    metadata.set("general.size_label", Value::String(size_label(weights)));
    if let Some(licence) = licence(&source.dir.manifest.source) {
        metadata.set("general.license", Value::String(licence));
    }
    hparams::write(
        config,
        architecture,
        options.context.unwrap_or(config.max_position_embeddings),
        &mut metadata,
    );
    let companions: Vec<PathBuf> = source.companions()?;
    vocabulary::write(&vocabulary::Files::read(&companions)?, config, &mut metadata)?;
    metadata.set("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    metadata.set("general.file_type", Value::U32(mostly(tensors).file_type()));
    Ok(metadata)
}

/// The type of most weights of the layers.
fn mostly(tensors: &[(String, FileTensor, Kind)]) -> Kind {
    let weights = |kind: Kind| -> usize {
        let of_kind = tensors.iter().filter(|(name, FileTensor { param, .. }, found)| {
            *found == kind && param.shape.len() == 2 && name.starts_with("blk.")
        });
        of_kind.map(|(_, FileTensor { param, .. }, _)| param.shape.iter().product::<usize>()).sum()
    };
    Kind::ALL.into_iter().max_by_key(|kind| weights(*kind)).unwrap_or(Kind::F32)
}

/// A count of weights as llama.cpp writes it: two digits at least, then K, M, B or T.
fn size_label(weights: usize) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")];
    let of = weights as f64;
    let (unit, suffix) = units.into_iter().find(|(unit, _)| of > *unit).unwrap_or((1e3, "K"));
    let scaled = of / unit;
    let digits = if scaled.round_ties_even() == 0.0 { 0 } else { format!("{scaled:.0}").len() };
    format!("{scaled:.*}{suffix}", 2_usize.saturating_sub(digits))
}

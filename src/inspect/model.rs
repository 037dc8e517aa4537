//! What a model directory is: its shape, where its parameters are and what they weigh, its tokenizer, and whether its bytes
//! are those that were written.
//!
//! Runs nothing. Invariant: every tensor that the config asks for was read and checked before anything is said.

use std::{collections::BTreeSet, path::Path};

use anyhow::Context as _;
use comfy_table::Table;
use qat_infer::{
    files::{self, Activations, BitNetDir, HfDir, PackedDir, Storage, load_tokenizer, tokenizer_sha256},
    gguf::{self, GgufModel},
    model::{self, Config, Param, Role, Stored, params},
};
use qat_quant::kernels::FloatType;
use serde::Serialize;
use serde_json::Value;

use crate::table;

/// A model directory.
#[derive(Debug, Serialize)]
pub struct Inspected {
    model: String,
    /// "packed" (one with a manifest), "float" (as Hugging Face lays it out), "BitNet" (with layers of transformers') or "GGUF".
    layout: &'static str,
    config: Value,
    parameters: u64,
    parts: Vec<Part>,
    bits_per_weight: f64,
    tensor_bytes: u64,
    tokenizer: Option<Tokenizer>,
    /// Files and tensors whose checksums agree with the manifest; none without one.
    checksums: Option<usize>,
    /// Where a packed model came from, in the words of its writer.
    source: Option<Value>,
}

/// Tensors with the same task.
#[derive(Debug, Serialize)]
struct Part {
    part: &'static str,
    tensors: usize,
    parameters: u64,
    formats: BTreeSet<String>,
    bits_per_weight: f64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Tokenizer {
    tokens: usize,
    sha256: String,
}

/// A tensor as it is stored.
struct Tensor {
    param: Param,
    /// How its elements are stored.
    stored: String,
    activations: Activations,
    bytes: u64,
}

impl Inspected {
    /// Reads and checks the model in `dir`.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let Found { config, tensors, tokenizer, layout, packed } =
            match (PackedDir::is_at(dir), gguf::at(dir)) {
                (true, _) => open_packed(dir)?,
                (false, Some(file)) => open_gguf(&file)?,
                (false, None) if BitNetDir::is_at(dir) => open_bitnet(dir)?,
                (false, None) => open_float(dir)?,
            };
        let parts = parts(&config, &tensors);
        let parameters = parts.iter().map(|part| part.parameters).sum();
        let tensor_bytes = parts.iter().map(|part| part.bytes).sum();
        let about = |tokenizer: files::Tokenizer| -> anyhow::Result<Tokenizer> {
            let tokens = tokenizer.get_vocab_size(true);
            Ok(Tokenizer { tokens, sha256: tokenizer_sha256(&tokenizer)? })
        };
        let tokenizer = tokenizer.map(about).transpose()?;
        Ok(Self {
            model: dir.display().to_string(),
            layout,
            config: config.to_json(),
            parameters,
            parts,
            bits_per_weight: 8.0 * tensor_bytes as f64 / parameters as f64,
            tensor_bytes,
            tokenizer,
            checksums: packed.as_ref().map(|(checked, _)| *checked),
            source: packed.map(|(_, source)| source).filter(|source| !source.is_null()),
        })
    }

    /// For people.
    pub fn tables(&self) -> [Table; 2] {
        let mut about = table::lines();
        let key = |key: &str| self.config[key].to_string().trim_matches('"').to_owned();
        let mut row = |name: &str, value: String| {
            about.add_row([name.to_owned(), value]);
        };
        row("model", format!("{} ({}, {})", self.model, key("model_type"), self.layout));
        row(
            "shape",
            format!(
                "{} layers of {} with {} inside, {} query and {} key/value heads of {}",
                key("num_hidden_layers"),
                key("hidden_size"),
                key("intermediate_size"),
                key("num_attention_heads"),
                key("num_key_value_heads"),
                key("head_dim")
            ),
        );
        row("vocabulary", format!("{} tokens, {}", key("vocab_size"), self.tokenizer_words()));
        row("context", format!("{} tokens", key("max_position_embeddings")));
        row("parameters", table::count(self.parameters));
        row("bits per weight", format!("{:.4}", self.bits_per_weight));
        row("tensors", table::bytes(self.tensor_bytes));
        row(
            "checked",
            match self.checksums {
                Some(count) => format!(
                    "checksums of {count} tensors and files agree with the manifest; codes and scales are legal"
                ),
                None => format!("every value is finite (a {} model has no checksums)", self.layout),
            },
        );
        if let Some(source) = &self.source {
            row("made from", source.to_string());
        }
        [about, self.part_table()]
    }

    fn tokenizer_words(&self) -> String {
        match &self.tokenizer {
            Some(Tokenizer { tokens, sha256 }) => {
                format!("tokenizer of {tokens}, SHA-256 {}…", &sha256[..sha256.len().min(12)])
            }
            None => "no tokenizer: it reads ids only".to_owned(),
        }
    }

    fn part_table(&self) -> Table {
        let mut found = table::with_header(
            &["part", "tensors", "parameters", "stored as", "bits/weight", "bytes"],
            &[0, 3],
        );
        for part in &self.parts {
            let formats: Vec<&str> = part.formats.iter().map(String::as_str).collect();
            found.add_row([
                part.part.to_owned(),
                part.tensors.to_string(),
                table::count(part.parameters),
                formats.join(", "),
                format!("{:.4}", part.bits_per_weight),
                table::bytes(part.bytes),
            ]);
        }
        found
    }
}

/// What a model was found to be.
struct Found {
    config: Config,
    tensors: Vec<Tensor>,
    tokenizer: Option<files::Tokenizer>,
    layout: &'static str,
    /// Of a packed one: how many checksums agree, and its source.
    packed: Option<(usize, Value)>,
}

/// The tokenizer at `path`, if there is one.
fn tokenizer_at(path: &Path, vocab_size: usize) -> anyhow::Result<Option<files::Tokenizer>> {
    Ok(path.exists().then(|| load_tokenizer(path, vocab_size)).transpose()?)
}

fn open_packed(dir: &Path) -> anyhow::Result<Found> {
    let packed = PackedDir::open(dir)?;
    packed.verify()?;
    let config = Config::from_json(&packed.config, &packed.config_path())?;
    let tensor = |param: Param| -> anyhow::Result<Tensor> {
        let Stored { name, .. } = Stored::of(&param, &config, |name| packed.contains(name));
        let entry = packed.manifest.tensors.get(&name);
        let entry = entry.with_context(|| format!("{name}: missing from {}", packed.path.display()))?;
        let (storage, activations) = (entry.storage, entry.activations);
        Ok(Tensor { stored: stored_as(storage), activations, bytes: entry.stored_bytes() as u64, param })
    };
    let tensors = params(&config).into_iter().map(tensor).collect::<anyhow::Result<_>>()?;
    let checked = packed.manifest.tensors.len() + packed.manifest.files.len();
    let tokenizer = tokenizer_at(&packed.tokenizer(), config.vocab_size)?;
    Ok(Found {
        config,
        tensors,
        tokenizer,
        layout: "packed",
        packed: Some((checked, packed.manifest.source)),
    })
}

fn open_float(dir: &Path) -> anyhow::Result<Found> {
    let float = HfDir::open(dir)?;
    let config = Config::from_json(&float.config, &float.config_path())?;
    let tensor = |param: Param| -> anyhow::Result<Tensor> {
        let stored = Stored::of(&param, &config, |name| float.tensors.contains(name));
        let (dtype, bytes) = float.tensors.stored_float(&stored)?;
        let bytes = bytes.len() as u64;
        Ok(Tensor { stored: stored_as(Storage::Float(dtype)), activations: Activations::Float, bytes, param })
    };
    let tensors = params(&config).into_iter().map(tensor).collect::<anyhow::Result<_>>()?;
    let tokenizer = tokenizer_at(&float.tokenizer(), config.vocab_size)?;
    Ok(Found { config, tensors, tokenizer, layout: "float", packed: None })
}

fn open_bitnet(dir: &Path) -> anyhow::Result<Found> {
    let bitnet = BitNetDir::open(dir)?;
    let config = Config::from_json(&bitnet.config, &bitnet.config_path())?;
    let tensor = |param: Param| -> anyhow::Result<Tensor> {
        if let (Role::Projection, &[rows, cols]) = (param.role, &*param.shape)
            && let Some(matrix) = bitnet.matrix(&param.name, [rows, cols])?
        {
            let (storage, activations) = (matrix.stored.storage, matrix.stored.activations);
            let rounded = if bitnet.is_online() { ", of floats" } else { "" };
            let stored = format!("{}{rounded}", stored_as(storage));
            return Ok(Tensor { stored, activations, bytes: matrix.file_bytes as u64, param });
        }
        let stored = Stored::of(&param, &config, |name| bitnet.tensors.contains(name));
        let (dtype, bytes) = bitnet.tensors.stored_float(&stored)?;
        let (stored, bytes) = (stored_as(Storage::Float(dtype)), bytes.len() as u64);
        Ok(Tensor { stored, activations: Activations::Float, bytes, param })
    };
    let tensors = params(&config).into_iter().map(tensor).collect::<anyhow::Result<_>>()?;
    let tokenizer = tokenizer_at(&bitnet.tokenizer(), config.vocab_size)?;
    Ok(Found { config, tensors, tokenizer, layout: "BitNet", packed: None })
}

fn open_gguf(file: &Path) -> anyhow::Result<Found> {
    let model = GgufModel::open(file)?;
    let tensor = |param: Param| -> anyhow::Result<Tensor> {
        // Every value is looked at.
        model.values(&param)?;
        let (kind, bytes) = (model.kind(&param)?, model.bytes(&param)? as u64);
        Ok(Tensor { stored: kind.name().to_owned(), activations: Activations::Float, bytes, param })
    };
    let tensors = params(&model.config).into_iter().map(tensor).collect::<anyhow::Result<_>>()?;
    let tokenizer = model.has_tokenizer().then(|| model.tokenizer()).transpose()?;
    Ok(Found { config: model.config, tensors, tokenizer, layout: "GGUF", packed: None })
}

/// The parts of a model that have tensors.
fn parts(config: &Config, tensors: &[Tensor]) -> Vec<Part> {
    let embedding = if config.tie_word_embeddings { "embedding and head" } else { "embedding" };
    let part_of = |Param { name, role, .. }: &Param| match role {
        Role::Embedding => embedding,
        Role::Head => "head",
        Role::Conv => "convolutions",
        Role::Projection => match model::Part::of(name) {
            Some((_, model::Part::Q | model::Part::K | model::Part::V | model::Part::O)) => "attention",
            Some((_, model::Part::ConvIn | model::Part::ConvOut)) => "convolutions",
            _ => "MLP",
        },
        Role::Norm => "norms",
        Role::Bias => "biases",
    };
    let all = [embedding, "attention", "convolutions", "MLP", "head", "norms", "biases"];
    let of_part = |part: &'static str| {
        let mut found = Part {
            part,
            tensors: 0,
            parameters: 0,
            formats: BTreeSet::new(),
            bits_per_weight: 0.0,
            bytes: 0,
        };
        for tensor in tensors.iter().filter(|tensor| part_of(&tensor.param) == part) {
            found.tensors += 1;
            found.parameters += tensor.param.shape.iter().product::<usize>() as u64;
            found.bytes += tensor.bytes;
            found.formats.insert(tensor.stored_as());
        }
        found.bits_per_weight = 8.0 * found.bytes as f64 / found.parameters as f64;
        found
    };
    all.into_iter().map(of_part).filter(|part| part.tensors > 0).collect()
}

impl Tensor {
    fn stored_as(&self) -> String {
        match self.activations {
            Activations::Float => self.stored.clone(),
            Activations::Int8Token => format!("{} with int8 inputs", self.stored),
        }
    }
}

fn stored_as(storage: Storage) -> String {
    match storage {
        Storage::Packed(format) => format.to_string(),
        Storage::Float(FloatType::F32) => "f32".to_owned(),
        Storage::Float(FloatType::F16) => "f16".to_owned(),
        Storage::Float(FloatType::BF16) => "bf16".to_owned(),
    }
}

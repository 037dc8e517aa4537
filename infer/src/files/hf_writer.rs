//! Writes a float model as Hugging Face lays it out: for teachers that were trained here, and for other tools.
//!
//! Knows no architecture. Invariant: the directory appears whole, read back, or not at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qat_quant::kernels::FloatType;
use serde_json::{Value, json};

use super::digest::sha256_hex;
use super::hf::HfDir;
use super::mapped::Mapped;
use super::packed_writer::write_surroundings;
use super::shard_writer::ShardWriter;
use super::staged::StagedDir;
use super::tensors::read_json;
use crate::error::{Error, Result};
use crate::model::{Config, Param, Stored};

/// Name of the file that tells where a float model came from, and that qat wrote it.
pub const PROVENANCE_FILE: &str = "qat.json";

/// A float model in the making. Dropping it without [`HfWriter::finish`] leaves nothing behind.
#[derive(Debug)]
pub struct HfWriter {
    tensors: ShardWriter,
    float: FloatType,
    source: Value,
    staged: StagedDir,
    /// The first rows of a tensor that several of a model's are.
    begun: Vec<f32>,
}

impl HfWriter {
    /// Begins the model `target`, all of whose tensors are stored as `float`, with `config` as its `config.json`
    /// (its `torch_dtype` or `dtype` is set to `float`) and copies of `companions`. Without a tokenizer among them the
    /// model reads token ids, but no text. `source` is told in `qat.json`,
    /// with the SHA-256 of every file.
    ///
    /// # Errors
    /// When `target` is not ours to replace or can't be written, or a companion can't be read.
    pub fn create(
        target: &Path,
        config: &Value,
        companions: &[PathBuf],
        float: FloatType,
        source: &Value,
    ) -> Result<Self> {
        let staged = StagedDir::create(target, PROVENANCE_FILE)?;
        write_surroundings(&staged, &with_dtype(config, float), companions)?;
        let tensors = ShardWriter::create(staged.path());
        Ok(Self { tensors, float, source: source.clone(), staged, begun: Vec::new() })
    }

    /// Adds the tensor `name`, rounded to nearest even.
    ///
    /// # Errors
    /// When the name was used, a value is not finite or beyond the range of the float type, or the disk is full.
    pub fn add(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
        self.tensors.add_values(name, self.float, shape, values)
    }

    /// Adds `param` of a model of this shape as its file has it. Those that are rows of one tensor come one after the other, as in
    /// [`params`](crate::model::params).
    ///
    /// # Errors
    /// As [`add`](Self::add), and when rows are left out.
    pub fn add_param(&mut self, config: &Config, param: &Param, values: &[f32]) -> Result<()> {
        let stored = Stored::of(param, config, |_| false);
        if stored.is_whole() && stored.offset == 0.0 {
            return self.add(&stored.name, &stored.shape, values);
        }
        let row = stored.shape.iter().skip(1).product();
        if stored.range(row).start != self.begun.len() {
            return Err(Error::tensor(&param.name, "comes before the rows that precede it in the file"));
        }
        self.begun.extend(values.iter().map(|value| value - stored.offset));
        if stored.rows.end < stored.shape[0] {
            return Ok(());
        }
        let all = std::mem::take(&mut self.begun);
        self.add(&stored.name, &stored.shape, &all)
    }

    /// Reads everything back and puts the directory in the target's place.
    ///
    /// # Errors
    /// When the disk is full, or what it gives back differs; the target then is as it was.
    pub fn finish(self) -> Result<()> {
        self.tensors.finish()?;
        HfDir::open(self.staged.path())?;
        let files: BTreeMap<_, _> =
            self.staged.files()?.into_iter().map(|(name, (_, sha256))| (name, sha256)).collect();
        let provenance = json!({"qat": 1, "source": self.source, "sha256": files});
        self.staged.write(PROVENANCE_FILE, format!("{provenance:#}\n").as_bytes())?;
        self.staged.commit()
    }
}

/// Checks that the files of `dir` whose names are `wanted` are those that [`HfWriter`] wrote there.
///
/// # Errors
/// Names the file that is missing or has another content.
pub fn check_written(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let told = dir.join(PROVENANCE_FILE);
    let provenance: Value = read_json(&told)?;
    let Some(files) = provenance["sha256"].as_object() else {
        return Err(Error::file(&told, "does not say which files belong to it"));
    };
    for (name, sum) in files.iter().filter(|(name, _)| wanted(name)) {
        let file = dir.join(name);
        let found = sha256_hex(&[&Mapped::open(&file)?]);
        if Some(found.as_str()) != sum.as_str() {
            let problem =
                format!("its SHA-256 is {found}, {PROVENANCE_FILE} says {sum}: the file is damaged");
            return Err(Error::file(&file, problem));
        }
    }
    Ok(())
}

/// `config` with the float type under the key that it uses: `dtype` since transformers 5, `torch_dtype` before.
pub(crate) fn with_dtype(config: &Value, float: FloatType) -> Value {
    let name = match float {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::BF16 => "bfloat16",
    };
    let mut config = config.clone();
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    if let Some(object) = config.as_object_mut() {
        object.insert(key.to_owned(), name.into());
    }
    config
}

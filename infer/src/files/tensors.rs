//! The tensors of a directory: `model.safetensors`, or shards and `model.safetensors.index.json`.
//!
//! Knows no model: names and shapes are what the caller asks for. Invariant: every name belongs to exactly
//! one range of one mapped file; values are checked when they are handed out, not before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use qat_quant::kernels::FloatType;
use serde::Deserialize;

use super::float::{self, float_type};
use super::header::{Entry, Header, TensorInfo};
use super::mapped::{Bytes, Mapped};
use crate::error::{Error, Result};
use crate::model::Stored;

/// Name of the file when there is one.
pub const MODEL_FILE: &str = "model.safetensors";
/// Name of the list of shards when there are several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Tensors of one or several safetensors files, by name.
#[derive(Debug)]
pub struct TensorFiles {
    /// What the tensors were opened from, for messages: the directory, or the one file.
    origin: PathBuf,
    files: Vec<(PathBuf, Mapped)>,
    tensors: BTreeMap<String, Located>,
}

#[derive(Debug)]
struct Located {
    file: usize,
    entry: Entry,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl TensorFiles {
    /// Opens `model.safetensors` in `dir`, or the shards that `model.safetensors.index.json` lists. When
    /// both are there the single file counts, as it does for transformers.
    ///
    /// # Errors
    /// A file that is missing, truncated or lies about itself; an index that names a file outside `dir`, or a
    /// tensor that is not in the shard it names; a name that two shards hold.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join(MODEL_FILE);
        let index = dir.join(INDEX_FILE);
        if single.is_file() || !index.is_file() {
            return Self::open_file(&single);
        }
        let Index { weight_map } = read_json(&index)?;
        let names: BTreeSet<&String> = weight_map.values().collect();
        let mut all = Self::empty(dir);
        for name in names {
            let path = dir.join(name);
            if Path::new(name).file_name() != Some(name.as_ref()) {
                let problem =
                    format!("names the shard {name:?}; want a plain file name in the same directory");
                return Err(Error::file(&index, problem));
            }
            if !path.is_file() {
                let problem = format!("lists {name}, which is missing; copy or download that file");
                return Err(Error::file(&index, problem));
            }
            all.add(path)?;
        }
        all.check_index(&index, &weight_map)?;
        Ok(all)
    }

    /// Opens one safetensors file, whatever its name.
    ///
    /// # Errors
    /// When the file is missing, truncated or lies about itself.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut all = Self::empty(path);
        all.add(path.to_owned())?;
        Ok(all)
    }

    /// What the tensors were opened from: a directory of shards, or one file.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor of this name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Element type and shape of `name`.
    ///
    /// # Errors
    /// When no tensor has that name.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        Ok(&self.located(name)?.entry.info)
    }

    /// The file that holds `name`.
    ///
    /// # Errors
    /// When no tensor has that name.
    pub fn file_of(&self, name: &str) -> Result<&Path> {
        Ok(&self.files[self.located(name)?.file].0)
    }

    /// Lets go of the memory that the files take once they have been read. They stay readable.
    pub fn release(&self) {
        self.files.iter().filter_map(|(_, map)| map.slice(0..map.len())).for_each(|all| all.release());
    }

    /// The bytes of `name`, little-endian and row-major, without a copy.
    ///
    /// # Errors
    /// When no tensor has that name.
    pub fn bytes(&self, name: &str) -> Result<Bytes> {
        let Located { file, entry } = self.located(name)?;
        let (path, map) = &self.files[*file];
        map.slice(entry.range.clone())
            .ok_or_else(|| Error::file(path, format!("{name}: lies outside the file; copy it again")))
    }

    /// The values of `name` as f32, row-major, from F32, F16 or BF16.
    ///
    /// # Errors
    /// When no tensor has that name, its shape is not `shape`, its type is none of the three, or a value is
    /// NaN or infinite.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (float, bytes) = self.unchecked_float(name, shape)?;
        float::load(float, &bytes).map_err(|problem| self.problem(name, problem))
    }

    /// The float type and the bytes of `name`, without a copy.
    ///
    /// # Errors
    /// As [`f32`](Self::f32).
    pub fn float(&self, name: &str, shape: &[usize]) -> Result<(FloatType, Bytes)> {
        let (float, bytes) = self.unchecked_float(name, shape)?;
        float::check_finite(float, &bytes).map_err(|problem| self.problem(name, problem))?;
        Ok((float, bytes))
    }

    /// Float type and bytes of some rows of a tensor, without a copy; what is to be added to them is not.
    ///
    /// # Errors
    /// As [`f32`](Self::f32).
    pub fn stored_float(&self, stored: &Stored) -> Result<(FloatType, Bytes)> {
        let (float, bytes) = self.unchecked_stored(stored)?;
        float::check_finite(float, &bytes).map_err(|problem| self.problem(&stored.name, problem))?;
        Ok((float, bytes))
    }

    /// The values of some rows of a tensor, with what is to be added to them.
    ///
    /// # Errors
    /// As [`f32`](Self::f32).
    pub fn stored_f32(&self, stored: &Stored) -> Result<Vec<f32>> {
        let (float, bytes) = self.unchecked_stored(stored)?;
        let mut values = float::load(float, &bytes).map_err(|problem| self.problem(&stored.name, problem))?;
        if stored.offset != 0.0 {
            values.iter_mut().for_each(|value| *value += stored.offset);
        }
        Ok(values)
    }

    fn unchecked_stored(&self, stored: &Stored) -> Result<(FloatType, Bytes)> {
        let (float, bytes) = self.unchecked_float(&stored.name, &stored.shape)?;
        let row = stored.shape.iter().skip(1).product::<usize>() * float.bytes();
        let rows = bytes.slice(stored.range(row));
        Ok((float, rows.ok_or_else(|| self.problem(&stored.name, "has too few rows"))?))
    }

    /// [`float`](Self::float) without a look at the values.
    fn unchecked_float(&self, name: &str, shape: &[usize]) -> Result<(FloatType, Bytes)> {
        self.check_shape(name, shape)?;
        let found = self.info(name)?.dtype;
        let Some(float) = float_type(found) else {
            let fix = "convert the model to float weights, or choose its unquantized version";
            return Err(self.problem(name, format!("want F32, F16 or BF16, found {found}; {fix}")));
        };
        Ok((float, self.bytes(name)?))
    }

    /// Refuses `name` unless its shape is `shape`.
    ///
    /// # Errors
    /// "want \[..\], found \[..\]", or no tensor has that name.
    pub fn check_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        let found = &self.info(name)?.shape;
        if found == shape {
            return Ok(());
        }
        Err(self.problem(name, format!("want {shape:?}, found {found:?}; does config.json belong to it?")))
    }

    /// An error about the tensor `name` that also says which file it is in.
    pub(super) fn problem(&self, name: &str, problem: impl std::fmt::Display) -> Error {
        let path = self.file_of(name).unwrap_or(&self.origin);
        Error::tensor(name, format!("{problem} (in {})", path.display()))
    }

    fn empty(origin: &Path) -> Self {
        Self { origin: origin.to_owned(), files: Vec::new(), tensors: BTreeMap::new() }
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let map = Mapped::open(&path)?;
        let file = self.files.len();
        for (name, entry) in Header::parse(&path, &map)?.0 {
            if let Some(first) = self.tensors.get(&name) {
                let first = self.files[first.file].0.display();
                return Err(Error::file(&path, format!("{name}: is also in {first}; remove one of the two")));
            }
            self.tensors.insert(name, Located { file, entry });
        }
        self.files.push((path, map));
        Ok(())
    }

    fn check_index(&self, index: &Path, weight_map: &BTreeMap<String, String>) -> Result<()> {
        for (name, shard) in weight_map {
            let found = self.tensors.get(name).map(|t| &self.files[t.file].0);
            let problem = match found.and_then(|p| p.file_name()) {
                Some(file) if file == shard.as_str() => continue,
                Some(file) => format!("is in {} instead", file.display()),
                None => "is in none of the shards".to_owned(),
            };
            let problem =
                format!("{name}: listed in {shard}, {problem}; copy index and shards from one source");
            return Err(Error::file(index, problem));
        }
        Ok(())
    }

    fn located(&self, name: &str) -> Result<&Located> {
        self.tensors.get(name).ok_or_else(|| {
            let problem = format!(
                "missing from {}, which holds {} tensors; is it complete, and does config.json belong to it?",
                self.origin.display(),
                self.tensors.len()
            );
            Error::tensor(name, problem)
        })
    }
}

/// Reads a JSON file.
///
/// # Errors
/// When the file can't be read or is not the JSON that is wanted.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, format!("not the JSON that is wanted: {e}")))
}

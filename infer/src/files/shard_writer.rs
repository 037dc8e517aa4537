//! Safetensors in one file, or in shards with an index where one file would be too large to pass around.
//!
//! Knows no model. Invariant: what is finished was read back from the disk; readers of shards and of single files both find
//! every tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qat_quant::kernels::FloatType;
use safetensors::Dtype;
use serde_json::json;

use super::staged::write_error;
use super::tensor_writer::TensorWriter;
use super::tensors::{INDEX_FILE, MODEL_FILE};
use crate::error::Result;

/// Bytes of tensors after which a new shard begins, as transformers has it.
pub(crate) const SHARD: usize = 5_000_000_000;

/// Tensors on their way into a directory.
#[derive(Debug)]
pub struct ShardWriter {
    dir: PathBuf,
    limit: usize,
    /// Name of the library whose layout the files say they have.
    library: &'static str,
    shards: Vec<TensorWriter>,
    /// Bytes in the last of them.
    filled: usize,
    total: usize,
    weight_map: BTreeMap<String, usize>,
}

impl ShardWriter {
    /// Tensors that will be in `dir`, in shards of at most 5 GB (a larger tensor has one of its own).
    pub fn create(dir: &Path) -> Self {
        Self::with(dir, "pt", SHARD)
    }

    /// The same under other metadata (`{"format": library}`), in shards of at most `limit` bytes.
    pub(crate) fn with(dir: &Path, library: &'static str, limit: usize) -> Self {
        let (shards, weight_map) = (Vec::new(), BTreeMap::new());
        Self { dir: dir.to_owned(), limit, library, shards, filled: 0, total: 0, weight_map }
    }

    /// Adds the tensor `name`: `bytes` are its elements, little-endian and row-major.
    ///
    /// # Errors
    /// When the name was used, `bytes` has not the length of shape and dtype, or the disk is full.
    pub fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
        self.shard_for(name, bytes.len())?.add(name, dtype, shape, bytes)
    }

    /// Adds the tensor `name` with its values stored as `float`, rounded to nearest even.
    ///
    /// # Errors
    /// As [`ShardWriter::add`], and when a value is not finite or beyond the range of `float`.
    pub fn add_values(
        &mut self,
        name: &str,
        float: FloatType,
        shape: &[usize],
        values: &[f32],
    ) -> Result<()> {
        self.shard_for(name, values.len() * float.bytes())?.add_values(name, float, shape, values)?;
        Ok(())
    }

    /// Writes the files, reads them back, and gives the length of all of them in bytes.
    ///
    /// # Errors
    /// When the disk is full, or gives back something else.
    pub fn finish(mut self) -> Result<u64> {
        if self.shards.is_empty() {
            self.begin_shard()?;
        }
        let count = self.shards.len();
        let name = |index: usize| match count {
            1 => MODEL_FILE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let mut bytes = 0;
        for (index, shard) in self.shards.into_iter().enumerate() {
            bytes += shard.finish_as(&self.dir.join(name(index)))?;
        }
        if count > 1 {
            let weight_map: BTreeMap<_, _> =
                self.weight_map.iter().map(|(n, &index)| (n, name(index))).collect();
            let index = json!({"metadata": {"total_size": self.total}, "weight_map": weight_map});
            let path = self.dir.join(INDEX_FILE);
            std::fs::write(&path, format!("{index:#}\n")).map_err(|e| write_error(&path, e))?;
        }
        Ok(bytes)
    }

    fn shard_for(&mut self, name: &str, bytes: usize) -> Result<&mut TensorWriter> {
        if self.shards.is_empty() || self.filled > 0 && self.filled + bytes > self.limit {
            self.begin_shard()?;
        }
        self.filled += bytes;
        self.total += bytes;
        let last = self.shards.len() - 1;
        self.weight_map.insert(name.to_owned(), last);
        Ok(&mut self.shards[last])
    }

    fn begin_shard(&mut self) -> Result<()> {
        let path = self.dir.join(format!("shard-{}", self.shards.len()));
        self.shards.push(TensorWriter::create(&path, self.library)?);
        self.filled = 0;
        Ok(())
    }
}

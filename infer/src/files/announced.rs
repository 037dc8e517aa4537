//! How long a safetensors file will be, from the names, types and shapes of its tensors.
//!
//! Holds no values. Invariant: the length is that of the file that [`TensorWriter`](super::TensorWriter) writes, because the header is made
//! by the same function; so are shards.

use std::collections::BTreeMap;

use qat_quant::Format;
use safetensors::Dtype;

use super::header::{LENGTH_BYTES, TensorInfo};
use super::manifest::{Activations, Storage, TensorEntry};
use super::packed::{scale_name, stored_as};
use super::shard_writer::SHARD;
use super::tensor_writer::header;
use crate::model::Param;

/// Tensors that will be written.
#[derive(Debug)]
pub(crate) struct Announced {
    /// Name of the library whose layout the files say they have.
    library: &'static str,
    limit: u64,
    shards: Vec<BTreeMap<String, (TensorInfo, u64)>>,
    /// Bytes of tensors in the last of them.
    filled: u64,
}

impl Announced {
    /// For one file, however long.
    pub(crate) fn whole(library: &'static str) -> Self {
        Self { library, limit: u64::MAX, shards: vec![BTreeMap::new()], filled: 0 }
    }

    /// For shards, as [`ShardWriter`](super::ShardWriter) begins them.
    pub(crate) fn sharded(library: &'static str) -> Self {
        Self { limit: SHARD as u64, ..Self::whole(library) }
    }

    /// Announces the tensor `name`.
    pub(crate) fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize]) {
        let bytes = (shape.iter().product::<usize>() * dtype.bitsize() / 8) as u64;
        if self.filled > 0 && self.filled + bytes > self.limit {
            self.shards.push(BTreeMap::new());
            self.filled = 0;
        }
        self.filled += bytes;
        if let Some(last) = self.shards.last_mut() {
            last.insert(name.to_owned(), (TensorInfo { dtype, shape: shape.to_vec() }, bytes));
        }
    }

    /// That of a packed model with these tensors.
    pub(crate) fn packed(tensors: &[(Param, Storage)]) -> Self {
        let mut file = Self::whole("pt");
        for (param, storage) in tensors {
            let (dtype, shape) = stored_as(&entry(param, *storage));
            file.add(&param.name, dtype, &shape);
            if *storage == Storage::Packed(Format::TernaryTensor) {
                file.add(&scale_name(&param.name), Dtype::BF16, &[1]);
            }
        }
        file
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        let of_shard = |shard: &BTreeMap<String, (TensorInfo, u64)>| {
            let tensors: Vec<_> = shard.iter().map(|(name, (info, len))| (name, info, *len)).collect();
            let len: u64 = tensors.iter().map(|(_, _, len)| len).sum();
            (LENGTH_BYTES + header(self.library, tensors).len()) as u64 + len
        };
        self.shards.iter().map(of_shard).sum()
    }
}

/// `param` as a manifest has it, but for its checksum.
pub(crate) fn entry(param: &Param, storage: Storage) -> TensorEntry {
    let (shape, activations, sha256) = (param.shape.clone(), Activations::Float, String::new());
    TensorEntry { storage, shape, activations, sha256 }
}

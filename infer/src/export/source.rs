//! The packed model that is exported: its config, and each tensor as it was trained.
//!
//! Knows no target. Invariant: a tensor that is handed out was checked against the manifest's checksum.

use std::path::{Path, PathBuf};

use qat_quant::PackedRef;
use qat_quant::kernels::{FloatRef, FloatType};

use crate::files::{Activations, Bytes, PackedDir, Storage, companions};
use crate::model::{Config, FileTensor, Param, Role, file_tensors, params};
use crate::{Error, Result};

/// A packed model, opened to be written for another runtime.
#[derive(Debug)]
pub struct Source {
    /// The directory.
    pub dir: PackedDir,
    /// Its config, checked.
    pub config: Config,
}

/// A tensor of a [`Source`].
#[derive(Debug, Clone)]
pub struct SourceTensor {
    name: String,
    /// `[rows, cols]`; a vector is one row.
    shape: [usize; 2],
    /// How its elements are stored.
    pub storage: Storage,
    /// What its inputs are rounded to.
    pub activations: Activations,
    bytes: Bytes,
    tensor_scale: Option<f32>,
}

impl Source {
    /// Opens the packed directory `path`.
    ///
    /// # Errors
    /// It is none, it is damaged, or its config asks for something that no decoder here does.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = PackedDir::open(path)?;
        let config = Config::from_json(&dir.config, &dir.config_path())?;
        let source = Self { dir, config };
        // What follows looks tensors up by these names.
        for param in source.params() {
            if source.dir.manifest.tensors.get(&param.name).is_none_or(|entry| entry.shape != param.shape) {
                let problem =
                    format!("the model needs it as {:?}; {} has it otherwise", param.shape, path.display());
                return Err(Error::tensor(&param.name, problem));
            }
        }
        Ok(source)
    }

    /// Every tensor, in the order in which the forward pass meets them.
    pub fn params(&self) -> Vec<Param> {
        params(&self.config)
    }

    /// The tensors that a Hugging Face file of the model has, in the same order.
    pub fn file_tensors(&self) -> Vec<FileTensor> {
        file_tensors(&self.config)
    }

    /// Refuses matrices that are rows of one tensor of a file and stored differently.
    ///
    /// # Errors
    /// Names two of them.
    pub fn check_fused(&self) -> Result<()> {
        for FileTensor { param, parts } in self.file_tensors() {
            let first = self.storage(&parts[0]);
            if let Some(other) = parts.iter().find(|part| self.storage(part) != first) {
                let problem = format!(
                    "is one tensor of the file, whose rows are stored alike; {} is {first} and {} is {}; give them one format",
                    parts[0].name,
                    other.name,
                    self.storage(other)
                );
                return Err(Error::tensor(&param.name, problem));
            }
        }
        Ok(())
    }

    /// All values of a tensor of a file, as they stand there.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn file_values(&self, tensor: &FileTensor) -> Result<Vec<f32>> {
        let offset = if tensor.param.role == Role::Norm { self.config.norm_offset() } else { 0.0 };
        let mut values = Vec::with_capacity(tensor.param.shape.iter().product());
        for part in &tensor.parts {
            values.extend(self.tensor(part)?.values()?);
        }
        if offset != 0.0 {
            values.iter_mut().for_each(|value| *value -= offset);
        }
        Ok(values)
    }

    /// How the elements of `param` are stored.
    pub fn storage(&self, param: &Param) -> Storage {
        // `open` found each of them.
        self.dir
            .manifest
            .tensors
            .get(&param.name)
            .map_or(Storage::Float(FloatType::F32), |entry| entry.storage)
    }

    /// Every tensor with how it is stored.
    pub fn stored(&self) -> impl Iterator<Item = (Param, Storage)> {
        self.params().into_iter().map(|param| {
            let storage = self.storage(&param);
            (param, storage)
        })
    }

    /// The tensor that `param` describes, checked.
    ///
    /// # Errors
    /// Its checksum differs, or it has a code or a number that no encoder writes.
    pub fn tensor(&self, param: &Param) -> Result<SourceTensor> {
        let cols = param.shape.last().copied().unwrap_or(1);
        let shape = [param.shape.iter().product::<usize>() / cols.max(1), cols];
        let stored = self.dir.stored(&param.name, &param.shape)?;
        Ok(SourceTensor {
            name: param.name.clone(),
            shape,
            storage: stored.storage,
            activations: stored.activations,
            bytes: stored.bytes,
            tensor_scale: stored.tensor_scale,
        })
    }

    /// Tokenizer, chat template, generation settings and licences: what travels along.
    ///
    /// # Errors
    /// The directory can't be listed.
    pub fn companions(&self) -> Result<Vec<PathBuf>> {
        companions(&self.dir.path)
    }
}

impl SourceTensor {
    /// The packed matrix, if it is one.
    ///
    /// # Errors
    /// Never for a tensor that was checked; its length is looked at again.
    pub fn packed(&self) -> Result<Option<PackedRef<'_>>> {
        let [rows, cols] = self.shape;
        match self.storage {
            Storage::Packed(format) => {
                Ok(Some(PackedRef::new(&self.name, format, rows, cols, &self.bytes, self.tensor_scale)?))
            }
            Storage::Float(_) => Ok(None),
        }
    }

    /// All values, row-major: those of the grid, or the floats.
    ///
    /// # Errors
    /// Never for a tensor that was checked; its length is looked at again.
    pub fn values(&self) -> Result<Vec<f32>> {
        let [rows, cols] = self.shape;
        match self.storage {
            Storage::Packed(_) => Ok(self.packed()?.map_or(Vec::new(), |packed| packed.decode())),
            Storage::Float(float) => {
                let stored = FloatRef::new(&self.name, float, rows, cols, &self.bytes)?;
                let mut values = vec![0.0; rows * cols];
                values.chunks_mut(cols).enumerate().for_each(|(row, out)| stored.decode_row(row, out));
                Ok(values)
            }
        }
    }
}

//! Writes a packed model: tensor by tensor, checked by reading it back, in place whole or not at all.
//!
//! Knows no architecture and chooses no scale. Invariant: what is committed was read back from the disk, and has
//! the SHA-256 of the codes, scales and floats that were handed in, taken from memory as they came.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qat_quant::PackedRef;
use qat_quant::kernels::FloatType;
use safetensors::Dtype;
use serde_json::Value;

use super::digest::sha256_hex;
use super::hf::CONFIG_FILE;
use super::manifest::{Activations, MANIFEST_FILE, Manifest, Storage, TensorEntry};
use super::packed::{PackedDir, scale_name, stored_as, stored_scale};
use super::staged::StagedDir;
use super::tensor_writer::TensorWriter;
use super::tensors::MODEL_FILE;
use crate::error::{Error, Result};

/// A packed model in the making. Dropping it without [`PackedWriter::finish`] leaves nothing behind.
#[derive(Debug)]
pub struct PackedWriter {
    tensors: TensorWriter,
    entries: BTreeMap<String, TensorEntry>,
    files: BTreeMap<String, String>,
    source: Value,
    staged: StagedDir,
}

impl PackedWriter {
    /// Begins the packed model `target` with `config` as its `config.json` and copies of `companions` (see
    /// [`companions`](super::companions)). Without a tokenizer among them the model reads token ids, but no text.
    /// `source` is told in the manifest.
    ///
    /// # Errors
    /// When `target` is not ours to replace or can't be written, or a companion can't be read.
    pub fn create(target: &Path, config: &Value, companions: &[PathBuf], source: Value) -> Result<Self> {
        let staged = StagedDir::create(target, MANIFEST_FILE)?;
        let files = write_surroundings(&staged, config, companions)?;
        let tensors = TensorWriter::create(&staged.path().join(MODEL_FILE), "pt")?;
        Ok(Self { tensors, entries: BTreeMap::new(), files, source, staged })
    }

    /// Adds a packed matrix.
    ///
    /// # Errors
    /// When the name was used, a code or scale is illegal, or the disk is full.
    pub fn packed(&mut self, name: &str, matrix: PackedRef<'_>, activations: Activations) -> Result<()> {
        matrix.validate(name)?;
        let scale = matrix.tensor_scale().map(|scale| stored_scale(name, scale)).transpose()?;
        let beside = scale.as_ref().map_or(&[][..], |s| s);
        let entry = TensorEntry {
            storage: Storage::Packed(matrix.format()),
            shape: vec![matrix.rows(), matrix.cols()],
            activations,
            sha256: sha256_hex(&[matrix.blocks(), beside]),
        };
        let (dtype, shape) = stored_as(&entry);
        self.tensors.add(name, dtype, &shape, matrix.blocks())?;
        if scale.is_some() {
            self.tensors.add(&scale_name(name), Dtype::BF16, &[1], beside)?;
        }
        self.entries.insert(name.to_owned(), entry);
        Ok(())
    }

    /// Adds a tensor that stays float, stored as `float` (rounded to nearest even): norms and biases in F32, or a
    /// matrix that is not to be packed.
    ///
    /// # Errors
    /// When the name was used, a value is not finite or beyond the range of `float`, or the disk is full.
    pub fn float(&mut self, name: &str, float: FloatType, shape: &[usize], values: &[f32]) -> Result<()> {
        let bytes = self.tensors.add_values(name, float, shape, values)?;
        let entry = TensorEntry {
            storage: Storage::Float(float),
            shape: shape.to_vec(),
            activations: Activations::Float,
            sha256: sha256_hex(&[&bytes]),
        };
        self.entries.insert(name.to_owned(), entry);
        Ok(())
    }

    /// Writes the manifest, reads everything back, compares it with what was handed in, and puts the directory in
    /// the target's place.
    ///
    /// # Errors
    /// When the disk is full, or what it gives back differs; the target then is as it was.
    pub fn finish(self) -> Result<Manifest> {
        let file_bytes = self.tensors.finish()?;
        let manifest = Manifest {
            bits_per_weight: Manifest::bits_per_weight_of(&self.entries),
            tensors: self.entries,
            file_bytes,
            source: self.source,
            files: self.files,
        };
        self.staged.write(MANIFEST_FILE, manifest.to_json()?.as_bytes())?;
        let read_back = PackedDir::open(self.staged.path())?;
        read_back.verify()?;
        if read_back.manifest != manifest {
            let path = self.staged.path().join(MANIFEST_FILE);
            return Err(Error::file(
                &path,
                "reads back differently from what was written; is the disk sound?",
            ));
        }
        self.staged.commit()?;
        Ok(manifest)
    }
}

/// Writes `config.json`, copies the companions, and gives the SHA-256 of each by file name.
pub(crate) fn write_surroundings(
    staged: &StagedDir,
    config: &Value,
    companions: &[PathBuf],
) -> Result<BTreeMap<String, String>> {
    let config = format!("{config:#}\n");
    staged.write(CONFIG_FILE, config.as_bytes())?;
    let mut files = BTreeMap::from([(CONFIG_FILE.to_owned(), sha256_hex(&[config.as_bytes()]))]);
    for companion in companions {
        let bytes = staged.copy(companion)?;
        let name = companion.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, sha256_hex(&[&bytes]));
    }
    Ok(files)
}

//! A model opened from a directory: the decoder over the bytes of its files, and what the files weigh.
//!
//! Knows no text and runs nothing. Invariant: every tensor the config asks for is there with its shape, and no matrix is
//! copied.

use std::path::{Path, PathBuf};

use qat_quant::kernels::FloatType;
use safetensors::Dtype;
use tokenizers::Tokenizer;

use super::matrix::Matrix;
use super::session::CpuDecoder;
use crate::files::{HfDir, TensorFiles, load_tokenizer};
use crate::model::{Config, Decoder, Param, Weights, names};
use crate::{Error, Result};

/// A model ready to run.
#[derive(Debug)]
pub struct Model {
    /// Tensors and forward function.
    pub decoder: CpuDecoder,
    /// The directory it came from.
    pub origin: PathBuf,
    /// What its files weigh.
    pub size: Size,
    tokenizer: PathBuf,
}

/// The weight of a model's files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Stored bits of all tensors, with scales, embeddings, norms and biases, per weight (a tied head counts once).
    pub bits_per_weight: f64,
    /// Bytes of the files that hold the tensors.
    pub file_bytes: u64,
}

impl Model {
    /// Opens a packed directory (one with a manifest) or a float one as Hugging Face lays it out.
    ///
    /// # Errors
    /// When a file is missing or damaged, the config asks for something the decoder lacks, or a tensor is missing, has
    /// another shape or holds values that are not finite.
    pub fn open(dir: &Path) -> Result<Self> {
        let hf = HfDir::open(dir)?;
        let config = Config::from_json(&hf.config, &hf.config_path())?;
        let mut source = Source { config: config.clone(), tensors: &hf.tensors, bits: 0, weights: 0 };
        let decoder = Decoder::build(config, &mut source)?;
        let size = Size {
            bits_per_weight: source.bits as f64 / source.weights as f64,
            file_bytes: file_bytes(&hf.tensors)?,
        };
        Ok(Self { decoder, origin: dir.to_owned(), size, tokenizer: hf.tokenizer() })
    }

    /// The tokenizer beside the weights.
    ///
    /// # Errors
    /// When it can't be read or gives ids that the model doesn't have.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        load_tokenizer(&self.tokenizer, self.decoder.config.vocab_size)
    }
}

fn file_bytes(tensors: &TensorFiles) -> Result<u64> {
    let mut files: Vec<&Path> = tensors.names().map(|name| tensors.file_of(name)).collect::<Result<_>>()?;
    files.sort();
    files.dedup();
    files.iter().try_fold(0, |sum, path| {
        let meta = std::fs::metadata(path).map_err(|e| Error::io("cannot read", path, e))?;
        Ok(sum + meta.len())
    })
}

/// Tensors of a directory, counted as they are handed out.
struct Source<'a> {
    config: Config,
    tensors: &'a TensorFiles,
    bits: u64,
    weights: u64,
}

impl Source<'_> {
    fn count(&mut self, name: &str, param: &Param) -> Result<()> {
        self.bits += 8 * self.tensors.bytes(name)?.len() as u64;
        self.weights += param.shape.iter().product::<usize>() as u64;
        Ok(())
    }
}

impl Weights for Source<'_> {
    type M = Matrix;
    type V = Vec<f32>;
    type Error = Error;

    fn matrix(&mut self, param: &Param) -> Result<Matrix> {
        let name = names::stored_name(param, &self.config, |name| self.tensors.contains(name));
        self.tensors.check_shape(name, &param.shape)?;
        self.count(name, param)?;
        let &[rows, cols] = param.shape.as_slice() else {
            return Err(Error::tensor(name, format!("a matrix has two sizes, found {:?}", param.shape)));
        };
        let dtype = match self.tensors.info(name)?.dtype {
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            Dtype::BF16 => FloatType::BF16,
            other => {
                return Err(Error::tensor(name, format!("want F32, F16 or BF16, found {other}")));
            }
        };
        Matrix::float(name, dtype, [rows, cols], self.tensors.bytes(name)?)
    }

    fn vector(&mut self, param: &Param) -> Result<Vec<f32>> {
        self.count(&param.name, param)?;
        self.tensors.f32(&param.name, &param.shape)
    }
}

//! A model opened from a directory or a GGUF file: the decoder over the matrices of some runtime, and what the files weigh.
//!
//! Knows no text and runs nothing; what a matrix in memory is, the runtime says. Invariant: every tensor the config asks for
//! is there with its shape, checked.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::chat::ChatTemplate;
use crate::files::{
    Activations, BitNetDir, HfDir, Manifest, MlxDir, PackedDir, Storage, StoredMatrix, TOKENIZER_FILE,
    TensorFiles, load_tokenizer,
};
use crate::gguf::{self, GgufModel};
use crate::model::{Config, Decoder, Param, Role, Stored, Weights, params};
use crate::{Error, Result};

/// What a runtime makes of the matrices in a file.
pub trait RuntimeMatrix: Sized + Send {
    /// The matrix `[rows, cols]` that `stored`, whose content was checked, holds.
    ///
    /// # Errors
    /// When its bytes are not what its format makes of the shape.
    fn new(name: &str, shape: [usize; 2], stored: StoredMatrix) -> Result<Self>;

    /// Chooses what the inputs of a packed matrix are rounded to; a float one keeps what it has.
    fn set_activations(&mut self, activations: Activations);
}

/// A model ready to run.
#[derive(Debug)]
pub struct Opened<M> {
    /// Tensors and forward function.
    pub decoder: Decoder<M, Vec<f32>>,
    /// The directory or file it came from.
    pub origin: PathBuf,
    /// What its files weigh.
    pub size: Size,
    /// The manifest of a packed directory; none for a float one.
    pub manifest: Option<Manifest>,
    tokenizer: TokenizerAt,
    /// How the tensors of a directory without a manifest are stored.
    stored: BTreeMap<String, Storage>,
}

/// Where a model's tokenizer is.
#[derive(Debug)]
enum TokenizerAt {
    File(PathBuf),
    Gguf(Box<GgufModel>),
}

/// The weight of a model's files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Stored bits of all tensors, with scales, embeddings, norms and biases, per weight (a tied head counts once).
    pub bits_per_weight: f64,
    /// Bytes of the files that hold the tensors.
    pub file_bytes: u64,
}

impl<M: RuntimeMatrix> Opened<M> {
    /// Opens a packed directory (one with a manifest), a GGUF file, a quantized directory in MLX's layout, one with the BitNet
    /// layers of transformers, or a float one as Hugging Face lays it out.
    ///
    /// # Errors
    /// When a file is missing or damaged, the config asks for something the decoder lacks, or a tensor is missing, has
    /// another shape or holds values that are not finite.
    pub fn open(dir: &Path) -> Result<Self> {
        if PackedDir::is_at(dir) {
            Self::open_packed(dir)
        } else if let Some(file) = gguf::at(dir) {
            Self::open_gguf(&file)
        } else if MlxDir::is_at(dir) {
            let mlx = MlxDir::open(dir)?;
            let config = Config::from_json(&mlx.config, &mlx.config_path())?;
            Self::open_tensors(dir, config, &mlx.tensors, &|param, stored| {
                let Some(matrix) = mlx.stored(stored)? else { return Ok(None) };
                Ok(Some((matrix.stored(&param.name)?, matrix.bytes())))
            })
        } else if BitNetDir::is_at(dir) {
            let bitnet = BitNetDir::open(dir)?;
            let config = Config::from_json(&bitnet.config, &bitnet.config_path())?;
            Self::open_tensors(dir, config, &bitnet.tensors, &|param, stored| {
                if param.role != Role::Projection {
                    return Ok(None);
                }
                let matrix = bitnet.matrix(&stored.name, matrix_shape(param)?)?;
                Ok(matrix.map(|matrix| (matrix.stored, matrix.file_bytes)))
            })
        } else {
            let hf = HfDir::open(dir)?;
            let config = Config::from_json(&hf.config, &hf.config_path())?;
            Self::open_tensors(dir, config, &hf.tensors, &|_, _| Ok(None))
        }
    }

    /// The tokenizer beside the weights.
    ///
    /// # Errors
    /// When it can't be read or gives ids that the model doesn't have.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.tokenizer {
            TokenizerAt::File(path) => load_tokenizer(path, self.decoder.config.vocab_size),
            TokenizerAt::Gguf(model) => model.tokenizer(),
        }
    }

    /// How the model wants a conversation written, if it says.
    ///
    /// # Errors
    /// When a file can't be read, or the template is no Jinja.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match &self.tokenizer {
            TokenizerAt::File(_) => ChatTemplate::of(&self.origin),
            TokenizerAt::Gguf(model) => {
                let [_, (_, config)] = model.tokenizer_files()?;
                let config = serde_json::from_slice(&config);
                let config = config.map_err(|e| Error::file(&self.origin, format!("its tokenizer: {e}")))?;
                ChatTemplate::in_config(&self.origin, &config)
            }
        }
    }

    /// How the files hold `param`: a format of ours, a type of ggml, or "float"; none where they have it under another name.
    pub fn stored_as(&self, param: &Param) -> Option<String> {
        match (&self.manifest, &self.tokenizer) {
            (Some(manifest), _) => Some(manifest.tensors.get(&param.name)?.storage.to_string()),
            (None, TokenizerAt::Gguf(model)) => Some(model.kind(param).ok()?.name().to_owned()),
            (None, TokenizerAt::File(_)) => Some(match self.stored.get(&param.name)? {
                Storage::Float(_) => "float".to_owned(),
                packed => packed.to_string(),
            }),
        }
    }

    /// Chooses what the inputs of packed matrices are rounded to, whatever the manifest says of how the model was trained.
    pub fn set_activations(&mut self, activations: Activations) {
        self.decoder.matrices_mut().for_each(|matrix| matrix.set_activations(activations));
    }

    fn open_packed(path: &Path) -> Result<Self> {
        let dir = PackedDir::open(path)?;
        let config = Config::from_json(&dir.config, &dir.config_path())?;
        let matrices = open_matrices(&config, |param| {
            let stored = Stored::of(param, &config, |name| dir.contains(name));
            dir.matrix(&stored.name, matrix_shape(param)?)
        })?;
        let vector = |param: &Param| dir.vector(&param.name, &param.shape);
        let decoder = Decoder::build(config.clone(), &mut CheckedWeights { matrices, vector })?;
        let tokenizer = TokenizerAt::File(dir.tokenizer());
        let size =
            Size { bits_per_weight: dir.manifest.bits_per_weight, file_bytes: dir.manifest.file_bytes };
        let (origin, stored) = (path.to_owned(), BTreeMap::new());
        Ok(Self { decoder, origin, size, manifest: Some(dir.manifest), tokenizer, stored })
    }

    fn open_tensors(
        path: &Path,
        config: Config,
        tensors: &TensorFiles,
        quantized: Quantized<'_>,
    ) -> Result<Self> {
        let mut weights = TensorWeights::<M> {
            config: &config,
            tensors,
            quantized,
            bytes: 0,
            elements: 0,
            stored: BTreeMap::new(),
            matrix: PhantomData,
        };
        let decoder = Decoder::build(config.clone(), &mut weights)?;
        let bits_per_weight = 8.0 * weights.bytes as f64 / weights.elements as f64;
        let size = Size { bits_per_weight, file_bytes: file_bytes(tensors)? };
        let tokenizer = TokenizerAt::File(path.join(TOKENIZER_FILE));
        let (origin, stored) = (path.to_owned(), weights.stored);
        Ok(Self { decoder, origin, size, manifest: None, tokenizer, stored })
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let model = GgufModel::open(path)?;
        let config = model.config.clone();
        let matrices = open_matrices(&config, |param| model.stored(param))?;
        let vector = |param: &Param| model.values(param);
        let decoder = Decoder::build(config, &mut CheckedWeights { matrices, vector })?;
        let size = Size { bits_per_weight: model.bits_per_weight()?, file_bytes: model.file.file_bytes() };
        let tokenizer = TokenizerAt::Gguf(Box::new(model));
        let (origin, stored) = (path.to_owned(), BTreeMap::new());
        Ok(Self { decoder, origin, size, manifest: None, tokenizer, stored })
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

fn matrix_shape(param: &Param) -> Result<[usize; 2]> {
    let problem = || Error::tensor(&param.name, format!("a matrix has two sizes, found {:?}", param.shape));
    <[usize; 2]>::try_from(param.shape.as_slice()).map_err(|_| problem())
}

/// The matrices that `stored` gives by the names that the model has for them: checked and taken
/// over, each by one thread while it is in its cache.
fn open_matrices<M: RuntimeMatrix>(
    config: &Config,
    stored: impl Fn(&Param) -> Result<StoredMatrix> + Sync,
) -> Result<BTreeMap<String, M>> {
    let matrices: Vec<Param> = params(config).into_iter().filter(|param| param.shape.len() == 2).collect();
    let open = |param: &Param| {
        let matrix = M::new(&param.name, matrix_shape(param)?, stored(param)?)?;
        Ok((param.name.clone(), matrix))
    };
    // Errors are told in the order of the tensors, so that the same damage gives the same message.
    let opened: Vec<Result<_>> = matrices.par_iter().map(open).collect();
    opened.into_iter().collect()
}

/// Matrices that were opened before, and vectors that `vector` gives.
struct CheckedWeights<M, F> {
    matrices: BTreeMap<String, M>,
    vector: F,
}

impl<M, F: Fn(&Param) -> Result<Vec<f32>>> Weights for CheckedWeights<M, F> {
    type M = M;
    type V = Vec<f32>;
    type Error = Error;

    fn matrix(&mut self, param: &Param) -> Result<M> {
        let matrix = self.matrices.remove(&param.name);
        matrix.ok_or_else(|| Error::tensor(&param.name, "the model asks for it twice"))
    }

    fn vector(&mut self, param: &Param) -> Result<Vec<f32>> {
        (self.vector)(param)
    }
}

/// Gives the matrix that a tensor of the file quantizes, and the bytes of the file that hold it; none where it is a float one.
type Quantized<'a> = &'a dyn Fn(&Param, &Stored) -> Result<Option<(StoredMatrix, usize)>>;

/// Tensors of a directory without a manifest, counted as they are handed out.
struct TensorWeights<'a, M> {
    config: &'a Config,
    tensors: &'a TensorFiles,
    quantized: Quantized<'a>,
    bytes: usize,
    elements: usize,
    stored: BTreeMap<String, Storage>,
    matrix: PhantomData<M>,
}

impl<M> TensorWeights<'_, M> {
    /// The shape of a vector in the file: MLX has the one channel of a convolution's kernel behind the taps.
    fn shape_in_file(&self, param: &Param) -> Vec<usize> {
        match *param.shape.as_slice() {
            [channels, 1, taps] => {
                let theirs = vec![channels, taps, 1];
                let is_theirs = self.tensors.info(&param.name).is_ok_and(|info| info.shape == theirs);
                if is_theirs { theirs } else { param.shape.clone() }
            }
            _ => param.shape.clone(),
        }
    }

    fn count(&mut self, bytes: usize, param: &Param) {
        self.bytes += bytes;
        self.elements += param.shape.iter().product::<usize>();
    }
}

impl<M: RuntimeMatrix> Weights for TensorWeights<'_, M> {
    type M = M;
    type V = Vec<f32>;
    type Error = Error;

    fn matrix(&mut self, param: &Param) -> Result<M> {
        let place = Stored::of(param, self.config, |name| self.tensors.contains(name));
        let shape = matrix_shape(param)?;
        let (stored, bytes) = match (self.quantized)(param, &place)? {
            Some(quantized) => quantized,
            None => {
                let (float, bytes) = self.tensors.stored_float(&place)?;
                let (storage, len) = (Storage::Float(float), bytes.len());
                let activations = Activations::Float;
                (StoredMatrix { storage, bytes, tensor_scale: None, activations }, len)
            }
        };
        self.count(bytes, param);
        self.stored.insert(param.name.clone(), stored.storage);
        M::new(&param.name, shape, stored)
    }

    fn vector(&mut self, param: &Param) -> Result<Vec<f32>> {
        let mut place = Stored::of(param, self.config, |name| self.tensors.contains(name));
        if place.is_whole() {
            place.shape = self.shape_in_file(param);
        }
        let values = self.tensors.stored_f32(&place)?;
        self.count(self.tensors.stored_float(&place)?.1.len(), param);
        Ok(values)
    }
}

//! A model that is read for its values, whatever holds them: a Hugging Face directory of floats or of BitNet layers, or anybody's GGUF
//! file.
//!
//! Runs nothing. Invariant: the tensors that are handed out have the shapes that the config asks for and finite values.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokenizers::Tokenizer;

use crate::files::{
    Activations, Base, BitNetDir, BitNetMatrix, HfDir, TOKENIZER_FILE, companions, load_tokenizer,
};
use crate::gguf::{self, GgufModel};
use crate::model::{Config, Param, Role, Stored};
use crate::{Error, Result};

/// A model to be read as floats.
#[derive(Debug)]
pub struct FloatModel {
    /// The shape of the model.
    pub config: Config,
    tensors: Tensors,
    /// The directory of the tokenizer and the other files that travel along.
    surroundings: Surroundings,
}

#[derive(Debug)]
enum Tensors {
    Directory(HfDir),
    BitNet(BitNetDir),
    Gguf(GgufModel),
}

#[derive(Debug)]
enum Surroundings {
    There(PathBuf),
    /// Made of the metadata of a GGUF file.
    Made(TempDir),
}

impl FloatModel {
    /// Opens the directory or the GGUF file at `path`.
    ///
    /// # Errors
    /// It is neither, it is damaged, or it has a shape or a type of numbers that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(file) = gguf::at(path) {
            return Self::open_gguf(&file);
        }
        if BitNetDir::is_at(path) {
            let directory = BitNetDir::open(path)?;
            let config = Config::from_json(&directory.config, &directory.config_path())?;
            let surroundings = Surroundings::There(path.to_owned());
            return Ok(Self { config, tensors: Tensors::BitNet(directory), surroundings });
        }
        let directory = HfDir::open(path)?;
        let config = Config::from_json(&directory.config, &directory.config_path())?;
        Ok(Self {
            config,
            tensors: Tensors::Directory(directory),
            surroundings: Surroundings::There(path.to_owned()),
        })
    }

    fn open_gguf(file: &Path) -> Result<Self> {
        let model = GgufModel::open(file)?;
        let beside = file.parent().filter(|folder| folder.join(TOKENIZER_FILE).is_file());
        let surroundings = match beside {
            Some(folder) => Surroundings::There(folder.to_owned()),
            None => {
                let made = TempDir::new()
                    .map_err(|e| Error::io("cannot make a directory in", &std::env::temp_dir(), e))?;
                if model.has_tokenizer() {
                    for (name, bytes) in model.tokenizer_files()? {
                        let path = made.path().join(name);
                        std::fs::write(&path, bytes).map_err(|e| Error::io("cannot write", &path, e))?;
                    }
                }
                Surroundings::Made(made)
            }
        };
        Ok(Self { config: model.config.clone(), tensors: Tensors::Gguf(model), surroundings })
    }

    /// What the model says of its name and licence.
    ///
    /// # Errors
    /// The metadata of a GGUF file have something else under the keys of these.
    pub fn base(&self) -> Result<Base> {
        match &self.tensors {
            Tensors::Directory(HfDir { path, .. }) | Tensors::BitNet(BitNetDir { path, .. }) => {
                Ok(Base::of(path))
            }
            Tensors::Gguf(model) => model.base(),
        }
    }

    /// The values of `param` that the model computes with, row-major.
    ///
    /// # Errors
    /// It is missing, has another shape or a value that is not finite.
    pub fn values(&self, param: &Param) -> Result<Vec<f32>> {
        match (self.bitnet(param)?, &*param.shape) {
            (Some(matrix), &[rows, cols]) => matrix.values(&param.name, [rows, cols]),
            _ => self.floats(param),
        }
    }

    /// The values of `param` from which training goes on: those that it was rounded from, where the model has kept them.
    ///
    /// # Errors
    /// It is missing, has another shape or a value that is not finite.
    pub fn latent(&self, param: &Param) -> Result<Vec<f32>> {
        match &self.tensors {
            Tensors::BitNet(directory) if directory.is_online() => self.floats(param),
            _ => self.values(param),
        }
    }

    /// What the inputs of `param` are rounded to.
    pub fn activations(&self, param: &Param) -> Activations {
        match &self.tensors {
            Tensors::BitNet(directory)
                if param.role == Role::Projection && directory.is_ternary(&param.name) =>
            {
                Activations::Int8Token
            }
            _ => Activations::Float,
        }
    }

    /// The matrix that `param` is, if it is ternary.
    fn bitnet(&self, param: &Param) -> Result<Option<BitNetMatrix>> {
        match (&self.tensors, param.role, &*param.shape) {
            (Tensors::BitNet(directory), Role::Projection, &[rows, cols]) => {
                directory.matrix(&param.name, [rows, cols])
            }
            _ => Ok(None),
        }
    }

    fn floats(&self, param: &Param) -> Result<Vec<f32>> {
        match &self.tensors {
            Tensors::BitNet(BitNetDir { tensors, .. }) | Tensors::Directory(HfDir { tensors, .. }) => {
                tensors.stored_f32(&Stored::of(param, &self.config, |name| tensors.contains(name)))
            }
            Tensors::Gguf(model) => model.values(param),
        }
    }

    /// Lets go of the memory that the files take once they have been read, for whoever reads much and keeps little.
    pub fn release(&self) {
        if let Tensors::BitNet(BitNetDir { tensors, .. }) | Tensors::Directory(HfDir { tensors, .. }) =
            &self.tensors
        {
            tensors.release();
        }
    }

    /// Path of `tokenizer.json`, which a model that reads no text lacks. It lasts as long as this value.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.folder().join(TOKENIZER_FILE)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// There is none, or it gives ids that the model doesn't have.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        load_tokenizer(&self.tokenizer_path(), self.config.vocab_size)
    }

    /// The files that travel along. They last as long as this value.
    ///
    /// # Errors
    /// The directory can't be listed.
    pub fn companions(&self) -> Result<Vec<PathBuf>> {
        companions(self.folder())
    }

    fn folder(&self) -> &Path {
        match &self.surroundings {
            Surroundings::There(folder) => folder,
            Surroundings::Made(made) => made.path(),
        }
    }
}

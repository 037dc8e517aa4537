//! A model in a GGUF file: our config, our tensors by Hugging Face's names and in its order of rows, and the tokenizer.
//!
//! Runs nothing. Invariants: a tensor that is handed out has the shape that the config asks for and finite values; blocks of a format of
//! ours stay packed, everything else becomes floats.

use std::path::Path;

use qat_quant::{Format, PackedRef};
use tokenizers::Tokenizer;

use super::kind::Kind;
use super::names::{Rows, gguf_name};
use super::reader::{Gguf, TensorInfo};
use super::{blocks, hparams, vocabulary};
use crate::files::{
    Activations, Base, Bytes, Storage, StoredMatrix, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, load_tokenizer,
    parse_tokenizer,
};
use crate::model::{Config, Param, Stored, params};
use crate::{Error, Result};

/// A model in a GGUF file.
#[derive(Debug)]
pub struct GgufModel {
    /// The container.
    pub file: Gguf,
    /// The shape of the model.
    pub config: Config,
}

/// A tensor of the model, located.
struct Located<'a> {
    name: String,
    info: &'a TensorInfo,
    /// Of the rows that are the parameter.
    bytes: Bytes,
    /// `[rows, cols]`; a vector is one row, unless its elements lie in another order.
    shape: [usize; 2],
    rows: Rows,
}

impl GgufModel {
    /// Opens the model in the file at `path`. Of the tensors, only names and shapes are looked at.
    ///
    /// # Errors
    /// The file is damaged, its architecture or one of its features is not supported, or a tensor is missing or has another shape.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Gguf::open(path)?;
        let config = hparams::read(&file)?;
        Self::of(file, config)
    }

    /// The model of the shape `config` in `file`, whatever its metadata say.
    pub(crate) fn of(file: Gguf, config: Config) -> Result<Self> {
        let model = Self { file, config };
        for param in params(&model.config) {
            model.located(&param)?;
        }
        Ok(model)
    }

    /// How `param` is stored in the file.
    ///
    /// # Errors
    /// Never for a parameter of the model; it was found when the file was opened.
    pub fn kind(&self, param: &Param) -> Result<Kind> {
        Ok(self.located(param)?.info.kind)
    }

    /// How many bytes of the file `param` takes.
    ///
    /// # Errors
    /// Never for a parameter of the model; it was found when the file was opened.
    pub fn bytes(&self, param: &Param) -> Result<usize> {
        Ok(self.located(param)?.bytes.len())
    }

    /// Stored bits of all tensors of the model for each of their numbers.
    ///
    /// # Errors
    /// Never for a model that was opened.
    pub fn bits_per_weight(&self) -> Result<f64> {
        let (mut bytes, mut elements) = (0, 0);
        for param in params(&self.config) {
            bytes += self.bytes(&param)?;
            elements += param.shape.iter().product::<usize>();
        }
        Ok(8.0 * bytes as f64 / elements as f64)
    }

    /// The values of `param`.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn values(&self, param: &Param) -> Result<Vec<f32>> {
        let Located { name, info, bytes, shape, rows } = self.located(param)?;
        let values = finite(&self.file, &name, blocks::decode(&name, info.kind, shape, &bytes)?)?;
        Ok(if rows.plain() { values } else { rows.in_our_order(&values, shape[1]) })
    }

    /// The matrix `param` as a runtime takes it.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn stored(&self, param: &Param) -> Result<StoredMatrix> {
        let stored = |storage, bytes| StoredMatrix {
            storage,
            bytes,
            tensor_scale: None,
            activations: Activations::Float,
        };
        if let Some((format, bytes)) = self.packed(param)? {
            return Ok(stored(Storage::Packed(format), bytes));
        }
        let Located { info, bytes, rows, .. } = self.located(param)?;
        let values = self.values(param)?;
        match info.kind.float().filter(|_| rows.plain()) {
            Some(float) => Ok(stored(Storage::Float(float), bytes)),
            None => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Ok(stored(Storage::Float(qat_quant::kernels::FloatType::F32), bytes.into()))
            }
        }
    }

    /// The blocks of `param` if they are those of a format of ours: without a copy if their rows lie in our order.
    fn packed(&self, param: &Param) -> Result<Option<(Format, Bytes)>> {
        let Located { name, info, bytes, shape: [count, cols], rows } = self.located(param)?;
        let (format, bytes) = match (info.kind, info.kind.format()) {
            (_, Some(format)) => (format, bytes),
            (Kind::TQ1_0, _) => (Format::TernaryG256, blocks::tq2_0(&bytes).into()),
            _ => return Ok(None),
        };
        // Codes that only ggml has (−128 of Q8_0, 3 of Q2_0) are no error: they are read as floats.
        if PackedRef::new(&name, format, count, cols, &bytes, None)?.validate(&name).is_err() {
            return Ok(None);
        }
        let bytes =
            if rows.plain() { bytes } else { rows.in_our_order(&bytes, format.row_bytes(cols)).into() };
        Ok(Some((format, bytes)))
    }

    /// What the metadata say of name and licence; without a name, that of the file.
    ///
    /// # Errors
    /// They have something else under the keys of these.
    pub fn base(&self) -> Result<Base> {
        let Gguf { metadata, .. } = &self.file;
        let stem = || self.file.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = metadata.text("general.name")?.map_or_else(stem, str::to_owned);
        Ok(Base { name, license: metadata.text("general.license")?.map(str::to_owned) })
    }

    /// Whether the file has a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        self.file.metadata.get(vocabulary::TOKENS).is_some()
    }

    /// The tokenizer: `tokenizer.json` beside the file, or what the metadata say.
    ///
    /// # Errors
    /// It gives ids that the model doesn't have, or is of a kind that is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let beside = self.file.path().with_file_name(TOKENIZER_FILE);
        if beside.is_file() {
            return load_tokenizer(&beside, self.config.vocab_size);
        }
        parse_tokenizer(self.file.path(), &self.tokenizer_json()?, self.config.vocab_size)
    }

    /// The files of a Hugging Face directory that the metadata speak of: tokenizer, its settings with the chat template.
    ///
    /// # Errors
    /// There is no tokenizer, or one of a kind that is not supported.
    pub fn tokenizer_files(&self) -> Result<[(&'static str, Vec<u8>); 2]> {
        let settings = vocabulary::settings(&self.file.metadata)?;
        Ok([
            (TOKENIZER_FILE, self.tokenizer_json()?),
            (TOKENIZER_CONFIG_FILE, format!("{settings:#}\n").into_bytes()),
        ])
    }

    fn tokenizer_json(&self) -> Result<Vec<u8>> {
        Ok(vocabulary::to_json(&self.file.metadata, self.config.vocab_size)?.to_string().into_bytes())
    }

    fn located(&self, param: &Param) -> Result<Located<'_>> {
        let family = self.config.family;
        // llama.cpp calls a Phi-3's gate and up, in one, what up is called by itself.
        let has = |name: &str| {
            let info = gguf_name(name, family).and_then(|name| self.file.get(&name));
            info.is_some_and(|info| info.shape == param.shape)
        };
        let stored = Stored::of(param, &self.config, has);
        let name = gguf_name(&stored.name, family)
            .ok_or_else(|| Error::tensor(&param.name, "has no name in a GGUF file"))?;
        let (info, bytes) = self.file.tensor(&name)?;
        // Vectors may be stored as matrices of one row, and the other way around.
        let significant = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        if significant(&info.shape) != significant(&stored.shape) {
            let problem = format!(
                "want {:?}, found {:?} (in {})",
                stored.shape,
                info.shape,
                self.file.path().display()
            );
            return Err(Error::tensor(name, problem));
        }
        let bytes = if stored.is_whole() {
            bytes
        } else {
            let row = bytes.len() / stored.shape[0];
            let problem =
                || Error::tensor(&name, format!("has too few rows (in {})", self.file.path().display()));
            bytes.slice(stored.range(row)).ok_or_else(problem)?
        };
        let rows = Rows::of(&param.name, &self.config);
        let shape = match *param.shape.as_slice() {
            [rows, cols] => [rows, cols],
            // Its elements change places as rows do.
            [len] if !rows.plain() => [len, 1],
            _ => [1, param.shape.iter().product()],
        };
        Ok(Located { name, info, bytes, shape, rows })
    }
}

/// The values of a tensor that is no parameter.
pub(super) fn values_of(file: &Gguf, name: &str, [rows, cols]: [usize; 2]) -> Result<Vec<f32>> {
    let (info, bytes) = file.tensor(name)?;
    if info.shape.iter().product::<usize>() != rows * cols {
        let problem =
            format!("want {} values, found {:?} (in {})", rows * cols, info.shape, file.path().display());
        return Err(Error::tensor(name, problem));
    }
    finite(file, name, blocks::decode(name, info.kind, [rows, cols], &bytes)?)
}

fn finite(file: &Gguf, name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => {
            let problem = format!(
                "element {at} is {}; every weight must be finite (in {})",
                values[at],
                file.path().display()
            );
            Err(Error::tensor(name, problem))
        }
    }
}

//! A packed model in the files of another runtime, with the codes it was trained with.
//!
//! Knows no training. Invariants: nothing is rounded again here, a grid that the target can't hold is refused by name; what is
//! written is read back from the disk by a reader of its own, decoded, and is the trained value to the bit before it counts as
//! written; a directory appears whole or not at all.

mod bitnet;
mod card;
mod gguf;
mod hf;
mod mlx;
mod ollama;
mod onnx;
mod requantize;
mod source;
#[cfg(test)]
mod tests;
mod windows;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub use requantize::{Change, Requantized};
pub use source::{Source, SourceTensor};

use qat_quant::Format;
use qat_quant::kernels::FloatType;
use serde_json::json;

use crate::eval::Report;
use crate::files::{PROVENANCE_FILE, StagedDir, Storage, sha256_hex};
use crate::model::{Config, Param};
use crate::{Error, Result};
use card::{CARD_FILE, Card};

/// A runtime whose files can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// GGUF for llama.cpp.
    Gguf,
    /// Hugging Face float weights: the values of the grid.
    Hf,
    /// MLX: codes, scales and biases for mlx-lm and mlx-swift.
    Mlx,
    /// Hugging Face's packed BitNet layers.
    BitNet,
    /// GGUF and a Modelfile.
    Ollama,
    /// ONNX Runtime GenAI: a graph, its data and their configuration.
    Onnx,
}

/// What may be chosen about an export.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How floats (norms, biases, matrices that aren't packed) are stored; the target's own choice by default.
    pub dtype: Option<FloatType>,
    /// GGUF: 256-wide ternary blocks in 54 bytes (TQ1_0) instead of 66 (TQ2_0).
    pub tq1: bool,
    /// Longest context that the files announce; the model's own by default.
    pub context: Option<usize>,
}

/// An export to be made.
#[derive(Debug, Clone, Copy)]
pub struct Export<'a> {
    /// Whose files are written.
    pub target: Target,
    /// What was chosen about them.
    pub options: &'a Options,
    /// Matrices that the target can't hold are rounded again.
    pub requantize: bool,
    /// What the packed model was measured to be; a report of another model is refused.
    pub report: Option<&'a Report>,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The directory.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// What was rounded again.
    pub requantized: Option<Requantized>,
}

/// How one kind of file is written and read.
trait Exporter {
    /// The runtimes that read it, in words.
    fn runtime(&self) -> &'static str;

    /// `library_name` on model hubs.
    fn library(&self) -> &'static str;

    /// How the directory `name` is used, in Markdown.
    fn usage(&self, name: &str) -> String;

    /// Whether the target has models of this shape; else what it lacks and which targets have it.
    fn knows(&self, _config: &Config) -> Result<()> {
        Ok(())
    }

    /// Whether the target has this kind of model at all; else what it lacks and which targets have it.
    fn check(&self, source: &Source, options: &Options) -> Result<()>;

    /// Whether the target can hold, on its own grid and to the bit, what `param` is stored as.
    fn holds(&self, param: &Param, storage: Storage) -> bool;

    /// Bytes of the files that hold `tensors`, if they follow from types and shapes alone. What a file holds beside tensors, a
    /// tokenizer in GGUF, is not counted.
    fn bytes(&self, config: &Config, tensors: &[(Param, Storage)], options: &Options) -> Option<u64>;

    /// Writes all files of the target but the model card.
    fn write(&self, source: &Source, options: &Options, into: &StagedDir) -> Result<()>;

    /// Opens what was written in `dir` with a reader of its own.
    fn read_back<'a>(&self, source: &'a Source, dir: &Path) -> Result<Box<dyn ReadBack + 'a>>;
}

/// A written model, read.
trait ReadBack: Sync {
    /// The values of a tensor in the order of `param`'s shape, decoded from the file.
    fn values(&self, param: &Param) -> Result<Vec<f32>>;

    /// What the file lacks of `param`, because its runtime adds it.
    fn offset(&self, _param: &Param) -> f32 {
        0.0
    }

    /// How floats that are not packed were stored, in case they were rounded: the values agree after the same rounding.
    fn float(&self, param: &Param) -> Result<FloatType>;
}

impl Target {
    /// Every target, in the order in which messages list them.
    pub const ALL: [Self; 6] = [Self::Mlx, Self::Gguf, Self::Ollama, Self::BitNet, Self::Onnx, Self::Hf];

    /// Whether it can hold, to the bit, what `param` is stored as.
    pub fn holds(self, param: &Param, storage: Storage) -> bool {
        self.exporter().holds(param, storage)
    }

    /// Refuses models of a shape that it doesn't have.
    ///
    /// # Errors
    /// Says what it lacks, and which targets have it.
    pub fn knows(self, config: &Config) -> Result<()> {
        self.exporter().knows(config)
    }

    /// Refuses tensors that it can't hold as they are stored.
    ///
    /// # Errors
    /// Names the first one and the formats that would fit.
    pub fn check(self, stored: impl IntoIterator<Item = (Param, Storage)>) -> Result<()> {
        let mut misfits = stored.into_iter().filter(|(param, storage)| !self.holds(param, *storage));
        let Some((first, storage)) = misfits.next() else { return Ok(()) };
        let formats: Vec<String> = self.formats(&first).iter().map(Format::to_string).collect();
        let others = match misfits.count() {
            0 => String::new(),
            n => format!(" (nor {n} more tensors as they are)"),
        };
        let problem = format!(
            "{self} can't hold the grid of {storage}{others}; formats that fit its rows: {}. Train with one of them, or round again with \
             qat export --requantize, which measures what is lost",
            formats.join(", ")
        );
        Err(Error::tensor(&first.name, problem))
    }

    /// Bytes of the files that would hold `tensors`, without a tokenizer; none where these don't follow from types and shapes.
    pub fn bytes(self, config: &Config, tensors: &[(Param, Storage)], options: &Options) -> Option<u64> {
        self.exporter().bytes(config, tensors, options)
    }

    fn library(self) -> &'static str {
        self.exporter().library()
    }

    fn usage(self, name: &str) -> String {
        self.exporter().usage(name)
    }

    fn exporter(self) -> &'static dyn Exporter {
        match self {
            Self::Gguf => &gguf::LlamaCpp,
            Self::Hf => &hf::Hf,
            Self::Mlx => &mlx::Mlx,
            Self::BitNet => &bitnet::BitNet,
            Self::Ollama => &ollama::Ollama,
            Self::Onnx => &onnx::Onnx,
        }
    }

    /// The formats in which the target can hold `param` without rounding it again.
    pub fn formats(self, param: &Param) -> Vec<Format> {
        let fits = |format: &Format| param.shape.last().is_some_and(|&cols| format.fits(cols));
        let exporter = self.exporter();
        Format::all()
            .into_iter()
            .filter(fits)
            .filter(|f| exporter.holds(param, Storage::Packed(*f)))
            .collect()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gguf => "gguf",
            Self::Hf => "hf",
            Self::Mlx => "mlx",
            Self::BitNet => "bitnet",
            Self::Ollama => "ollama",
            Self::Onnx => "onnx",
        })
    }
}

impl std::str::FromStr for Target {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let all = Self::ALL;
        let names = all.map(|target| target.to_string()).join(", ");
        let found = all.into_iter().find(|target| target.to_string() == s);
        found.ok_or_else(|| Error::Invalid(format!("export format {s:?}: want qat, {names}")))
    }
}

impl Export<'_> {
    /// The place where the directory `out` is made. Taken before anything else, so that a long job finds out first.
    ///
    /// # Errors
    /// `out` is not ours to replace, or can't be written.
    pub fn stage(out: &Path) -> Result<StagedDir> {
        StagedDir::create(out, PROVENANCE_FILE)
    }

    /// Writes the packed model in `packed` into `staged`, reads it back, and puts it in place.
    ///
    /// # Errors
    /// The target can't hold the model or one of its tensors as it is; the report is of another model; the disk is full; it
    /// reads back differently.
    pub fn run(&self, packed: &Path, staged: StagedDir) -> Result<Written> {
        let mut source = Source::open(packed)?;
        self.check_report(&source)?;
        self.check_options(&source.config)?;
        let exporter = self.target.exporter();
        exporter.knows(&source.config)?;
        exporter.check(&source, self.options)?;
        let mut requantized = None;
        if self.requantize && self.target.check(source.stored()).is_err() {
            let again = staged.scratch("requantized");
            let changes = requantize::requantize(&source, self.target, &again)?;
            requantized = Some(Requantized { changes, versus: requantize::measure(packed, &again)? });
            source = Source::open(&again)?;
        }
        self.target.check(source.stored())?;
        exporter.write(&source, self.options, &staged)?;
        verify(&source, &*exporter.read_back(&source, staged.path())?)?;
        let bytes = self.describe(&source, requantized.as_ref(), &staged)?;
        let path = staged.target().to_owned();
        drop(source);
        staged.commit()?;
        Ok(Written { path, bytes, requantized })
    }

    /// The longest context that the files announce.
    fn context(&self, config: &Config) -> usize {
        self.options.context.unwrap_or(config.max_position_embeddings)
    }

    /// Refuses what would have no effect.
    fn check_options(&self, config: &Config) -> Result<()> {
        let Self { target, options, .. } = self;
        let is_gguf = matches!(target, Target::Gguf | Target::Ollama);
        if options.tq1 && !is_gguf {
            return Err(Error::Invalid(format!("--tq1: a type of GGUF's; leave it out with {target}")));
        }
        let Some(context) = options.context else { return Ok(()) };
        let longest = config.max_position_embeddings;
        if !is_gguf && *target != Target::Onnx {
            return Err(Error::Invalid(format!(
                "--context: files for {target} don't announce one; leave it out"
            )));
        }
        if !(1..=longest).contains(&context) {
            let problem = format!("--context {context}: want 1 to {longest}, the context of the model");
            return Err(Error::Invalid(problem));
        }
        Ok(())
    }

    fn check_report(&self, source: &Source) -> Result<()> {
        let Some(report) = self.report else { return Ok(()) };
        if report.model_sha256.as_ref() == Some(&source.dir.manifest.identity()) {
            return Ok(());
        }
        Err(Error::Invalid(
            "the report is of another model: score this one with qat eval --json FILE, and name that file"
                .into(),
        ))
    }

    /// Writes the model card and `qat.json`, and gives the bytes of all files.
    fn describe(
        &self,
        source: &Source,
        requantized: Option<&Requantized>,
        staged: &StagedDir,
    ) -> Result<u64> {
        let name = staged.target().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut files = staged.files()?;
        let card = Card { job: self, source, name: &name, requantized, files: &files }.text();
        staged.write(CARD_FILE, card.as_bytes())?;
        files.insert(CARD_FILE.to_owned(), (card.len() as u64, sha256_hex(&[card.as_bytes()])));
        let sums: BTreeMap<&String, &String> =
            files.iter().map(|(name, (_, sha256))| (name, sha256)).collect();
        let provenance = json!({
            "qat": 1,
            "format": self.target.to_string(),
            "model_sha256": source.dir.manifest.identity(),
            "requantized": requantized.map(ToString::to_string),
            "source": source.dir.manifest.source,
            "sha256": sums,
        });
        staged.write(PROVENANCE_FILE, format!("{provenance:#}\n").as_bytes())?;
        Ok(files.values().map(|(bytes, _)| bytes).sum())
    }
}

/// Every tensor that was written is the source's to the bit.
fn verify(source: &Source, written: &dyn ReadBack) -> Result<()> {
    for param in source.params() {
        let tensor = source.tensor(&param)?;
        let float = match source.storage(&param) {
            Storage::Packed(_) => FloatType::F32,
            Storage::Float(_) => written.float(&param)?,
        };
        let (want, found) = (tensor.values()?, written.values(&param)?);
        let offset = written.offset(&param);
        let same = |(a, b): (&f32, &f32)| float.round(*a - offset) + offset == *b;
        if want.len() != found.len() || !want.iter().zip(&found).all(same) {
            let at = want.iter().zip(&found).position(|pair| !same(pair));
            let problem = format!(
                "reads back differently from what was trained{}; is the disk sound?",
                at.map_or(String::new(), |at| format!(
                    " (element {at}: want {}, found {})",
                    want[at], found[at]
                ))
            );
            return Err(Error::tensor(&param.name, problem));
        }
    }
    Ok(())
}

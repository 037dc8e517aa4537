//! Everything that can go wrong between a recipe and a checkpoint, as one enum.
//!
//! A message names the thing, what was wanted, what was found and, where there is one, the fix.

use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of recipes, data and training.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation on a path.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// What was being done, as a verb phrase ("cannot read").
        action: &'static str,
        /// The path it was done to.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file exists but its content is not what it claims to be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The offending file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// A key of a recipe, or an argument, can't be honoured.
    #[error("{0}")]
    Config(String),
    /// The text or the tokens as a whole can't be trained on.
    #[error("{0}")]
    Data(String),
    /// The caller asked for an end before the work was done; nothing half made is left behind.
    #[error("interrupted")]
    Interrupted,
    /// What another rank of the run ended with.
    #[error("rank {rank}: {problem}")]
    Elsewhere {
        /// Which one.
        rank: usize,
        /// What it said.
        problem: String,
    },
    /// Ranks that don't reach or understand each other.
    #[error("{0}")]
    Ranks(String),
    /// A model's files or its definition.
    #[error(transparent)]
    Infer(#[from] qat_infer::Error),
    /// A format can't hold the tensor.
    #[error(transparent)]
    Quant(#[from] qat_quant::Error),
    /// The tensor library.
    #[error("tensor library: {0}")]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// An I/O error about `path` while doing `action`.
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// A malformed file at `path`.
    pub fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), problem: problem.into() }
    }
}

//! Everything that can go wrong between a directory on disk and a score, as one enum.
//!
//! A message names the thing, what was wanted, what was found and, where there is one, the fix.

use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of reading, writing and running models.
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
    /// A tensor is missing, has another shape, or holds values that can't be used.
    #[error("{name}: {problem}")]
    Tensor {
        /// Name of the tensor as the file spells it.
        name: String,
        /// What is wrong, with what was wanted and found.
        problem: String,
    },
    /// An argument that the caller (so, the user) chose can't be honoured.
    #[error("{0}")]
    Invalid(String),
    /// A format can't hold the tensor.
    #[error(transparent)]
    Quant(#[from] qat_quant::Error),
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

    /// A tensor that can't be used.
    pub fn tensor(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), problem: problem.into() }
    }
}

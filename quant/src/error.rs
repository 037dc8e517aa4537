//! What can be wrong with a number format or a matrix offered to it.

/// Errors of formats, packing and packed matrices.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The format or its spelling can't be used here.
    #[error("{0}")]
    Format(String),
    /// A matrix can't be held by, or is not, what its format says.
    #[error("{name}: {problem}")]
    Matrix {
        /// Name of the tensor.
        name: String,
        /// What was wanted and what was found.
        problem: String,
    },
    /// The instruction set that was asked for can't be had.
    #[error("{0}")]
    Isa(String),
}

impl Error {
    /// A problem of the matrix `name`.
    pub(crate) fn matrix(name: &str, problem: impl Into<String>) -> Self {
        Self::Matrix { name: name.to_owned(), problem: problem.into() }
    }
}

//! What can go wrong between a reference and its files.

use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a file of the hub is not here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A spelling that names nothing.
    #[error("{0}")]
    Reference(String),
    /// A repository, revision or file that the hub doesn't have, or not for everybody.
    #[error("{0}")]
    NotFound(String),
    /// A repository whose conditions have to be accepted, or a token that is not enough.
    #[error("{0}")]
    Refused(String),
    /// Offline, and not in the cache.
    #[error(
        "{what}: is not in the cache ({}), and the hub is not to be asked (HF_HUB_OFFLINE): fetch it once while online, or copy the \
         cache here",
        cache.display()
    )]
    NotCached {
        /// What was wanted.
        what: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The hub can't be reached, or breaks off again and again.
    #[error("{url}: {problem}")]
    Network {
        /// The address.
        url: String,
        /// What happened.
        problem: String,
    },
    /// An answer that no hub gives.
    #[error("{url}: {problem}")]
    Answer {
        /// The address.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What arrived is not what was sent.
    #[error(
        "{file}: arrived damaged twice ({problem}); what sits between here and the hub changes files, or its copy is damaged"
    )]
    Damaged {
        /// Name in the repository.
        file: String,
        /// What differs.
        problem: String,
    },
    /// The disk.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Of what.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl Error {
    /// An error of the system while `doing` something to `path`.
    pub(crate) fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }
}

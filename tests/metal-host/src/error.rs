//! What can go wrong, in words that name the kernel, the place and what to do.

use std::{fmt, path::PathBuf};

/// Why a library could not be compiled, a kernel not be run, or what it did that it must not.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No compiler.
    #[error("{0}")]
    Missing(String),
    /// A file of the cache.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        message: String,
    },
    /// The emulator does not understand the source.
    #[error("{library}:{line}: {message}")]
    Source {
        /// Name of the library.
        library: String,
        /// Line of the source.
        line: u32,
        /// What was wanted.
        message: String,
    },
    /// The compiler refuses the source.
    #[error("{library}: the compiler refuses {what}:\n{log}")]
    Compile {
        /// Name of the library.
        library: String,
        /// A kernel, or what else was compiled.
        what: String,
        /// What the compiler says.
        log: String,
    },
    /// The launch doesn't fit the kernel.
    #[error("kernel {kernel}: {message}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What was wanted and what was given.
        message: String,
    },
    /// The kernel ran, and did what it must not.
    #[error("kernel {kernel}: {} found{}", count(violations), list(violations))]
    Violations {
        /// The kernel.
        kernel: String,
        /// Each kind of violation at each place once.
        violations: Vec<Violation>,
    },
    /// A mutation was asked for (see `QAT_METAL_MUTATION_FIND`) and can't be planted.
    #[error("mutation of {library}: {message}")]
    Mutation {
        /// Name of the library.
        library: String,
        /// Why not.
        message: String,
    },
}

/// Something that a kernel did and must not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Of what kind.
    pub kind: Kind,
    /// What happened, with buffer and offset.
    pub message: String,
    /// Position of the threadgroup in the grid.
    pub threadgroup: [u32; 3],
    /// Index of the thread in its threadgroup; none if it concerns several.
    pub thread: Option<u32>,
    /// `file:line` of the source, or the address of the instruction where that isn't known.
    pub place: String,
}

/// Kinds of violations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An access outside of every buffer, or past the end of one.
    OutOfBounds,
    /// A read of what nobody wrote.
    Uninitialised,
    /// Two accesses, one of them a write, that nothing orders.
    Race,
    /// A write to a buffer bound for reading.
    ReadOnly,
    /// What C++ and Metal leave undefined: misaligned vectors, shifts, divisions by zero, …
    Undefined,
    /// Lanes of a simdgroup, or threads of a threadgroup, that wait at different places, or are gone.
    Divergence,
    /// More than 32 KiB of threadgroup memory.
    ThreadgroupMemory,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfBounds => "out of bounds",
            Self::Uninitialised => "uninitialised read",
            Self::Race => "race",
            Self::ReadOnly => "write to a read-only buffer",
            Self::Undefined => "undefined behaviour",
            Self::Divergence => "divergence",
            Self::ThreadgroupMemory => "too much threadgroup memory",
        })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [x, y, z] = self.threadgroup;
        write!(f, "{}: {} · threadgroup ({x}, {y}, {z})", self.kind, self.message)?;
        if let Some(thread) = self.thread {
            write!(f, " thread {thread}")?;
        }
        write!(f, " · {}", self.place)
    }
}

fn count(violations: &[Violation]) -> String {
    match violations.len() {
        1 => "1 violation".into(),
        n => format!("{n} violations"),
    }
}

fn list(violations: &[Violation]) -> String {
    violations.iter().map(|v| format!("\n  {v}")).collect()
}

//! Products and lookups for Apple's GPUs, over the same blocks that lie in a file: nothing is repacked.
//!
//! This side is plain data and compiled everywhere: the sources (`*.metal`), and what the GPU is to be told to run. It
//! knows no device, no buffers and no model; whoever has a device binds buffers to the places listed at [`Product`] and
//! [`Gather`] and dispatches the [`Launch`].
//!
//! Invariant: a source needs no file beside it. A [`Library`] is one string, and that very string is what is compiled
//! on the chip and what the tests run on the host.

mod gather;
mod product;
mod storage;

pub use gather::Gather;
pub use product::{Epilogue, Matrix, Product};
pub use storage::Storage;

/// The value of a function constant of the Metal shading language.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Constant {
    /// `constant bool`
    Bool(bool),
    /// `constant uint`
    U32(u32),
    /// `constant float`
    F32(f32),
}

/// The source of one Metal library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Library {
    /// What a [`Launch`] calls it, unique among all libraries of a program.
    pub name: &'static str,
    /// Everything that is compiled: it includes nothing but Metal's own headers.
    pub source: &'static str,
}

/// What the GPU is told to run: everything but the buffers.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// [`Library::name`] of the source that has the kernel.
    pub library: &'static str,
    /// The kernel's `host_name`.
    pub kernel: &'static str,
    /// Function constants by index, ascending: all that the kernel reads.
    pub constants: Vec<(u16, Constant)>,
    /// Threadgroups of the grid.
    pub groups: [u32; 3],
    /// Threads of a threadgroup, a multiple of the 32 of a simdgroup.
    pub threads: [u32; 3],
    /// Threadgroup memory to bind at index 0, in bytes; 0 where the kernel declares all of its own.
    pub threadgroup_bytes: u32,
}

/// A launch, the bytes of its shape, and the memory that it moves.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// What to run.
    pub launch: Launch,
    /// What to bind at the place of the shape (`constant Shape&`), as the GPU reads it.
    pub shape: Vec<u8>,
    /// Bytes read from buffers, each byte that is needed counted once.
    pub bytes_read: u64,
    /// Bytes written to buffers.
    pub bytes_written: u64,
}

/// Every library of this module.
pub const LIBRARIES: [Library; 4] = [product::MATVEC, product::MATFEW, product::MATMUL, gather::GATHER];

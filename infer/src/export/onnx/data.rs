//! `model.onnx.data`: the elements of all large tensors, one behind the other.
//!
//! Knows no tensor's meaning. Invariants: one tensor at a time is in memory; what is large enough to be mapped begins where
//! any system can map a file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::Result;
use crate::files::write_error;

/// Name of the data file; `model.onnx` refers to it by this name.
pub(super) const DATA_FILE: &str = "model.onnx.data";

/// Bytes from which on a tensor is mapped rather than read.
const LARGE: usize = 1 << 20;
/// Where a mapping may begin: a page on most systems is 4 or 16 KiB, but Windows maps in steps of 64 KiB.
const MAPPED: u64 = 1 << 16;
/// Where a small tensor begins: a cache line, enough for every vector load.
const ALIGNED: u64 = 64;

/// Where a tensor lies in the data file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub offset: u64,
    pub len: u64,
}

/// The data file in the making.
#[derive(Debug)]
pub(super) struct DataWriter {
    path: PathBuf,
    file: BufWriter<File>,
    end: u64,
}

impl DataWriter {
    /// Begins the file in `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        let path = dir.join(DATA_FILE);
        let file = File::create(&path).map_err(|e| write_error(&path, e))?;
        Ok(Self { path, file: BufWriter::with_capacity(1 << 20, file), end: 0 })
    }

    /// Appends the elements of a tensor.
    pub fn add(&mut self, bytes: &[u8]) -> Result<Extent> {
        let step = if bytes.len() >= LARGE { MAPPED } else { ALIGNED };
        let offset = self.end.next_multiple_of(step);
        let gap = vec![0; (offset - self.end) as usize];
        let written = self.file.write_all(&gap).and_then(|()| self.file.write_all(bytes));
        written.map_err(|e| write_error(&self.path, e))?;
        let len = bytes.len() as u64;
        self.end = offset + len;
        Ok(Extent { offset, len })
    }

    /// Hands everything to the system.
    pub fn finish(self) -> Result<()> {
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        let synced = file.and_then(|file| file.sync_all());
        synced.map_err(|e: std::io::Error| write_error(&self.path, e))
    }
}

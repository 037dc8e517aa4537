//! Files as memory: a read-only map that several tensors share, and the byte ranges cut from it.
//!
//! Knows no format. Invariant: a [`Bytes`] never outlives what it points into, and its range was checked
//! when it was cut, so that reading it can't fail.
//!
//! A map trusts the file system: if another process truncates the file while it is mapped, the system
//! ends this process (SIGBUS). Everything this crate writes is renamed into place for that reason, never
//! rewritten.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A whole file, mapped read-only. Cloning shares the map.
#[derive(Clone, Debug)]
pub struct Mapped(Arc<Mmap>);

impl Mapped {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// When the file can't be opened or is not a regular file.
    #[expect(unsafe_code, reason = "mapping a file is the one thing that the standard library can't do")]
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("cannot open", path, e))?;
        let meta = file.metadata().map_err(|e| Error::io("cannot read", path, e))?;
        if !meta.is_file() {
            return Err(Error::file(path, "is not a regular file"));
        }
        // SAFETY: the map is private to this value, read-only, and only ever handed out as `&[u8]`, for which
        // every byte pattern is valid. What remains is truncation by others, which the module states.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("cannot map into memory", path, e))?;
        Ok(Self(Arc::new(map)))
    }

    /// The bytes `range` of the file, or `None` when the file is shorter.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        self.get(range.clone())?;
        Some(Bytes { source: Source::Mapped(self.clone()), range })
    }

    /// Lets go of the memory that the map takes. It stays readable, from the file.
    pub fn release(&self) {
        // Advice: what the system makes of it changes no byte.
        #[cfg(unix)]
        let _ = release(&self.0, &(0..self.len()));
    }
}

/// How a file's pages are let go of.
#[cfg(unix)]
#[expect(unsafe_code, reason = "advice that may drop pages is unsafe in general")]
fn release(map: &Mmap, range: &Range<usize>) -> std::io::Result<()> {
    // SAFETY: dropping pages loses what was written to them and not to a file. This map is never written: what is read
    // again is read from the file again.
    unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// A run of bytes that keeps alive what it was cut from: a mapped file or a buffer in memory.
#[derive(Clone, Debug)]
pub struct Bytes {
    source: Source,
    range: Range<usize>,
}

#[derive(Clone, Debug)]
enum Source {
    Mapped(Mapped),
    Owned(Arc<Vec<u8>>),
}

impl Bytes {
    /// Those in `range`, or `None` when there are fewer.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start;
        Some(Self { source: self.source.clone(), range: start + range.start..start + range.end })
    }

    /// All the bytes of the file or buffer that these were cut from.
    pub fn whole(&self) -> Self {
        let len = match &self.source {
            Source::Mapped(map) => map.len(),
            Source::Owned(bytes) => bytes.len(),
        };
        Self { source: self.source.clone(), range: 0..len }
    }

    /// Where they begin in the [whole](Self::whole).
    pub fn offset(&self) -> usize {
        self.range.start
    }

    /// Whether they are pages of a file; else they were allocated.
    pub fn is_mapped(&self) -> bool {
        matches!(self.source, Source::Mapped(_))
    }

    /// Lets go of the memory that mapped bytes take once they have been read. They stay readable, from the file.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Source::Mapped(Mapped(map)) = &self.source {
            // Advice: what the system makes of it changes no byte.
            let _ = release(map, &self.range);
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { source: Source::Owned(Arc::new(bytes)), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.source {
            Source::Mapped(map) => map,
            Source::Owned(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}

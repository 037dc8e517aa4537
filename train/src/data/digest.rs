//! The identity of a large content: SHA-256 over the SHA-256s of its consecutive 16 MiB chunks.
//!
//! Knows no file format. Chunks make the digest parallel on files and memory and incremental on streams;
//! the three ways agree to the bit, whatever the number of threads.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Bytes under one inner SHA-256. Part of the definition: another size is another digest.
const CHUNK: usize = 16 << 20;

/// Chunks of a file between two reports of how much is read.
const BETWEEN_REPORTS: usize = 32;

/// A chunked SHA-256 that is fed piece by piece.
#[derive(Clone, Default)]
pub(super) struct Digester {
    outer: Sha256,
    inner: Sha256,
    filled: usize,
}

impl Digester {
    /// One that has taken `len` bytes of the file at `path` from `start` on.
    pub(super) fn over(path: &Path, start: u64, len: u64) -> std::io::Result<Self> {
        let (whole, rest) = (len / CHUNK as u64, len % CHUNK as u64);
        let mut digester = Self::default();
        for digest in chunks(path, start, 0..whole, len)? {
            digester.outer.update(digest);
        }
        read(path, start + whole * CHUNK as u64, rest, |bytes| digester.update(bytes))?;
        Ok(digester)
    }

    /// Takes the next bytes of the content.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.filled));
            self.inner.update(now);
            self.filled += now.len();
            if self.filled == CHUNK {
                self.close_chunk();
            }
            bytes = later;
        }
    }

    /// The digest of everything taken.
    pub(super) fn finish(mut self) -> [u8; 32] {
        if self.filled > 0 {
            self.close_chunk();
        }
        self.outer.finalize().into()
    }

    fn close_chunk(&mut self) {
        self.outer.update(self.inner.finalize_reset());
        self.filled = 0;
    }
}

/// The digest of bytes in memory.
#[cfg(test)]
pub(super) fn of_bytes(bytes: &[u8]) -> [u8; 32] {
    let chunks: Vec<_> = bytes.par_chunks(CHUNK).map(Sha256::digest).collect();
    let mut outer = Sha256::new();
    chunks.iter().for_each(|chunk| outer.update(chunk));
    outer.finalize().into()
}

/// The digest of a file's content, chunks in parallel, in memory that does not grow with the file. `seen` is told how many bytes were
/// read, and may break.
///
/// # Errors
/// A file that can't be read; [`Error::Interrupted`].
pub(super) fn of_file(path: &Path, seen: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<[u8; 32]> {
    let len = std::fs::metadata(path).map_err(|e| Error::io("cannot read", path, e))?.len();
    of_range(path, 0, len, seen)
}

/// The digest of `len` bytes of the file at `path` from `start` on, as [`of_file`].
///
/// # Errors
/// Those of [`of_file`]; a file that is shorter.
pub(super) fn of_range(
    path: &Path,
    start: u64,
    len: u64,
    seen: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<[u8; 32]> {
    let all = len.div_ceil(CHUNK as u64);
    let mut outer = Sha256::new();
    for first in (0..all).step_by(BETWEEN_REPORTS) {
        let some = first..all.min(first + BETWEEN_REPORTS as u64);
        let end = len.min(some.end * CHUNK as u64);
        let digests = chunks(path, start, some, len).map_err(|e| Error::io("cannot read", path, e))?;
        digests.iter().for_each(|digest| outer.update(digest));
        if seen(end).is_break() {
            return Err(Error::Interrupted);
        }
    }
    Ok(outer.finalize().into())
}

/// The digests of some chunks of the `len` bytes that lie in the file at `path` from `start` on, in parallel.
fn chunks(path: &Path, start: u64, numbers: Range<u64>, len: u64) -> std::io::Result<Vec<[u8; 32]>> {
    let chunk = |number: u64| {
        let at = number * CHUNK as u64;
        let mut hash = Sha256::new();
        read(path, start + at, (len - at).min(CHUNK as u64), |bytes| hash.update(bytes))?;
        Ok(hash.finalize().into())
    };
    numbers.into_par_iter().map(chunk).collect()
}

/// Gives `take` all of the `len` bytes of the file at `path` from `start` on.
fn read(path: &Path, start: u64, len: u64, mut take: impl FnMut(&[u8])) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let (mut rest, mut left) = (file.take(len), len);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match rest.read(&mut buffer)? {
            0 if left > 0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            0 => return Ok(()),
            read => {
                take(&buffer[..read]);
                left -= read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_memory_and_file_agree_around_the_chunk_size() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 12345] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let path = dir.path().join("content");
            std::fs::write(&path, &bytes).unwrap();
            let mut stream = Digester::default();
            for part in bytes.chunks(1_000_003) {
                stream.update(part);
            }
            let expected = of_bytes(&bytes);
            assert_eq!(stream.finish(), expected, "stream of {len} bytes");
            assert_eq!(
                of_file(&path, &mut |_| ControlFlow::Continue(())).unwrap(),
                expected,
                "file of {len} bytes"
            );
            assert_eq!(
                Digester::over(&path, 0, len as u64).unwrap().finish(),
                expected,
                "begun with {len} bytes"
            );
        }
    }

    #[test]
    fn a_digest_goes_on_behind_what_a_file_has_and_can_be_broken_off() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..CHUNK + 70_000).map(|i| (i * 7 % 253) as u8).collect();
        let path = dir.path().join("content");
        std::fs::write(&path, &bytes).unwrap();
        let (start, len) = (120, CHUNK as u64 + 1000);
        let mut digester = Digester::over(&path, start, len).unwrap();
        digester.update(&bytes[(start + len) as usize..]);
        assert_eq!(digester.finish(), of_bytes(&bytes[start as usize..]));
        assert!(Digester::over(&path, start, bytes.len() as u64).is_err(), "there are not so many");
        let broken = of_file(&path, &mut |_| ControlFlow::Break(()));
        assert!(matches!(broken, Err(Error::Interrupted)));
    }

    #[test]
    fn one_chunk_is_the_sha256_of_its_sha256() {
        let expected: [u8; 32] = Sha256::digest(Sha256::digest(b"abc")).into();
        assert_eq!(of_bytes(b"abc"), expected);
    }
}

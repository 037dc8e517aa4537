//! The identity of a large content: SHA-256 over the SHA-256s of its consecutive 16 MiB chunks.
//!
//! Knows no file format. Chunks make the digest parallel on files and memory maps and incremental on streams;
//! the three ways agree to the bit, whatever the number of threads.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Bytes under one inner SHA-256. Part of the definition: another size is another digest.
const CHUNK: usize = 16 << 20;

/// A chunked SHA-256 that is fed piece by piece.
#[derive(Default)]
pub(super) struct Digester {
    outer: Sha256,
    inner: Sha256,
    filled: usize,
}

impl Digester {
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

/// The digest of bytes in memory (or in a memory map), chunks in parallel.
pub(super) fn of_bytes(bytes: &[u8]) -> [u8; 32] {
    let chunks: Vec<_> = bytes.par_chunks(CHUNK).map(Sha256::digest).collect();
    over(chunks)
}

/// The digest of a file's content, chunks in parallel, in memory that does not grow with the file.
pub(super) fn of_file(path: &Path) -> Result<[u8; 32]> {
    let cannot_read = |source| Error::io("cannot read", path, source);
    let len = std::fs::metadata(path).map_err(cannot_read)?.len();
    let chunk_of = |index: u64| -> std::io::Result<_> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(index * CHUNK as u64))?;
        let mut rest = file.take(CHUNK as u64);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match rest.read(&mut buffer)? {
                0 => return Ok(hash.finalize()),
                read => hash.update(&buffer[..read]),
            }
        }
    };
    let chunks =
        (0..len.div_ceil(CHUNK as u64)).into_par_iter().map(chunk_of).collect::<std::io::Result<_>>();
    Ok(over(chunks.map_err(cannot_read)?))
}

fn over(chunks: Vec<impl AsRef<[u8]>>) -> [u8; 32] {
    let mut outer = Sha256::new();
    for chunk in chunks {
        outer.update(chunk);
    }
    outer.finalize().into()
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
            assert_eq!(of_file(&path).unwrap(), expected, "file of {len} bytes");
        }
    }

    #[test]
    fn one_chunk_is_the_sha256_of_its_sha256() {
        let expected: [u8; 32] = Sha256::digest(Sha256::digest(b"abc")).into();
        assert_eq!(of_bytes(b"abc"), expected);
    }
}

//! Tokens on disk: a header and the ids, mapped into memory.
//!
//! Knows no text and no tokenizer. Invariant: a [`Tokens`] was checked whole when it was opened — length, checksum
//! and key — so that reading from it can't fail.
//!
//! The layout, all numbers little-endian:
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | magic `QATTOKEN` |
//! | 8 | 4 | version, 1; 2 where ids carry marks in their four highest bits |
//! | 12 | 4 | bytes of an id: 2 if the vocabulary has at most 65,536 ids, else 4 |
//! | 16 | 8 | vocabulary size; every id is below it |
//! | 24 | 8 | number of ids |
//! | 32 | 8 | number of documents |
//! | 40 | 8 | number of nulls skipped in the sources |
//! | 48 | 8 | bytes of text tokenized |
//! | 56 | 32 | key: SHA-256 of everything that decides the ids |
//! | 88 | 32 | checksum: SHA-256 of bytes 0..88 and the digest of the ids |
//! | 120 | … | the ids |
//!
//! The digest of the ids is SHA-256 over the SHA-256s of their consecutive 16 MiB chunks.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qat_infer::files::Mapped;
use sha2::{Digest, Sha256};

use super::chat::Census;
use super::digest;
use super::packed::Marked;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"QATTOKEN";

/// Version of the layout.
pub(super) const VERSION: u32 = 1;

/// The same of files whose ids carry marks ([`super::packed`]): windows of whole documents. Their ids take 4 bytes.
pub(super) const MARKED: u32 = 2;

/// Bytes before the first id.
pub(super) const HEADER_BYTES: usize = 120;
/// Bytes of the header under its checksum.
const CHECKED_BYTES: usize = 88;
// An id never straddles its alignment in the map.
const _: () = assert!(HEADER_BYTES.is_multiple_of(4) && CHECKED_BYTES + 32 == HEADER_BYTES);

/// What a token file says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Vocabulary size; every id is below it.
    pub vocab_size: u64,
    /// Number of ids.
    pub tokens: u64,
    /// Number of documents that they come from.
    pub documents: u64,
    /// Nulls of JSON Lines and Parquet that were passed over.
    pub skipped: u64,
    /// Bytes of text that was tokenized.
    pub text_bytes: u64,
    /// SHA-256 of everything that decides the ids.
    pub key: [u8; 32],
    /// Whether ids carry marks.
    pub marked: bool,
}

impl Header {
    /// Version of the file.
    pub(super) fn version(&self) -> u32 {
        if self.marked { MARKED } else { VERSION }
    }

    /// Bytes that an id takes.
    pub(super) fn id_bytes(&self) -> usize {
        if self.vocab_size <= 1 << 16 && !self.marked { 2 } else { 4 }
    }

    /// The header as it stands in the file before ids with the digest `ids`.
    pub(super) fn to_bytes(self, ids: [u8; 32]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&self.version().to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.id_bytes() as u32).to_le_bytes());
        let numbers = [self.vocab_size, self.tokens, self.documents, self.skipped, self.text_bytes];
        for (slot, number) in bytes[16..56].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        bytes[56..CHECKED_BYTES].copy_from_slice(&self.key);
        let checksum = Sha256::new().chain_update(&bytes[..CHECKED_BYTES]).chain_update(ids).finalize();
        bytes[CHECKED_BYTES..].copy_from_slice(&checksum);
        bytes
    }

    /// The header of a whole, undamaged token file, or what is wrong with it; `digest` is that of a number of bytes of ids.
    fn of(file: &[u8], digest: impl FnOnce(usize) -> Result<[u8; 32]>) -> Result<Self, String> {
        let Some((header, ids)) = file.split_at_checked(HEADER_BYTES) else {
            return Err(format!("{} bytes, too short for the header of a token file", file.len()));
        };
        if &header[..8] != MAGIC {
            return Err("does not begin as a token file".to_owned());
        }
        let mut version = [0; 4];
        version.copy_from_slice(&header[8..12]);
        let version = u32::from_le_bytes(version);
        if ![VERSION, MARKED].contains(&version) {
            return Err(format!("version {version}, want {VERSION} or {MARKED}"));
        }
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let mut key = [0; 32];
        key.copy_from_slice(&header[56..CHECKED_BYTES]);
        let found = Self {
            vocab_size: number(16),
            tokens: number(24),
            documents: number(32),
            skipped: number(40),
            text_bytes: number(48),
            key,
            marked: version == MARKED,
        };
        let wanted = u128::from(found.tokens) * found.id_bytes() as u128;
        if wanted != ids.len() as u128 {
            return Err(format!("{} bytes of ids, want {wanted}", ids.len()));
        }
        if found.to_bytes(digest(ids.len()).map_err(|e| e.to_string())?) != header {
            return Err("the checksum does not match the content".to_owned());
        }
        Ok(found)
    }
}

/// A run of tokens in a mapped token file: the whole file, or a part that [`Tokens::split`] made. Cloning shares
/// the map.
#[derive(Debug, Clone)]
pub struct Tokens {
    file: Mapped,
    path: PathBuf,
    header: Header,
    range: Range<usize>,
    /// Bytes of the map that may be in memory, about.
    touched: Arc<AtomicU64>,
}

/// Bytes of the map that stay in memory, about: a batch of windows is looked at once in an epoch.
const HELD: u64 = 64 << 20;

/// What the system maps around a byte that is touched: 64 KiB, or a large page where the file lies in such (seen on Linux 6.18 with ext4).
const AROUND: u64 = 2 << 20;

impl Tokens {
    /// Maps the token file at `path` and checks it whole, in parallel.
    ///
    /// # Errors
    /// A file that can't be read, and one that is truncated, damaged or no token file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Mapped::open(path)?;
        // Read and not mapped, so that looking at a file doesn't take the memory of the file.
        let digest = |len: usize| {
            digest::of_range(path, HEADER_BYTES as u64, len as u64, &mut |_| ControlFlow::Continue(()))
        };
        let header = Header::of(&file, digest).map_err(|problem| Error::file(path, problem))?;
        let tokens = usize::try_from(header.tokens)
            .map_err(|_| Error::file(path, "more tokens than this machine can address"))?;
        Ok(Self { file, path: path.to_owned(), header, range: 0..tokens, touched: Arc::default() })
    }

    /// Number of tokens of this run.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether this run has no tokens.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Whether its ids carry marks: windows of whole documents.
    pub(super) fn is_marked(&self) -> bool {
        self.header.marked
    }

    /// The tokens at `range` of this run, as training takes them.
    ///
    /// # Panics
    /// When `range` reaches beyond the run.
    pub fn marked(&self, range: Range<usize>) -> Vec<Marked> {
        self.slice(range).into_iter().map(|token| Marked::of(token, self.is_marked())).collect()
    }

    /// What the windows of whole documents in this run hold.
    pub fn census(&self) -> Census {
        const AT_ONCE: usize = 1 << 20;
        let parts = (0..self.len()).step_by(AT_ONCE).map(|at| at..self.len().min(at + AT_ONCE));
        Census::of(parts.flat_map(|part| self.slice(part)))
    }

    /// What the file says about the whole of it.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The token file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ids at `range` of this run.
    ///
    /// # Panics
    /// When `range` reaches beyond the run.
    pub fn slice(&self, range: Range<usize>) -> Vec<u32> {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {} tokens", self.len());
        let width = self.header.id_bytes();
        let at = |token: usize| HEADER_BYTES + (self.range.start + token) * width;
        let bytes = &self.file[at(range.start)..at(range.end)];
        let ids = match width {
            2 => bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect(),
            _ => bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        };
        let touched = bytes.len() as u64 + AROUND;
        if self.touched.fetch_add(touched, Ordering::Relaxed) + touched >= HELD {
            self.touched.store(0, Ordering::Relaxed);
            self.file.release();
        }
        ids
    }

    /// Divides the run into a part to train on and a held-out tail of `held_out` of the tokens, in whole windows of
    /// `window` tokens (at least one unless `held_out` is 0).
    ///
    /// # Errors
    /// A share outside 0..1, and a train part without a whole window.
    pub fn split(&self, held_out: f64, window: usize) -> Result<(Self, Self)> {
        if !(0.0..1.0).contains(&held_out) {
            return Err(Error::Config(format!(
                "held_out: want a share of at least 0 and below 1 such as 0.01, found {held_out}"
            )));
        }
        let windows = (self.len() as f64 * held_out / window as f64) as usize;
        let tail = if held_out == 0.0 { 0 } else { windows.max(1) * window };
        let train = self.len().saturating_sub(tail);
        if train < window {
            return Err(Error::Data(format!(
                "{} tokens, of which held_out {held_out} takes {tail}, leave less than one window of {window} \
                 tokens to train on; add data, or lower the context or held_out",
                self.len()
            )));
        }
        let part = |range| Self { range, ..self.clone() };
        let middle = self.range.start + train;
        Ok((part(self.range.start..middle), part(middle..self.range.end)))
    }
}

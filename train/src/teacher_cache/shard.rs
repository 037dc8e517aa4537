//! A file with the records of some consecutive windows, whole or not at all.
//!
//! The layout, all numbers little-endian:
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | magic `QATTEACH` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | bytes of a record |
//! | 16 | 8 | first window |
//! | 24 | 8 | number of windows |
//! | 32 | 8 | records of a window |
//! | 40 | 32 | SHA-256 of what the cache was made of (see [`super::Identity`]) |
//! | 72 | 32 | SHA-256 of bytes 0..72 and the records |
//! | 104 | … | the records |
//!
//! Invariant: a [`Shard`] was checked whole when it was opened, so that reading from it can't fail.

use std::{ops::Range, path::Path};

use qat_infer::files::{Mapped, write_file_atomic};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::record::Layout;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"QATTEACH";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 104;
/// Bytes of the header under its checksum.
const CHECKED_BYTES: usize = 72;

/// What a shard has to be.
#[derive(Debug, Clone)]
pub struct Place {
    /// Windows it holds.
    pub windows: Range<u64>,
    /// Records of a window.
    pub ctx: usize,
    /// What a record is.
    pub layout: Layout,
    /// Digest of what the cache was made of.
    pub identity: [u8; 32],
}

impl Place {
    fn count(&self) -> u64 {
        self.windows.end - self.windows.start
    }

    /// The bytes under the checksum.
    fn header(&self) -> [u8; CHECKED_BYTES] {
        let mut bytes = [0; CHECKED_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.layout.record_bytes() as u32).to_le_bytes());
        let numbers = [self.windows.start, self.count(), self.ctx as u64];
        for (slot, number) in bytes[16..40].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        bytes[40..].copy_from_slice(&self.identity);
        bytes
    }

    /// Bytes of all records.
    pub fn bytes(&self) -> usize {
        self.count() as usize * self.ctx * self.layout.record_bytes()
    }

    /// Writes the shard with `records` to `path`.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&self, path: &Path, records: &[u8]) -> Result<()> {
        let header = self.header();
        let checksum = Sha256::new().chain_update(header).chain_update(records).finalize();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + records.len());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&checksum);
        bytes.extend_from_slice(records);
        Ok(write_file_atomic(path, &bytes)?)
    }
}

/// A shard in memory.
#[derive(Debug)]
pub struct Shard {
    file: Mapped,
    window_bytes: usize,
}

impl Shard {
    /// Maps the file at `path`, which has to be `place`.
    ///
    /// # Errors
    /// A file that can't be read; one that is cut off, damaged, of another place or cache, or with records that are none.
    pub fn open(path: &Path, place: &Place) -> Result<Self> {
        let file = Mapped::open(path)?;
        check(&file, place).map_err(|problem| Error::file(path, problem))?;
        Ok(Self { file, window_bytes: place.ctx * place.layout.record_bytes() })
    }

    /// The records of the window number `index` of this shard.
    pub fn window(&self, index: usize) -> &[u8] {
        &self.file[HEADER_BYTES + index * self.window_bytes..][..self.window_bytes]
    }
}

fn check(file: &[u8], place: &Place) -> Result<(), String> {
    let Some((header, records)) = file.split_at_checked(HEADER_BYTES) else {
        return Err(format!("{} bytes, too short for the header of a teacher's shard", file.len()));
    };
    let (checked, checksum) = header.split_at(CHECKED_BYTES);
    if &checked[..8] != MAGIC {
        return Err("does not begin as a teacher's shard".to_owned());
    }
    if checked != place.header() {
        return Err("holds other windows, or those of another cache".to_owned());
    }
    if records.len() != place.bytes() {
        return Err(format!("{} bytes of records, want {}", records.len(), place.bytes()));
    }
    if Sha256::new().chain_update(checked).chain_update(records).finalize()[..] != *checksum {
        return Err("the checksum does not match the content".to_owned());
    }
    // A file can be whole and lie all the same.
    records.par_chunks_exact(place.layout.record_bytes()).try_for_each(|record| place.layout.check(record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        let layout = Layout { vocab: 8, top_k: 2, temperature: 1.0 };
        Place { windows: 64..66, ctx: 3, layout, identity: [7; 32] }
    }

    /// A good shard's bytes.
    fn good(path: &Path) -> Vec<u8> {
        let place = place();
        let mut records = vec![0; place.bytes()];
        for (i, record) in records.chunks_exact_mut(place.layout.record_bytes()).enumerate() {
            let logits: Vec<f32> = (0..8).map(|id| ((id * 5 + i * 3) % 7) as f32).collect();
            place.layout.encode(&logits, record).expect("finite");
        }
        place.write(path, &records).expect("a free disk");
        let shard = Shard::open(path, &place).expect("a good shard");
        assert!([shard.window(0), shard.window(1)].concat() == records);
        std::fs::read(path).expect("a shard")
    }

    #[test]
    fn what_is_cut_off_damaged_or_not_what_is_wanted_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("shard");
        let good = good(&path);
        let refused = |bytes: &[u8], place: &Place| {
            std::fs::write(&path, bytes).expect("a free disk");
            let m = Shard::open(&path, place).expect_err("refused").to_string();
            assert!(m.starts_with(&path.display().to_string()), "{m}");
            m
        };
        for len in [0, 50, HEADER_BYTES - 1] {
            assert!(refused(&good[..len], &place()).contains("too short for the header"));
        }
        assert!(refused(&good[..good.len() - 1], &place()).contains("71 bytes of records, want 72"));
        assert!(refused(&[&good[..], b"x"].concat(), &place()).contains("73 bytes of records, want 72"));
        let with = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        assert!(refused(&with(0), &place()).contains("does not begin as a teacher's shard"));
        for at in [8, 12, 16, 24, 32, 40, 71] {
            assert!(refused(&with(at), &place()).contains("holds other windows"), "byte {at}");
        }
        for at in [72, 103, 104, good.len() - 1] {
            assert!(refused(&with(at), &place()).contains("the checksum does not match"), "byte {at}");
        }
        assert!(refused(&good, &Place { windows: 0..2, ..place() }).contains("holds other windows"));
        assert!(refused(&good, &Place { identity: [8; 32], ..place() }).contains("another cache"));
    }

    #[test]
    fn a_whole_file_with_records_that_lie_is_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("shard");
        let mut records = good(&path)[HEADER_BYTES..].to_vec();
        records[0] = 200;
        place().write(&path, &records).expect("a free disk");
        let m = Shard::open(&path, &place()).expect_err("refused").to_string();
        assert!(m.contains("ids that don't ascend below 8"), "{m}");
    }
}

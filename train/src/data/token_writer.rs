//! Writes a token file aside and puts it in its place when it is whole.
//!
//! Knows no text. Invariants: the final name appears only with the last byte on the disk; memory does not grow with
//! the file; a writer that is dropped before its end leaves nothing behind. (A killed one leaves `KEY.tokens.*.part`,
//! which a later writer sweeps.)

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::digest::Digester;
use super::packed::ID;
use super::token_file::{HEADER_BYTES, Header};
use crate::{Error, Result};

const CANNOT_WRITE: &str = "cannot write tokens (the folder must be writable and have room)";

/// A live writer touches its file every few seconds; one untouched for this long belongs to a killed process.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A token file in the making.
pub(super) struct TokenWriter {
    target: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    ids: Digester,
    header: Header,
}

impl TokenWriter {
    /// Begins the file that will be at `target`; missing folders are made. `header` has the key and the vocabulary;
    /// its counts are kept by the writer.
    pub(super) fn create(target: &Path, header: Header) -> Result<Self> {
        // Two writers of one file, in one process or in two, don't meet.
        static WRITERS: AtomicU64 = AtomicU64::new(0);
        let folder = target.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(folder).map_err(|e| Error::io("cannot make the folder", folder, e))?;
        sweep(folder);
        let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
        let mut part = target.as_os_str().to_owned();
        part.push(format!(".{}-{writer}.part", std::process::id()));
        let part = PathBuf::from(part);
        let cannot_write = |e| Error::io(CANNOT_WRITE, &part, e);
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&part).map_err(cannot_write)?);
        // Room for the header, which is known last.
        file.write_all(&[0; HEADER_BYTES]).map_err(cannot_write)?;
        Ok(Self { target: target.to_owned(), part, file, ids: Digester::default(), header })
    }

    /// Counts of what was written so far.
    pub(super) fn header(&mut self) -> &mut Header {
        &mut self.header
    }

    /// Appends ids.
    ///
    /// # Errors
    /// An id that is not below the vocabulary size, and a disk that is full.
    pub(super) fn write(&mut self, ids: &[u32]) -> Result<()> {
        let plain = if self.header.marked { ID } else { u32::MAX };
        if let Some(id) = ids.iter().map(|id| id & plain).find(|&id| u64::from(id) >= self.header.vocab_size)
        {
            return Err(Error::Data(format!(
                "token id {id} is outside the model's vocabulary (vocab_size {}); use the tokenizer of the model",
                self.header.vocab_size
            )));
        }
        let bytes: Vec<u8> = match self.header.id_bytes() {
            2 => ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect(),
            _ => ids.iter().flat_map(|&id| id.to_le_bytes()).collect(),
        };
        self.ids.update(&bytes);
        self.header.tokens += ids.len() as u64;
        self.file.write_all(&bytes).map_err(|e| Error::io(CANNOT_WRITE, &self.part, e))
    }

    /// Writes the header, waits for the disk and gives the file its name.
    pub(super) fn finish(mut self) -> Result<()> {
        let header = self.header.to_bytes(std::mem::take(&mut self.ids).finish());
        let mut write = || {
            self.file.flush()?;
            let file = self.file.get_mut();
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header)?;
            file.sync_all()?;
            std::fs::rename(&self.part, &self.target)?;
            // The name is on the disk when its folder is. Only Unix can open a folder for that.
            match self.target.parent() {
                Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
                _ => Ok(()),
            }
        };
        write().map_err(|e| Error::io(CANNOT_WRITE, &self.target, e))
    }
}

impl Drop for TokenWriter {
    fn drop(&mut self) {
        // After the rename there is nothing under this name; before it, failing loses only disk space.
        let _ = std::fs::remove_file(&self.part);
    }
}

/// Removes what killed writers left in `folder`. Best effort: a failure costs disk space and no more.
fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_part =
            name.to_string_lossy().ends_with(".part") && name.to_string_lossy().contains(".tokens.");
        let age = entry.metadata().and_then(|meta| meta.modified()).map(|time| time.elapsed());
        if is_part && age.is_ok_and(|age| age.is_ok_and(|age| age > ABANDONED)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

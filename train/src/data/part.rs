//! The right to make one token file, and what is there of it already.
//!
//! Knows no tokens. Beside `KEY.tokens.part` lies `KEY.tokens.part.json`, which says how far the part is on the disk: a writer that was killed or
//! stopped is gone on with there. Invariant: two processes never make one token file at the same time, as far as the file system has locks;
//! where it has none, each makes a part of its own.

use std::fs::{File, TryLockError};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use qat_infer::files::{is_at, write_file_atomic};
use serde::{Deserialize, Serialize};

use super::documents::Place;
use crate::{Error, Result};

/// What is said of a folder that can't be written.
pub(super) const CANNOT_WRITE: &str = "cannot write tokens (the folder must be writable and have room)";

/// Between two looks at what another process is making.
const PATIENCE: Duration = Duration::from_millis(100);

/// A part that nobody has touched for this long is not gone on with any more. By the clock of files, which may jump: what is lost
/// then is work, no tokens.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);

/// How far a part is on the disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mark {
    /// Version of the token file.
    pub version: u32,
    /// Key of the token file, in hex.
    pub key: String,
    /// Ids that are written.
    pub tokens: u64,
    /// Documents that have begun in them.
    pub documents: u64,
    /// Bytes of their text.
    pub text_bytes: u64,
    /// Digest of these ids, in hex.
    pub digest: String,
    /// Where the text goes on.
    pub place: Place,
}

/// A token file in the making, held by this process. Dropping it removes what is there, unless it was put in place or left to a later one.
#[derive(Debug)]
pub(super) struct Part {
    target: PathBuf,
    path: PathBuf,
    file: File,
    /// Whether others find it under its name.
    is_shared: bool,
    /// Whether it goes with this value.
    is_ours: bool,
}

impl Part {
    /// The right to make `target`, which may have to be waited for: `wait` is called meanwhile, and may break. Missing folders are made.
    ///
    /// # Errors
    /// A folder that can't be written; [`Error::Interrupted`].
    pub(super) fn claim(target: &Path, wait: &mut dyn FnMut() -> ControlFlow<()>) -> Result<Self> {
        let folder = target.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(folder).map_err(|e| Error::io("cannot make the folder", folder, e))?;
        sweep(folder);
        let path = with(target, ".part");
        let cannot_write = |e| Error::io(CANNOT_WRITE, &path, e);
        loop {
            let file = open(&path).map_err(cannot_write)?;
            match file.try_lock() {
                // Whoever held it before may have renamed or removed it between our opening and our locking it.
                Ok(()) if !is_at(&file, &path) => continue,
                Ok(()) => {
                    return Ok(Self {
                        target: target.to_owned(),
                        path,
                        file,
                        is_shared: true,
                        is_ours: true,
                    });
                }
                Err(TryLockError::WouldBlock) => {
                    drop(file);
                    if wait().is_break() {
                        return Err(Error::Interrupted);
                    }
                    std::thread::sleep(PATIENCE);
                }
                Err(TryLockError::Error(_)) => return Self::alone(target),
            }
        }
    }

    /// A part that no other process knows of.
    fn alone(target: &Path) -> Result<Self> {
        static WRITERS: AtomicU64 = AtomicU64::new(0);
        let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
        let path = with(target, &format!(".{}-{writer}.part", std::process::id()));
        let file = open(&path).map_err(|e| Error::io(CANNOT_WRITE, &path, e))?;
        Ok(Self { target: target.to_owned(), path, file, is_shared: false, is_ours: true })
    }

    /// The part itself, to be written.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier writer has noted of it, if that can be read.
    pub(super) fn mark(&self) -> Option<Mark> {
        if !self.is_shared {
            return None;
        }
        std::fs::read(with(&self.path, ".json")).ok().and_then(|json| serde_json::from_slice(&json).ok())
    }

    /// Notes how far it is; all that `mark` says is on the disk by now.
    pub(super) fn note(&self, mark: &Mark) -> Result<()> {
        if !self.is_shared {
            return Ok(());
        }
        let path = with(&self.path, ".json");
        let json = serde_json::to_vec(mark).map_err(|e| Error::file(&path, e.to_string()))?;
        Ok(write_file_atomic(&path, &json)?)
    }

    /// Leaves it to a later writer, if that would know how far it is.
    pub(super) fn leave(mut self) {
        self.is_ours = self.mark().is_none();
    }

    /// Waits for the disk and gives the file its name.
    pub(super) fn put_in_place(mut self) -> Result<()> {
        let mut put = || {
            self.file.sync_all()?;
            std::fs::rename(&self.path, &self.target)?;
            self.is_ours = false;
            // The name is on the disk when its folder is. Only Unix can open a folder for that.
            match self.target.parent() {
                Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
                _ => Ok(()),
            }
        };
        put().map_err(|e| Error::io(CANNOT_WRITE, &self.target, e))?;
        let _ = std::fs::remove_file(with(&self.path, ".json"));
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.is_ours {
            // The note first: it is worth nothing without the part. Failing loses only disk space.
            let _ = std::fs::remove_file(with(&self.path, ".json"));
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// `path` with `end` behind its name.
fn with(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// Removes what was left in `folder` long ago, and notes whose part is gone. Best effort: a failure costs disk space and no more.
fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if !name.contains(".tokens.") {
            continue;
        }
        let part = name.strip_suffix(".json").map(|part| folder.join(part));
        let is_orphan = part.is_some_and(|part| !part.exists());
        let age = entry.metadata().and_then(|meta| meta.modified()).map(|time| time.elapsed());
        let is_old = name.ends_with(".part") && age.is_ok_and(|age| age.is_ok_and(|age| age > ABANDONED));
        // Whoever writes one holds it, whatever the clock says.
        let is_free = || File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if is_orphan || (is_old && is_free()) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

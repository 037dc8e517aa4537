//! Output that appears whole or not at all: a file or a directory is written aside, synced, and renamed into place.
//!
//! Knows no format. Invariants: until the commit the target is as it was; a directory is replaced only if it is
//! empty or carries a marker that says qat wrote it; a process killed at any moment leaves the old target or the
//! new one. (Exchanging two directories in one step needs Linux; elsewhere there is an instant between two renames
//! in which the old one is only found as `.NAME.partial.old`, from where the next writer brings it back.)
//!
//! What a killed process leaves aside is `.NAME.partial`; the next writer of the same target removes it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::digest::sha256_hex;
use super::mapped::Mapped;
use super::tensors::read_json;
use crate::error::{Error, Result};

/// Name of the folder of what is removed before the directory is put in place.
const SCRATCH: &str = ".scratch";
const IS_A_FILE: &str = "is a file; choose another directory";

/// A directory in the making. Dropping it without [`StagedDir::commit`] removes what was written.
#[derive(Debug)]
pub struct StagedDir {
    target: PathBuf,
    marker: String,
    partial: PathBuf,
    /// Whether what is at `partial` is to be removed with this value.
    unfinished: bool,
    /// Held while this process writes, so that a second writer of the same target is told.
    _lock: DirLock,
}

impl StagedDir {
    /// Begins a directory that will become `target`; missing parents are made. An existing `target` is accepted
    /// if it is empty or holds a file `marker` with a JSON object that has the key `"qat"`.
    ///
    /// # Errors
    /// When `target` is a file or a foreign directory, another process is writing it, or its parent can't be
    /// written.
    pub fn create(target: &Path, marker: &str) -> Result<Self> {
        let target = resolve(target)?;
        let partial = sibling(&target, ".partial")?;
        let aside = aside(&partial);
        if aside.exists() && !target.exists() {
            fs::rename(&aside, &target).map_err(|e| write_error(&target, e))?;
        }
        check_replaceable(&target, marker)?;
        if let Some(parent) = target.parent() {
            if parent.is_file() {
                return Err(Error::file(parent, IS_A_FILE));
            }
            fs::create_dir_all(parent).map_err(|e| write_error(parent, e))?;
        }
        if partial.exists() {
            DirLock::take(&partial, &target)?;
            remove_dir(&partial)?;
        }
        fs::create_dir(&partial).map_err(|e| write_error(&partial, e))?;
        let lock = DirLock::take(&partial, &target)?;
        Ok(Self { target, marker: marker.to_owned(), partial, unfinished: true, _lock: lock })
    }

    /// Whether [`StagedDir::create`] would accept `target` as it is now, so that a long job can be refused before it begins.
    ///
    /// # Errors
    /// When `target` is a file or a foreign directory.
    pub fn check(target: &Path, marker: &str) -> Result<()> {
        check_replaceable(&resolve(target)?, marker)
    }

    /// Where the directory is until it is committed. Files may be made in it freely.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Where the directory will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes the file `name` in the directory.
    ///
    /// # Errors
    /// When the disk is full or the directory can't be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.partial.join(name);
        fs::write(&path, bytes).map_err(|e| write_error(&path, e))
    }

    /// Copies `file` into the directory under its own name and gives back its content.
    ///
    /// # Errors
    /// When `file` can't be read or its copy can't be written.
    pub fn copy(&self, file: &Path) -> Result<Vec<u8>> {
        let bytes = fs::read(file).map_err(|e| Error::io("cannot read", file, e))?;
        let name = file.file_name().ok_or_else(|| Error::file(file, "has no file name to copy it under"))?;
        let path = self.partial.join(name);
        fs::write(&path, &bytes).map_err(|e| write_error(&path, e))?;
        Ok(bytes)
    }

    /// A place for what is only needed on the way, removed by [`StagedDir::commit`].
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.partial.join(SCRATCH).join(name)
    }

    /// Length and SHA-256 of every file in the directory, by name.
    ///
    /// # Errors
    /// When one can't be read.
    pub fn files(&self) -> Result<BTreeMap<String, (u64, String)>> {
        let listed = |e| Error::io("cannot list", &self.partial, e);
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.partial).map_err(listed)? {
            let path = entry.map_err(listed)?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            if path.is_file() && !name.starts_with('.') {
                let bytes = Mapped::open(&path)?;
                files.insert(name.to_owned(), (bytes.len() as u64, sha256_hex(&[&bytes])));
            }
        }
        Ok(files)
    }

    /// Syncs everything to the disk and puts the directory in the target's place.
    ///
    /// # Errors
    /// When the disk is full, or the target can't be replaced (it is looked at again, since another may have made it
    /// meanwhile); the target then is as it was.
    pub fn commit(mut self) -> Result<()> {
        let scratch = self.partial.join(SCRATCH);
        if scratch.exists() {
            remove_dir(&scratch)?;
        }
        sync_tree(&self.partial)?;
        check_replaceable(&self.target, &self.marker)?;
        let replaces = self.target.exists();
        let moved = match replaces {
            true => exchange(&self.partial, &self.target),
            false => fs::rename(&self.partial, &self.target),
        };
        moved.map_err(|e| write_error(&self.target, e))?;
        // What was replaced now has the name of what was partial, and goes with this value.
        self.unfinished = replaces;
        self.target.parent().map_or(Ok(()), sync_dir)
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if self.unfinished {
            // A leftover is removed by the next writer, so that failing here loses nothing.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Writes `bytes` to `path` so that a reader finds the old content or the new, never a part. What is neither file nor
/// directory, like `/dev/stdout`, is written to as it is.
///
/// # Errors
/// When the disk is full or the directory can't be written; `path` then is as it was.
pub fn write_file_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        return fs::write(path, bytes).map_err(|e| write_error(path, e));
    }
    let path = resolve(path)?;
    let partial = sibling(&path, ".partial")?;
    if let Err(error) = write_and_rename(&partial, bytes, &path) {
        // The error to tell is the first one, about the file that was asked for.
        let _ = fs::remove_file(&partial);
        return Err(write_error(&path, error));
    }
    path.parent().map_or(Ok(()), sync_dir)
}

/// Writes `bytes` to a new or emptied file, waits until the disk has them, and gives it the name `target`. Writers of one file take
/// turns: what one has half written is not another's to empty or to rename.
fn write_and_rename(partial: &Path, bytes: &[u8], target: &Path) -> io::Result<()> {
    let mut file = loop {
        let file = File::options().write(true).create(true).truncate(false).open(partial)?;
        // A file system without locks gives none, and is served as well as it can be.
        let is_locked = file.lock().is_ok();
        // Whoever held it before has renamed the file between our opening and our locking it.
        if !is_locked || is_at(&file, partial) {
            break file;
        }
    };
    file.set_len(0)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(partial, target)
}

/// Whether `file` is what others find at `path`.
#[cfg(unix)]
pub fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
    file.metadata().map(id).ok() == fs::metadata(path).map(id).ok()
}

/// Whether `file` is what others find at `path`: an open file can't be renamed or removed here.
#[cfg(not(unix))]
pub fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// An error of writing to `path`, with the fix that its cause allows.
pub(crate) fn write_error(path: &Path, source: io::Error) -> Error {
    let action = match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "cannot write (make room, or choose a place on another disk)"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory => {
            "cannot write (choose a directory that you may write to)"
        }
        ErrorKind::NotFound => "cannot write (make its directory first)",
        _ => "cannot write",
    };
    Error::io(action, path, source)
}

/// `path` with a link at its end followed, so that the rename replaces what the link names, not the link.
fn resolve(path: &Path) -> Result<PathBuf> {
    if path.is_symlink() {
        return fs::canonicalize(path).map_err(|e| Error::io("cannot follow the link", path, e));
    }
    // A bare name has the empty path for a parent, which no system call takes.
    Ok(match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new(".").join(path),
        _ => path.to_owned(),
    })
}

/// `.NAME` + `suffix` beside `path`: the same file system, so that a rename suffices.
fn sibling(path: &Path, suffix: &str) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::file(path, "has no name of its own; give a directory or file to be made"));
    };
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(suffix);
    Ok(path.with_file_name(hidden))
}

fn check_replaceable(target: &Path, marker: &str) -> Result<()> {
    if !target.exists() {
        return Ok(());
    }
    if !target.is_dir() {
        return Err(Error::file(target, IS_A_FILE));
    }
    let mut listing = fs::read_dir(target).map_err(|e| Error::io("cannot list", target, e))?;
    if listing.next().is_none() {
        return Ok(());
    }
    let ours = read_json::<Value>(&target.join(marker)).is_ok_and(|v| v.get("qat").is_some());
    if ours {
        return Ok(());
    }
    let problem = format!(
        "exists and has no {marker} written by qat, so it is not replaced; choose another directory or remove it"
    );
    Err(Error::file(target, problem))
}

fn remove_dir(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).map_err(|e| Error::io("cannot remove", path, e))
}

fn sync_tree(dir: &Path) -> Result<()> {
    let failed = |e| Error::io("cannot list", dir, e);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|f| f.sync_all()).map_err(|e| write_error(&path, e))?;
        }
    }
    sync_dir(dir)
}

/// Makes the names in `dir` durable, where the system can: not all open a directory for that, and some network file
/// systems sync files only.
fn sync_dir(dir: &Path) -> Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(dir).and_then(|d| d.sync_all()) {
        Err(e) if !matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput) => {
            Err(write_error(dir, e))
        }
        _ => Ok(()),
    }
}

/// Puts `new` in the place of `old` and `old` in the place of `new`.
fn exchange(new: &Path, old: &Path) -> io::Result<()> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        // A file system that can't exchange says EINVAL and is served by the renames below.
        if renameat2(AT_FDCWD, new, AT_FDCWD, old, RenameFlags::RENAME_EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    let aside = aside(new);
    fs::rename(old, &aside)?;
    if let Err(e) = fs::rename(new, old) {
        fs::rename(&aside, old)?;
        return Err(e);
    }
    fs::rename(&aside, new)
}

/// Where the old directory waits while `partial` takes its place by two renames.
fn aside(partial: &Path) -> PathBuf {
    let mut name = partial.as_os_str().to_owned();
    name.push(".old");
    PathBuf::from(name)
}

/// An advisory lock on a directory, given back when dropped or when the process ends. File systems without
/// locks, and systems without flock, give none.
#[derive(Debug)]
struct DirLock {
    #[cfg(unix)]
    _held: Option<nix::fcntl::Flock<File>>,
}

impl DirLock {
    #[cfg(unix)]
    fn take(dir: &Path, target: &Path) -> Result<Self> {
        use nix::errno::Errno;
        use nix::fcntl::{Flock, FlockArg};
        let file = File::open(dir).map_err(|e| Error::io("cannot open", dir, e))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { _held: Some(lock) }),
            Err((_, Errno::EWOULDBLOCK)) => {
                let problem = "is being written by another process; wait for it, or choose another directory";
                Err(Error::file(target, problem))
            }
            Err(_) => Ok(Self { _held: None }),
        }
    }

    #[cfg(not(unix))]
    fn take(_dir: &Path, _target: &Path) -> Result<Self> {
        Ok(Self {})
    }
}

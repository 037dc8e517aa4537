//! The cache of `huggingface_hub`, folder for folder.
//!
//! ```text
//! models--owner--name/
//!   refs/REVISION              the commit that a branch or tag was at
//!   blobs/ETAG                 contents; ETAG.incomplete while one is on its way
//!   snapshots/COMMIT/PATH      links to contents
//! .locks/models--owner--name/ETAG.lock
//! ```
//!
//! Knows no network. Invariant: refs and links appear whole; what is at a final name is complete.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{Error, Kind, Reference, Result, reference::is_safe};

/// The cache of one repository.
#[derive(Debug)]
pub(crate) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

/// Whether `revision` is a commit, which never changes.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl RepoCache {
    /// That of the repository of `reference`, in the cache folder `cache`.
    pub(crate) fn new(cache: &Path, reference: &Reference) -> Self {
        let kind = match reference.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        let name = format!("{kind}--{}", reference.repo.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The folder of the files at `commit`.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where the content called `etag` is.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where it is while it is on its way.
    pub(crate) fn part(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The commit that `revision` was at when it was last looked up.
    pub(crate) fn commit(&self, revision: &str) -> Result<Option<String>> {
        if is_commit(revision) {
            return Ok(Some(revision.to_owned()));
        }
        let path = self.folder.join("refs").join(revision);
        match fs::read_to_string(&path) {
            Ok(commit) if is_commit(commit.trim()) => Ok(Some(commit.trim().to_owned())),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("cannot read", &path, e)),
        }
    }

    /// Writes down that `revision` is at `commit`.
    pub(crate) fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit(revision)?.as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make_folder_of(&path)?;
        let beside = beside(&path);
        let written = fs::write(&beside, commit).and_then(|()| fs::rename(&beside, &path));
        written.map_err(|e| Error::io("cannot write", &path, e))
    }

    /// The names of the files that are here of `commit`, sorted.
    pub(crate) fn files(&self, commit: &str) -> Result<Vec<String>> {
        let root = self.snapshot(commit);
        let mut found = Vec::new();
        if root.is_dir() {
            walk(&root, "", &mut found)?;
        }
        found.sort();
        Ok(found)
    }

    /// Holds everybody else off the content called `etag` until it is dropped.
    pub(crate) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_folder_of(&path)?;
        let cannot = |e| Error::io("cannot lock", &path, e);
        // The lock of Python's filelock: flock on the file.
        let file = File::options().create(true).append(true).open(&path).map_err(cannot)?;
        file.lock().map_err(cannot)?;
        Ok(file)
    }

    /// Makes the content called `etag` the file `name` of `commit`.
    pub(crate) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(name);
        make_folder_of(&path)?;
        let up = "../".repeat(2 + name.matches('/').count());
        let beside = beside(&path);
        place(&self.blob(etag), Path::new(&format!("{up}blobs/{etag}")), &beside)
            .and_then(|()| fs::rename(&beside, &path))
            .map_err(|e| Error::io("cannot link", &path, e))
    }
}

/// Makes the folder that `path` is to be in.
pub(crate) fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|e| Error::io("cannot make the folder", folder, e))
}

/// A name beside `path` that nobody else uses.
fn beside(path: &Path) -> PathBuf {
    static NAMES: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = NAMES.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{number}", std::process::id()))
}

#[cfg(unix)]
fn place(_: &Path, relative: &Path, at: &Path) -> std::io::Result<()> {
    match fs::remove_file(at) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    std::os::unix::fs::symlink(relative, at)
}

/// Where links need privileges, as a copy.
#[cfg(not(unix))]
fn place(blob: &Path, _: &Path, at: &Path) -> std::io::Result<()> {
    fs::copy(blob, at).map(drop)
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) -> Result<()> {
    let cannot = |e| Error::io("cannot list", folder, e);
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        let name = format!("{prefix}{name}");
        if entry.file_type().map_err(cannot)?.is_dir() {
            walk(&path, &format!("{name}/"), found)?;
        } else if path.is_file() && is_safe(&name) {
            found.push(name);
        }
    }
    Ok(())
}

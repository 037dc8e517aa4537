//! The right to write into a run's folder, for one process at a time.
//!
//! Knows nothing of what is in the folder. Invariants: two processes never hold the lock of one folder; a start that is
//! refused leaves no folder behind that it made.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use qat_infer::files::is_at;

use crate::{Error, Result};

const FILE: &str = ".lock";

/// Held while a run lives.
#[derive(Debug)]
pub struct RunLock {
    out: PathBuf,
    /// Folders made for it, innermost first.
    made: Vec<PathBuf>,
    _file: File,
}

impl RunLock {
    /// Takes the folder `out`, which is made if it isn't there.
    ///
    /// # Errors
    /// The folder can't be made or written, or another process holds it.
    pub fn take(out: &Path) -> Result<Self> {
        let made = out.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
        let made = made.map(Path::to_owned).collect();
        let path = out.join(FILE);
        loop {
            fs::create_dir_all(out).map_err(|e| Error::io("cannot create the run's folder", out, e))?;
            let file = File::create(&path).map_err(|e| Error::io("cannot create", &path, e))?;
            match file.try_lock() {
                // Whoever held it before may have removed the file between our opening and our locking it.
                Ok(()) if !is_at(&file, &path) => continue,
                Ok(()) => return Ok(Self { out: out.to_owned(), made, _file: file }),
                Err(TryLockError::WouldBlock) => {
                    let problem = "another qat is training here; wait for it, or choose another --out";
                    return Err(Error::file(out, problem));
                }
                Err(TryLockError::Error(e)) => return Err(Error::io("cannot lock", &path, e)),
            }
        }
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        let alone = |listing: fs::ReadDir| listing.flatten().all(|entry| entry.file_name() == FILE);
        if !fs::read_dir(&self.out).is_ok_and(alone) {
            return;
        }
        // The run wrote nothing. What can't be removed is empty and harms nobody.
        let _ = fs::remove_file(self.out.join(FILE));
        for dir in &self.made {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_once_and_goes_with_a_run_that_wrote_nothing() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let out = dir.path().join("a/b");
        let lock = RunLock::take(&out).expect("free");
        let refused = RunLock::take(&out).expect_err("held").to_string();
        assert!(refused.contains("another qat is training here"), "{refused}");
        drop(lock);
        assert!(!dir.path().join("a").exists());
        let lock = RunLock::take(&out).expect("free again");
        fs::write(out.join("log.jsonl"), "{}").expect("written");
        drop(lock);
        assert!(out.join("log.jsonl").exists());
        drop(RunLock::take(&out).expect("free again"));
        assert!(out.exists(), "it was there before");
    }
}

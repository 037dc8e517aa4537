//! A file of the hub becomes a file of the cache.
//!
//! Invariant: what is linked into a snapshot has the length and, where the hub gives it, the SHA-256 that the hub says.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    path::Path,
    thread::sleep,
};

use sha2::{Digest as _, Sha256};
use ureq::http::StatusCode;

use crate::{
    Error, Progress, Reference, Result,
    cache::{RepoCache, make_folder_of},
    client::{About, Client, Failure, TRIES, passing, text},
};

/// Bytes between two calls of the progress.
const STEP: usize = 256 << 10;

/// Which file: of what, at which commit, called what.
type Which<'a> = (&'a Reference, &'a str, &'a str);

/// Brings a file into the cache.
pub(crate) fn file(
    client: &Client,
    cache: &RepoCache,
    (reference, commit, name): Which,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let url = client.url(reference, commit, name);
    let about = client.about(reference, name, &url)?;
    let blob = cache.blob(&about.etag);
    if !blob.exists() {
        let _lock = cache.lock(&about.etag)?;
        // Somebody else may have brought it meanwhile.
        if !blob.exists() {
            let transfer = Transfer {
                client,
                reference,
                name,
                url: &url,
                about: &about,
                part: &cache.part(&about.etag),
            };
            transfer.whole(progress)?;
            fs::rename(transfer.part, &blob).map_err(|e| Error::io("cannot rename", transfer.part, e))?;
        }
    }
    cache.link(commit, name, &about.etag)
}

struct Transfer<'a> {
    client: &'a Client,
    reference: &'a Reference,
    name: &'a str,
    url: &'a str,
    about: &'a About,
    /// Where it grows.
    part: &'a Path,
}

impl Transfer<'_> {
    /// Brings all of it, and checks it.
    fn whole(&self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        make_folder_of(self.part)?;
        self.all_bytes(progress)?;
        let Err(problem) = self.check()? else { return Ok(()) };
        // What was there from an earlier time may be to blame.
        fs::remove_file(self.part).map_err(|e| Error::io("cannot delete", self.part, e))?;
        self.all_bytes(progress)?;
        match self.check()? {
            Ok(()) => Ok(()),
            Err(_) => {
                fs::remove_file(self.part).map_err(|e| Error::io("cannot delete", self.part, e))?;
                Err(Error::Damaged { file: format!("{}: {}", self.reference, self.name), problem })
            }
        }
    }

    /// Goes on until nothing is missing; gives up when nothing more arrives.
    fn all_bytes(&self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let mut tried = 0;
        loop {
            let before = self.len()?;
            match self.some_bytes(before, progress) {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error)) => {
                    tried = if self.len()? > before { 0 } else { tried + 1 };
                    if tried >= TRIES {
                        return Err(error);
                    }
                    sleep(self.client.patience * 2u32.pow(tried));
                }
            }
        }
    }

    /// One request for what is missing behind `from`.
    fn some_bytes(&self, from: u64, progress: &mut dyn FnMut(Progress)) -> Result<(), Failure> {
        if self.about.size.is_some_and(|size| from >= size) {
            return Ok(());
        }
        let response = self.client.content(self.reference, self.name, self.url, from)?;
        let from = match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(&response, from) => from,
            // All there is was here already.
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => return Ok(()),
            StatusCode::OK => 0,
            status => {
                let problem = format!("answers {status} when asked for what follows byte {from}");
                return Err(Error::Answer { url: self.url.to_owned(), problem }.into());
            }
        };
        let mut file = self.open(from)?;
        let mut reader = response.into_body().into_reader();
        let mut done = from;
        let mut buffer = vec![0; STEP];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(passing(self.url, e)),
            };
            file.write_all(&buffer[..read]).map_err(|e| Error::io(self.writing(&e), self.part, e))?;
            done += read as u64;
            progress(Progress { file: self.name, done, total: self.about.size });
        }
        file.sync_all().map_err(|e| Error::io("cannot write", self.part, e))?;
        match self.about.size {
            Some(size) if done < size => {
                Err(passing(self.url, format!("broke off after {done} of {size} bytes")))
            }
            _ => Ok(()),
        }
    }

    fn writing(&self, error: &std::io::Error) -> &'static str {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                "the disk is full; make room (what has arrived is kept), or put the cache elsewhere with HF_HOME"
            }
            _ => "cannot write",
        }
    }

    /// The growing file, cut to its first `from` bytes.
    fn open(&self, from: u64) -> Result<File> {
        let cannot = |e| Error::io("cannot write", self.part, e);
        let file = File::options().create(true).append(true).open(self.part).map_err(cannot)?;
        file.set_len(from).map_err(cannot)?;
        Ok(file)
    }

    fn len(&self) -> Result<u64> {
        match fs::metadata(self.part) {
            Ok(meta) => Ok(meta.len()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(0),
            Err(e) => Err(Error::io("cannot read", self.part, e)),
        }
    }

    /// Holds what arrived against what the hub says of it; the inner error is what differs.
    fn check(&self) -> Result<Result<(), String>> {
        let len = self.len()?;
        if let Some(size) = self.about.size.filter(|size| *size != len) {
            return Ok(Err(format!("{len} bytes, want {size}")));
        }
        if self.about.etag.len() != 64 {
            // Git's own name of a small file.
            return Ok(Ok(()));
        }
        let found = sha256(self.part)?;
        let differs = || format!("SHA-256 {found}, want {}", self.about.etag);
        Ok(if found == self.about.etag { Ok(()) } else { Err(differs()) })
    }
}

/// Whether an answer of a part begins where it was asked to.
fn begins_at(response: &ureq::http::Response<ureq::Body>, from: u64) -> bool {
    let range = text(response.headers(), "content-range").unwrap_or_default();
    range
        .strip_prefix("bytes ")
        .and_then(|range| range.split('-').next())
        .is_some_and(|first| first == from.to_string())
}

fn sha256(path: &Path) -> Result<String> {
    let cannot = |e| Error::io("cannot read", path, e);
    let mut file = File::open(path).map_err(cannot)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(cannot)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

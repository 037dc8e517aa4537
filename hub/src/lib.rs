//! Models and data sets of the Hugging Face hub, as files on this machine.
//!
//! Knows no model and no format beyond the names of its files. The cache is that of Python's `huggingface_hub`, name for name: what one
//! has fetched the other finds. Nothing here prints or reads the environment; [`Settings`] come from outside, progress goes to a callback.
//!
//! Invariants: a file in a snapshot is whole, and has the checksum that the hub gives for it; a transfer that was cut goes on where it
//! stood; a token is shown to the hub alone, never to the hosts that it redirects to.

mod cache;
mod client;
mod download;
mod error;
mod reference;
mod select;

use std::{fmt, path::PathBuf, time::Duration};

pub use error::{Error, Result};
pub use reference::{Kind, Reference, SCHEME};

use cache::RepoCache;
use client::Client;

/// The hub unless another endpoint is asked for.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// What opens repositories that are private or gated.
#[derive(Clone)]
pub struct Token {
    /// The secret.
    pub value: String,
    /// Where it was found, for messages.
    pub from: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token from {}", self.from)
    }
}

/// Where the hub is and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Such as [`DEFAULT_ENDPOINT`], without a slash at the end.
    pub endpoint: String,
    /// The folder with `models--…` and `datasets--…` in it.
    pub cache: PathBuf,
    /// The token, if there is one.
    pub token: Option<Token>,
    /// Whether only what is in the cache may be used.
    pub offline: bool,
    /// Whether the proxies that the environment names are used.
    pub proxies: bool,
    /// The wait before the first repetition of a request that failed; each further wait is twice as long.
    pub patience: Duration,
}

/// How far the file at hand is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Its name in the repository.
    pub file: &'a str,
    /// Bytes on this machine.
    pub done: u64,
    /// Bytes of all of it, where the hub says so.
    pub total: Option<u64>,
}

/// What was asked for, on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Of a model its directory, or the one file that the reference names; of data the files, sorted.
    pub paths: Vec<PathBuf>,
    /// The commit they are of.
    pub commit: String,
    /// What the user should know about it.
    pub note: Option<String>,
}

/// How much of a model is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All that running and training it takes.
    Whole,
    /// What says its shape, without weights.
    Shape,
}

/// The hub, and its cache on this machine.
#[derive(Debug)]
pub struct Hub {
    settings: Settings,
    client: Client,
}

/// The files of a repository at a commit.
struct Listing {
    commit: String,
    files: Vec<String>,
    /// Why the cache had to do, where the hub could not be reached.
    note: Option<String>,
    /// Whether the hub can be asked for a file that isn't here.
    online: bool,
}

impl Hub {
    /// The hub of `settings`. Nothing is asked of it yet.
    ///
    /// # Errors
    /// An endpoint that is no address.
    pub fn new(settings: Settings) -> Result<Self> {
        let client = Client::new(&settings)?;
        Ok(Self { settings, client })
    }

    /// The directory of a model, or the file that `reference` names in its repository, with all that belongs to it.
    ///
    /// # Errors
    /// A repository, revision or file that isn't there or not to be had; none that is read as a model; the network; the disk.
    pub fn model(
        &self,
        reference: &Reference,
        part: Part,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Found> {
        let cache = RepoCache::new(&self.settings.cache, reference);
        if let Some(found) = self.whole_already(reference, &cache, part) {
            return Ok(found);
        }
        let listing = self.listing(reference, &cache)?;
        let wanted = select::of_model(reference, &listing.files, part)?;
        for name in &wanted.files {
            self.bring(reference, &cache, &listing, name, progress)?;
        }
        let snapshot = cache.snapshot(&listing.commit);
        if let (Some(index), Part::Whole) = (&wanted.index, part) {
            for name in select::shards(&snapshot.join(index), index, &listing.files)? {
                self.bring(reference, &cache, &listing, &name, progress)?;
            }
        }
        let path = if wanted.place.is_empty() { snapshot } else { snapshot.join(&wanted.place) };
        Ok(Found { paths: vec![path], commit: listing.commit, note: listing.note })
    }

    /// The files of data that `reference` names: one, or those that its pattern matches.
    ///
    /// # Errors
    /// As [`Self::model`]; a pattern that matches nothing.
    pub fn data(&self, reference: &Reference, progress: &mut dyn FnMut(Progress)) -> Result<Found> {
        let cache = RepoCache::new(&self.settings.cache, reference);
        let listing = self.listing(reference, &cache)?;
        let names = select::of_data(reference, &listing.files)?;
        let mut paths = Vec::new();
        for name in &names {
            self.bring(reference, &cache, &listing, name, progress)?;
            paths.push(cache.snapshot(&listing.commit).join(name));
        }
        Ok(Found { paths, commit: listing.commit, note: listing.note })
    }

    /// A model at a commit that never changes, if all of it is here: nothing has to be asked.
    fn whole_already(&self, reference: &Reference, cache: &RepoCache, part: Part) -> Option<Found> {
        if !cache::is_commit(&reference.revision) || part != Part::Whole {
            return None;
        }
        let commit = reference.revision.clone();
        let files = cache.files(&commit).ok()?;
        let wanted = select::of_model(reference, &files, part).ok()?;
        let snapshot = cache.snapshot(&commit);
        // Whatever else is in the repository, a model that is trained or run has a tokenizer.
        let has_tokenizer = wanted.files.iter().any(|name| name.ends_with(select::TOKENIZER_FILE));
        if !has_tokenizer && !wanted.is_file {
            return None;
        }
        if let Some(index) = &wanted.index {
            select::shards(&snapshot.join(index), index, &files).ok()?;
        }
        let path = if wanted.place.is_empty() { snapshot } else { snapshot.join(&wanted.place) };
        Some(Found { paths: vec![path], commit, note: None })
    }

    fn listing(&self, reference: &Reference, cache: &RepoCache) -> Result<Listing> {
        if self.settings.offline {
            return self.cached(reference, cache, None);
        }
        match self.client.listing(reference) {
            Ok((commit, files)) => {
                cache.remember(&reference.revision, &commit)?;
                Ok(Listing { commit, files, note: None, online: true })
            }
            // A train without a network, and a model that is here: better than nothing, as long as it is said.
            Err(error @ Error::Network { .. }) => {
                let why = error.to_string();
                self.cached(reference, cache, Some(why)).map_err(|_| error)
            }
            Err(error) => Err(error),
        }
    }

    fn cached(&self, reference: &Reference, cache: &RepoCache, why: Option<String>) -> Result<Listing> {
        let missing = || Error::NotCached { what: reference.to_string(), cache: self.settings.cache.clone() };
        let commit = cache.commit(&reference.revision)?.ok_or_else(missing)?;
        let files = cache.files(&commit)?;
        if files.is_empty() {
            return Err(missing());
        }
        let note =
            why.map(|why| format!("{why}; {reference} is taken from the cache, as of commit {commit}"));
        Ok(Listing { commit, files, note, online: false })
    }

    fn bring(
        &self,
        reference: &Reference,
        cache: &RepoCache,
        listing: &Listing,
        name: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        if cache.snapshot(&listing.commit).join(name).exists() {
            return Ok(());
        }
        if !listing.online {
            let what = format!("{reference}: {name}");
            return Err(Error::NotCached { what, cache: self.settings.cache.clone() });
        }
        download::file(&self.client, cache, (reference, &listing.commit, name), progress)
    }
}

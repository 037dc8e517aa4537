//! How a repository of the hub, or a part of it, is spelled: `hf://[datasets/]owner/name[@revision][/path]`.
//!
//! Knows no network and no disk. Invariant: names and paths that have passed here are safe to be put into addresses and file names.

use std::{fmt, str::FromStr};

use crate::{Error, Result};

/// What every reference begins with.
pub const SCHEME: &str = "hf://";

/// What a reference has to look like, for messages.
const WANT: &str = "want hf://owner/name, hf://owner/name@revision or hf://owner/name/path for a model, and hf://datasets/owner/name/path \
                    for data";

/// The revision unless one is asked for.
const DEFAULT_REVISION: &str = "main";

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A model.
    Model,
    /// Data.
    Dataset,
}

/// A repository at a revision, or a file, folder or pattern in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// What it holds.
    pub kind: Kind,
    /// `owner/name`, or the bare name of an old repository.
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// Path or pattern in the repository.
    pub path: Option<String>,
}

impl Reference {
    /// Whether `text` is meant to be a reference.
    pub fn is(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Whether no revision was asked for.
    pub fn is_default(&self) -> bool {
        self.revision == DEFAULT_REVISION
    }

    /// The same at a commit.
    pub fn at(&self, commit: &str) -> Self {
        Self { revision: commit.to_owned(), ..self.clone() }
    }

    /// The repository in addresses: `owner/name` or `datasets/owner/name`.
    pub(crate) fn place(&self) -> String {
        match self.kind {
            Kind::Model => self.repo.clone(),
            Kind::Dataset => format!("datasets/{}", self.repo),
        }
    }

    /// The repository in the interface for programs.
    pub(crate) fn api_place(&self) -> String {
        match self.kind {
            Kind::Model => format!("models/{}", self.repo),
            Kind::Dataset => format!("datasets/{}", self.repo),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |problem: &str| Error::Reference(format!("{text}: {problem}; {WANT}"));
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| refused("does not begin with hf://"))?;
        let (kind, rest) = match (rest.strip_prefix("datasets/"), rest.strip_prefix("models/")) {
            (Some(rest), _) => (Kind::Dataset, rest),
            (_, Some(rest)) => (Kind::Model, rest),
            _ => (Kind::Model, rest),
        };
        if rest.starts_with("spaces/") {
            return Err(refused("spaces hold neither models nor data"));
        }
        let second = rest.match_indices('/').nth(1).map_or(rest.len(), |(at, _)| at);
        let (repo, revision, path) = match rest[..second].find('@') {
            Some(at) => {
                let (revision, path) = split_revision(&rest[at + 1..]);
                (&rest[..at], Some(revision), path)
            }
            None => (&rest[..second], None, rest.get(second + 1..)),
        };
        if repo.split('/').any(|part| !is_name(part)) {
            return Err(refused("names no repository"));
        }
        let revision = revision.map_or(DEFAULT_REVISION.to_owned(), |spelled| spelled.replace("%2F", "/"));
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-/+".contains(c);
        if revision.is_empty() || !revision.chars().all(fits) || !is_safe(&revision) {
            return Err(refused("the revision behind @ is no branch, tag or commit"));
        }
        let path = path.map(|path| path.trim_end_matches('/')).filter(|path| !path.is_empty());
        if path.is_some_and(|path| !is_safe(path)) {
            return Err(refused("the path leads out of the repository"));
        }
        Ok(Self { kind, repo: repo.to_owned(), revision, path: path.map(str::to_owned) })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.place())?;
        if self.revision != DEFAULT_REVISION {
            write!(f, "@{}", self.revision.replace('/', "%2F"))?;
        }
        self.path.iter().try_for_each(|path| write!(f, "/{path}"))
    }
}

/// The revision at the beginning of `text`, and the path behind it. Pull requests and converted data have revisions of three parts.
fn split_revision(text: &str) -> (&str, Option<&str>) {
    let parts = if text.starts_with("refs/pr/") || text.starts_with("refs/convert/") { 3 } else { 1 };
    match text.match_indices('/').nth(parts - 1) {
        Some((at, _)) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// Whether `name` can be that of an owner or a repository; the hub forbids two hyphens in a row.
fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && name.chars().all(fits) && !name.starts_with(['.', '-']) && !name.contains("--")
}

/// Whether `path` is relative and stays below where it begins.
pub(crate) fn is_safe(path: &str) -> bool {
    let unsafe_part = |part: &str| part.is_empty() || part == "." || part == "..";
    !path.contains(['\\', '\0', ':'])
        && !path.chars().any(char::is_control)
        && !path.split('/').any(unsafe_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Reference {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn every_spelling_is_read_and_written() {
        let model = |repo: &str, revision: &str, path: Option<&str>| Reference {
            kind: Kind::Model,
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            path: path.map(str::to_owned),
        };
        let data = |repo: &str, revision: &str, path: Option<&str>| Reference {
            kind: Kind::Dataset,
            ..model(repo, revision, path)
        };
        for (text, want) in [
            ("hf://a/b", model("a/b", "main", None)),
            ("hf://gpt2", model("gpt2", "main", None)),
            ("hf://a/b@v1.0", model("a/b", "v1.0", None)),
            ("hf://a/b/c/d.gguf", model("a/b", "main", Some("c/d.gguf"))),
            ("hf://a/b@v1/c/d.gguf", model("a/b", "v1", Some("c/d.gguf"))),
            ("hf://a/b@refs%2Fpr%2F3", model("a/b", "refs/pr/3", None)),
            ("hf://datasets/a/b/data/train-*.parquet", data("a/b", "main", Some("data/train-*.parquet"))),
            ("hf://datasets/a/b@refs%2Fconvert%2Fparquet/x", data("a/b", "refs/convert/parquet", Some("x"))),
        ] {
            assert_eq!(parsed(text), want, "{text}");
            assert_eq!(want.to_string(), text);
        }
        assert_eq!(parsed("hf://models/a/b"), model("a/b", "main", None));
        assert_eq!(parsed("hf://a/b/"), model("a/b", "main", None));
        assert_eq!(parsed("hf://a/b@refs/pr/3/x.txt"), model("a/b", "refs/pr/3", Some("x.txt")));
        assert_eq!(parsed("hf://a/b/x@y.txt"), model("a/b", "main", Some("x@y.txt")));
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for text in [
            "hf://",
            "hf:///b",
            "hf://a/..",
            "hf://../b",
            "hf://a/b/../c",
            "hf://a/b//c",
            "hf://a/b@",
            "hf://a/b@x y",
            "hf://a/b@../../x",
            "hf://a--x/b",
            "hf://a/b?x",
            "hf://spaces/a/b",
            "hf://a/b/c\\d",
            "hf://datasets/a b/c",
        ] {
            let message = text.parse::<Reference>().expect_err(text).to_string();
            assert!(message.starts_with(text) && message.contains("want hf://owner/name"), "{message}");
        }
    }
}

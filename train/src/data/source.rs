//! What a recipe lists as data, and where each entry leads.
//!
//! Knows no contents: a source is a kind and a place. A source that is a file exists when it is handed out.

use std::fmt;
use std::path::{Path, PathBuf};

use globset::GlobBuilder;

use super::stories::StoriesSpec;
use crate::{Error, Result};

/// The kinds of entry a recipe may list, for messages.
const READ: &str = "read are .txt, .raw and .md (text), .jsonl (one object a line), .parquet (a string column), \
                    globs such as data/*.txt, and stories:seed=1,bytes=4000000 (generated text)";

/// One checked entry of a recipe's list of data.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A UTF-8 text file.
    Text(PathBuf),
    /// JSON Lines: one object a line, the text in one of its fields.
    Jsonl(PathBuf),
    /// A Parquet file, the text in one of its columns.
    Parquet(PathBuf),
    /// Generated stories.
    Stories(StoriesSpec),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(path) | Self::Jsonl(path) | Self::Parquet(path) => path.display().fmt(f),
            Self::Stories(spec) => spec.fmt(f),
        }
    }
}

impl Source {
    /// The sources that a list of `entries` names, in the order of the list; a glob's matches are sorted by path.
    ///
    /// Relative paths start at `base`. An entry that names an existing file is that file, whatever characters it
    /// has; only then is it read as a glob.
    ///
    /// # Errors
    /// No entry at all, a missing file, a folder, a glob without a match, and a kind of file that is not read.
    pub fn resolve(entries: &[String], base: &Path) -> Result<Vec<Self>> {
        if entries.is_empty() {
            return Err(Error::Config(format!("data: the list is empty; {READ}")));
        }
        let mut sources = Vec::new();
        for entry in entries {
            if entry.starts_with(StoriesSpec::SCHEME) {
                sources.push(Self::Stories(entry.parse()?));
                continue;
            }
            let path = base.join(entry);
            if !path.exists() && entry.contains(GLOB_CHARACTERS) {
                for path in glob(entry, base)? {
                    sources.push(Self::at(path)?);
                }
            } else {
                sources.push(Self::at(path)?);
            }
        }
        Ok(sources)
    }

    /// Size in bytes: of the file, or of the text that will be generated (a story more or less).
    ///
    /// # Errors
    /// A file that can't be looked at.
    pub fn bytes(&self) -> Result<u64> {
        match self {
            Self::Text(path) | Self::Jsonl(path) | Self::Parquet(path) => {
                Ok(std::fs::metadata(path).map_err(|e| Error::io("cannot read data", path, e))?.len())
            }
            Self::Stories(spec) => Ok(spec.bytes as u64),
        }
    }

    fn at(path: PathBuf) -> Result<Self> {
        let meta = std::fs::metadata(&path).map_err(|e| Error::io("cannot read data", &path, e))?;
        if meta.is_dir() {
            let example = path.join("*.txt");
            return Err(Error::file(
                &path,
                format!("is a folder; name its files, as in {}", example.display()),
            ));
        }
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("txt" | "raw" | "md") => Ok(Self::Text(path)),
            Some("jsonl") => Ok(Self::Jsonl(path)),
            Some("parquet") => Ok(Self::Parquet(path)),
            Some(other) => Err(Error::file(&path, format!("can't read .{other} as data; {READ}"))),
            None => Err(Error::file(&path, format!("no extension tells what it holds; {READ}"))),
        }
    }
}

/// What makes an entry a glob.
const GLOB_CHARACTERS: [char; 4] = ['*', '?', '[', '{'];

/// Files under `base` that match `pattern`, sorted. `*` stays within a folder, `**` crosses folders; names that
/// begin with a dot are left out.
fn glob(pattern: &str, base: &Path) -> Result<Vec<PathBuf>> {
    let mut root = base.to_owned();
    let mut rest = pattern;
    while let Some((component, tail)) = rest.split_once('/') {
        if component.contains(GLOB_CHARACTERS) {
            break;
        }
        // The empty component before a leading slash is the root of the file system.
        root.push(if component.is_empty() { "/" } else { component });
        rest = tail;
    }
    let matcher = GlobBuilder::new(rest)
        .literal_separator(true)
        .build()
        .map_err(|e| Error::Config(format!("data: {pattern}: not a glob: {}", e.kind())))?
        .compile_matcher();
    let depth = if rest.contains("**") { usize::MAX } else { rest.split('/').count() };
    let mut found = Vec::new();
    walk(&root, depth, &mut |path| {
        if path.strip_prefix(&root).is_ok_and(|relative| matcher.is_match(relative)) {
            found.push(path.to_owned());
        }
    })?;
    found.sort();
    if found.is_empty() {
        return Err(Error::Config(format!(
            "data: {pattern}: no file under {} matches",
            here(&root).display()
        )));
    }
    Ok(found)
}

/// `folder` by a name that the system takes: relative paths begin with the empty one.
fn here(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}

/// Calls `visit` with every file at most `depth` names below `folder`. Links to folders are not followed, so a
/// walk ends.
fn walk(folder: &Path, depth: usize, visit: &mut dyn FnMut(&Path)) -> Result<()> {
    let cannot_list = |e| Error::io("cannot list", here(folder), e);
    for entry in std::fs::read_dir(here(folder)).map_err(cannot_list)? {
        let entry = entry.map_err(cannot_list)?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = folder.join(entry.file_name());
        if path.is_file() {
            visit(&path);
        } else if depth > 1 && entry.file_type().map_err(cannot_list)?.is_dir() {
            walk(&path, depth - 1, visit)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        dir
    }

    fn resolve(dir: &tempfile::TempDir, entries: &[&str]) -> Result<Vec<Source>> {
        Source::resolve(&entries.iter().map(|e| e.to_string()).collect::<Vec<_>>(), dir.path())
    }

    fn refusal(dir: &tempfile::TempDir, entries: &[&str]) -> String {
        resolve(dir, entries).unwrap_err().to_string()
    }

    #[test]
    fn the_extension_tells_the_kind() {
        let dir = folder(&["a.txt", "b.raw", "c.MD", "d.jsonl", "e.parquet"]);
        let at = |name: &str| dir.path().join(name);
        assert_eq!(
            resolve(&dir, &["e.parquet", "a.txt", "b.raw", "c.MD", "d.jsonl"]).unwrap(),
            [
                Source::Parquet(at("e.parquet")),
                Source::Text(at("a.txt")),
                Source::Text(at("b.raw")),
                Source::Text(at("c.MD")),
                Source::Jsonl(at("d.jsonl")),
            ]
        );
    }

    #[test]
    fn a_glob_is_sorted_and_stays_in_its_folder() {
        let dir = folder(&["t/b.txt", "t/a.txt", "t/c.jsonl", "t/deep/d.txt", "t/.hidden.txt"]);
        let at = |name: &str| Source::Text(dir.path().join(name));
        assert_eq!(resolve(&dir, &["t/*.txt"]).unwrap(), [at("t/a.txt"), at("t/b.txt")]);
        assert_eq!(resolve(&dir, &["**/*.txt"]).unwrap(), [at("t/a.txt"), at("t/b.txt"), at("t/deep/d.txt")]);
        assert_eq!(resolve(&dir, &["t/*/d.txt"]).unwrap(), [at("t/deep/d.txt")]);
        let absolute = dir.path().join("t/*.txt").display().to_string();
        assert_eq!(resolve(&dir, &[&absolute]).unwrap(), [at("t/a.txt"), at("t/b.txt")]);
    }

    #[test]
    fn a_glob_without_a_folder_looks_where_the_process_is() {
        let message = Source::resolve(&["no-such-*.txt".to_owned()], Path::new("")).unwrap_err().to_string();
        assert_eq!(message, "data: no-such-*.txt: no file under . matches");
    }

    #[test]
    fn stories_are_a_source_and_their_misspelling_is_refused() {
        let dir = folder(&[]);
        let spec = StoriesSpec { seed: 3, bytes: 50 };
        assert_eq!(resolve(&dir, &["stories:seed=3,bytes=50"]).unwrap(), [Source::Stories(spec)]);
        assert_eq!(Source::Stories(spec).to_string(), "stories:seed=3,bytes=50");
        assert!(refusal(&dir, &["stories:sed=3"]).contains("unknown key `sed`"));
    }

    #[test]
    fn a_file_whose_name_looks_like_a_glob_is_that_file() {
        let dir = folder(&["a[1].txt", "a1.txt"]);
        assert_eq!(resolve(&dir, &["a[1].txt"]).unwrap(), [Source::Text(dir.path().join("a[1].txt"))]);
    }

    #[test]
    fn a_glob_without_a_match_is_refused() {
        let dir = folder(&["a.txt"]);
        assert_eq!(
            refusal(&dir, &["*.jsonl"]),
            format!("data: *.jsonl: no file under {} matches", dir.path().display())
        );
        assert!(refusal(&dir, &["no/*.txt"]).contains("cannot list"));
        assert!(refusal(&dir, &["[.txt"]).starts_with("data: [.txt: not a glob: "));
    }

    #[test]
    fn a_kind_that_is_not_read_is_refused_with_the_list_of_kinds() {
        let dir = folder(&["a.csv", "noext", "d/a.txt"]);
        let message = refusal(&dir, &["a.csv"]);
        assert!(message.contains("a.csv: can't read .csv as data; read are .txt, .raw and .md"), "{message}");
        assert!(refusal(&dir, &["noext"]).contains("noext: no extension tells what it holds; read are"));
        assert!(refusal(&dir, &["d"]).contains("d: is a folder; name its files, as in "));
        assert!(refusal(&dir, &["gone.txt"]).contains("gone.txt: cannot read data: No such file"));
        assert!(refusal(&dir, &[]).starts_with("data: the list is empty; read are"));
    }
}

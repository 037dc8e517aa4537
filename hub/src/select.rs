//! Which files of a repository are wanted.
//!
//! Knows names alone (and, of an index of shards, what it lists). Invariant: nothing is fetched that neither training nor running reads:
//! of weights one copy, in safetensors.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use globset::GlobBuilder;
use serde::Deserialize;

use crate::{Error, Part, Reference, Result, reference::is_safe};

/// The tokenizer, without which no text is read.
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "config.json";
const MODEL_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// What travels with the weights. `manifest.json` makes a packed model of a directory, `qat.json` says where it is from.
const SURROUNDINGS: [&str; 13] = [
    CONFIG_FILE,
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "manifest.json",
    "qat.json",
    "README.md",
];
/// Beginnings of the names of licence files, in lower case.
const LICENCES: [&str; 3] = ["license", "licence", "notice"];
/// What says a model's shape.
const SHAPE: [&str; 2] = [CONFIG_FILE, "manifest.json"];
/// Names that a message lists.
const LISTED: usize = 8;

/// Files of a model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Their names.
    pub(crate) files: Vec<String>,
    /// Lists further ones: the shards.
    pub(crate) index: Option<String>,
    /// The folder, or the file, that is the model; empty for the repository's root.
    pub(crate) place: String,
    /// Whether that is a file.
    pub(crate) is_file: bool,
}

/// The files of the model that `reference` names in a repository of `files`.
pub(crate) fn of_model(reference: &Reference, files: &[String], part: Part) -> Result<Wanted> {
    if let Some(path) = reference.path.as_ref().filter(|path| files.contains(path)) {
        let mut wanted = vec![path.clone()];
        let (folder, name) = split(path);
        if name == TOKENIZER_FILE {
            wanted.extend(
                surroundings(files, folder)
                    .filter(|file| *file != path && is_of_tokenizer(split(file).1))
                    .cloned(),
            );
        }
        return Ok(Wanted { files: wanted, index: None, place: path.clone(), is_file: true });
    }
    let place = reference.path.clone().unwrap_or_default();
    let here = |name: &str| if place.is_empty() { name.to_owned() } else { format!("{place}/{name}") };
    let has = |name: &str| files.contains(&here(name));
    let inside: Vec<&String> =
        files.iter().filter(|file| place.is_empty() || file.starts_with(&here(""))).collect();
    if inside.is_empty() {
        return Err(missing(reference, files));
    }
    if part == Part::Shape {
        let wanted: Vec<String> = SHAPE.into_iter().filter(|name| has(name)).map(here).collect();
        return match has(CONFIG_FILE) {
            true => Ok(Wanted { files: wanted, index: None, place, is_file: false }),
            false => Err(no_model(reference, &inside)),
        };
    }
    let mut wanted: Vec<String> = surroundings(files, &place).cloned().collect();
    let index = (!has(MODEL_FILE) && has(INDEX_FILE)).then(|| here(INDEX_FILE));
    match &index {
        Some(index) => wanted.push(index.clone()),
        None if has(MODEL_FILE) => wanted.push(here(MODEL_FILE)),
        None => return Err(no_model(reference, &inside)),
    }
    if !has(CONFIG_FILE) {
        return Err(no_model(reference, &inside));
    }
    Ok(Wanted { files: wanted, index, place, is_file: false })
}

/// The files of data that `reference` names in a repository of `files`.
pub(crate) fn of_data(reference: &Reference, files: &[String]) -> Result<Vec<String>> {
    let Some(pattern) = &reference.path else {
        let problem = format!("{reference}: name files of it, such as {reference}/{}", example(files));
        return Err(Error::NotFound(format!(
            "{problem}; it has {}",
            listed(files.iter().filter(|file| is_data(file)))
        )));
    };
    if files.contains(pattern) {
        return Ok(vec![pattern.clone()]);
    }
    let matcher = GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map_err(|e| Error::Reference(format!("{reference}: not a pattern: {}", e.kind())))?
        .compile_matcher();
    let mut found: Vec<String> = files.iter().filter(|file| matcher.is_match(file)).cloned().collect();
    found.sort();
    if found.is_empty() { Err(missing(reference, files)) } else { Ok(found) }
}

/// The shards that the index at `path` lists; `name` is its name in a repository of `files`.
pub(crate) fn shards(path: &Path, name: &str, files: &[String]) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|e| Error::NotFound(format!("{}: is no index of shards: {e}", path.display())))?;
    let (folder, _) = split(name);
    let mut found = BTreeSet::new();
    for shard in index.weight_map.into_values() {
        let shard = if folder.is_empty() { shard } else { format!("{folder}/{shard}") };
        if !is_safe(&shard) || !files.contains(&shard) {
            let problem = format!("lists {shard:?}, which the repository doesn't have");
            return Err(Error::NotFound(format!("{}: {problem}", path.display())));
        }
        found.insert(shard);
    }
    Ok(found)
}

/// Folder and name.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn surroundings<'a>(files: &'a [String], folder: &str) -> impl Iterator<Item = &'a String> {
    files.iter().filter(move |file| {
        let (place, name) = split(file);
        let is_licence = || {
            let name = name.to_ascii_lowercase();
            LICENCES.iter().any(|licence| name.starts_with(licence))
        };
        place == folder && (SURROUNDINGS.contains(&name) || is_licence())
    })
}

/// Whether a file called `name` belongs to the tokenizer rather than to the model.
fn is_of_tokenizer(name: &str) -> bool {
    ![CONFIG_FILE, "manifest.json", "qat.json"].contains(&name)
}

fn is_data(file: &str) -> bool {
    [".jsonl", ".parquet", ".txt", ".md", ".raw"].iter().any(|ending| file.ends_with(ending))
}

/// A pattern that finds something.
fn example(files: &[String]) -> String {
    let data = files.iter().find(|file| is_data(file) && !file.ends_with(".md"));
    data.cloned().unwrap_or_else(|| "data/*.jsonl".to_owned())
}

fn listed<'a>(files: impl Iterator<Item = &'a String>) -> String {
    let all: Vec<&str> = files.map(String::as_str).collect();
    match all.len() {
        0 => "none that is read".to_owned(),
        n if n > LISTED => format!("{} and {} more", all[..LISTED].join(", "), n - LISTED),
        _ => all.join(", "),
    }
}

fn missing(reference: &Reference, files: &[String]) -> Error {
    let path = reference.path.as_deref().unwrap_or_default();
    Error::NotFound(format!("{reference}: the repository has no {path}; it has {}", listed(files.iter())))
}

/// Why `inside` is no model: what it lacks, and what it has instead.
fn no_model(reference: &Reference, inside: &[&String]) -> Error {
    let of = |ending: &str| inside.iter().copied().filter(|file| file.ends_with(ending)).collect::<Vec<_>>();
    let (gguf, torch) = (of(".gguf"), of(".bin"));
    let way = match (gguf.first(), torch.first()) {
        (Some(_), _) => format!("name one of its GGUF files, hf://…/NAME: {}", listed(gguf.iter().copied())),
        (_, Some(first)) => format!("its weights are pickled ({first}); convert them to safetensors first"),
        _ => format!("it has {}", listed(inside.iter().copied())),
    };
    Error::NotFound(format!(
        "{reference}: no model in safetensors ({CONFIG_FILE} with {MODEL_FILE} or its shards); {way}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(reference: &str, files: &[&str], part: Part) -> Result<Wanted> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        of_model(&reference.parse().expect("a reference"), &files, part)
    }

    const REPO: [&str; 11] = [
        ".gitattributes",
        "LICENSE",
        "README.md",
        "config.json",
        "model.safetensors",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "runs/events.out",
        "sub/config.json",
        "sub/model.safetensors",
        "tokenizer.json",
    ];

    #[test]
    fn of_weights_one_copy_is_fetched_and_nothing_that_is_not_read() {
        let wanted = chosen("hf://a/b", &REPO, Part::Whole).expect("a model");
        assert_eq!(
            wanted.files,
            ["LICENSE", "README.md", "config.json", "tokenizer.json", "model.safetensors"]
        );
        let wanted = chosen("hf://a/b/sub", &REPO, Part::Whole).expect("a model");
        assert_eq!(
            (wanted.files.as_slice(), wanted.place.as_str()),
            (&["sub/config.json".to_owned(), "sub/model.safetensors".to_owned()][..], "sub")
        );
        let wanted = chosen("hf://a/b", &REPO, Part::Shape).expect("a model");
        assert_eq!(wanted.files, ["config.json"]);
        let shards = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"];
        let wanted = chosen("hf://a/b", &shards, Part::Whole).expect("a model");
        assert_eq!(wanted.index.as_deref(), Some("model.safetensors.index.json"));
        assert_eq!(
            wanted.files,
            ["config.json", "model.safetensors.index.json"],
            "shards come from the index"
        );
    }

    #[test]
    fn a_file_is_fetched_alone_and_a_tokenizer_with_its_company() {
        let files = ["a.gguf", "config.json", "special_tokens_map.json", "tokenizer.json"];
        let wanted = chosen("hf://a/b/a.gguf", &files, Part::Whole).expect("a file");
        assert_eq!((wanted.files, wanted.is_file), (vec!["a.gguf".to_owned()], true));
        let wanted = chosen("hf://a/b/tokenizer.json", &files, Part::Whole).expect("a file");
        assert_eq!(wanted.files, ["tokenizer.json", "special_tokens_map.json"]);
    }

    #[test]
    fn a_repository_without_a_model_is_refused_with_what_it_has() {
        let refused =
            |files: &[&str]| chosen("hf://a/b", files, Part::Whole).expect_err("refused").to_string();
        assert!(
            refused(&["config.json", "x-Q4_0.gguf"])
                .contains("name one of its GGUF files, hf://…/NAME: x-Q4_0.gguf")
        );
        assert!(
            refused(&["config.json", "pytorch_model.bin"])
                .contains("its weights are pickled (pytorch_model.bin)")
        );
        assert!(refused(&["model.safetensors"]).contains("it has model.safetensors"));
        let message = chosen("hf://a/b/nothing", &REPO, Part::Whole).expect_err("refused").to_string();
        assert!(
            message.contains("the repository has no nothing; it has .gitattributes, LICENSE"),
            "{message}"
        );
    }

    #[test]
    fn a_pattern_stays_in_its_folder_and_is_sorted() {
        let files: Vec<String> =
            ["d/b.parquet", "d/a.parquet", "d/e/c.parquet", "README.md"].map(str::to_owned).to_vec();
        let found = |reference: &str| of_data(&reference.parse().expect("a reference"), &files);
        assert_eq!(found("hf://datasets/a/b/d/*.parquet").expect("files"), ["d/a.parquet", "d/b.parquet"]);
        assert_eq!(found("hf://datasets/a/b/**/*.parquet").expect("files").len(), 3);
        let message = found("hf://datasets/a/b").expect_err("refused").to_string();
        assert!(message.contains("name files of it, such as hf://datasets/a/b/d/b.parquet"), "{message}");
        assert!(
            found("hf://datasets/a/b/x/*")
                .expect_err("refused")
                .to_string()
                .contains("the repository has no x/*")
        );
    }
}

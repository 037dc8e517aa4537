//! A float model as Hugging Face lays it out: config, tensors, tokenizer, and the small files that travel along.
//!
//! Knows no architecture: the config stays JSON, the tensors stay bytes. Invariant: an [`HfDir`] that exists has
//! config and tensors; whether it has a tokenizer shows when text is to be read.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::manifest::MANIFEST_FILE;
use super::tensors::{INDEX_FILE, MODEL_FILE, TensorFiles, read_json};
use crate::error::{Error, Result};

/// Name of the model's description.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Name of the tokenizer's settings, the chat template among them.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// Files beside weights and config that another tool needs, or a licence asks to pass on.
const COMPANIONS: [&str; 9] = [
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
];
/// Beginnings of the names of licence files, in lower case.
const LICENCES: [&str; 3] = ["license", "licence", "notice"];

/// A float model in a directory.
#[derive(Debug)]
pub struct HfDir {
    /// The directory.
    pub path: PathBuf,
    /// The content of `config.json`.
    pub config: Value,
    /// The weights.
    pub tensors: TensorFiles,
}

impl HfDir {
    /// Opens the model directory at `path`.
    ///
    /// # Errors
    /// When `path` is no directory, a part is missing (all missing ones are named), or a part can't be read.
    pub fn open(path: &Path) -> Result<Self> {
        check_parts(path)?;
        let config = read_json(&path.join(CONFIG_FILE))?;
        Ok(Self { path: path.to_owned(), config, tensors: TensorFiles::open(path)? })
    }

    /// Path of `config.json`, for messages.
    pub fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG_FILE)
    }

    /// Path of `tokenizer.json`, which a model that reads no text lacks.
    pub fn tokenizer(&self) -> PathBuf {
        self.path.join(TOKENIZER_FILE)
    }
}

/// The files of `dir` that travel with a model from export to export: tokenizer, generation settings,
/// chat template, licences. In order of name.
///
/// # Errors
/// When the directory can't be listed.
pub fn companions(dir: &Path) -> Result<Vec<PathBuf>> {
    let listed = |e| Error::io("cannot list", dir, e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(listed)? {
        let path = entry.map_err(listed)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let wanted = COMPANIONS.contains(&name) || is_licence(&path);
        if wanted && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file has the name of a licence.
pub(crate) fn is_licence(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).map(str::to_ascii_lowercase);
    name.is_some_and(|name| LICENCES.iter().any(|licence| name.starts_with(licence)))
}

fn check_parts(path: &Path) -> Result<()> {
    const WANT: &str = "want a Hugging Face model directory (config.json, tokenizer.json, model.safetensors)";
    if !path.exists() {
        return Err(Error::file(path, format!("does not exist; {WANT}")));
    }
    if !path.is_dir() {
        return Err(Error::file(path, format!("is not a directory; {WANT}")));
    }
    let has = |name: &str| path.join(name).is_file();
    if has(MANIFEST_FILE) {
        let problem = format!(
            "is a packed model ({MANIFEST_FILE}), rounded already; want the float model it was made of"
        );
        return Err(Error::file(path, problem));
    }
    let mut missing = Vec::new();
    if !has(CONFIG_FILE) {
        missing.push(CONFIG_FILE.to_owned());
    }
    if !has(MODEL_FILE) && !has(INDEX_FILE) {
        missing.push(match has("pytorch_model.bin") {
            true => format!("{MODEL_FILE} (save pytorch_model.bin as such with transformers)"),
            false => MODEL_FILE.to_owned(),
        });
    }
    if missing.is_empty() {
        return Ok(());
    }
    // Not a reason to refuse, but told along with those that are.
    if !has(TOKENIZER_FILE) {
        missing.insert(usize::from(!has(CONFIG_FILE)), missing_tokenizer(path));
    }
    Err(Error::file(path, format!("not a model directory: missing {}", missing.join(", "))))
}

/// What is missing where there is no `tokenizer.json`, with the fix if there is one.
pub(super) fn missing_tokenizer(dir: &Path) -> String {
    match dir.join("tokenizer.model").is_file() {
        true => format!("{TOKENIZER_FILE} (save tokenizer.model as such with transformers)"),
        false => TOKENIZER_FILE.to_owned(),
    }
}

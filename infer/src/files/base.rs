//! Where a model comes from and under which licence, as far as its own files say.
//!
//! Knows no weights. Invariant: nothing is guessed; what no file says is absent.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hf_writer::PROVENANCE_FILE;
use super::tensors::read_json;

/// The model that another one was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its name: that of its directory.
    pub name: String,
    /// Its licence, as the front matter of its README.md spells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

impl Base {
    /// What the files of `dir` say; a directory that qat wrote passes on what it was made of.
    pub fn of(dir: &Path) -> Self {
        let told = read_json::<Value>(&dir.join(PROVENANCE_FILE)).ok();
        let told = told.and_then(|mut json| serde_json::from_value(json["source"]["base"].take()).ok());
        told.unwrap_or_else(|| {
            let path = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let card = std::fs::read_to_string(dir.join("README.md")).unwrap_or_default();
            Self { name, license: licence_in(&card).map(str::to_owned) }
        })
    }
}

/// `license:` in the YAML front matter of a model card: a plain string in every card of a hub.
fn licence_in(card: &str) -> Option<&str> {
    let (matter, _) = card.strip_prefix("---")?.split_once("\n---")?;
    let line = matter.lines().find_map(|line| line.strip_prefix("license:"))?;
    let value = line.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_licence_stands_in_the_front_matter() {
        assert_eq!(licence_in("---\ntags: [x]\nlicense: apache-2.0\n---\n# Model\n"), Some("apache-2.0"));
        assert_eq!(licence_in("---\nlicense: \"mit\"\n---\n"), Some("mit"));
        assert_eq!(licence_in("# Model\n\nlicense: mit\n"), None);
        assert_eq!(licence_in("---\nlicense_name: llama3\n---\n"), None);
    }
}

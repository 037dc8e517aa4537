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
    /// Its name: that of its directory, or of its repository where it lies in the cache of a hub.
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
            let own_name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = of_hub(&path).unwrap_or_else(own_name);
            let card = std::fs::read_to_string(dir.join("README.md")).unwrap_or_default();
            Self { name, license: licence_in(&card).map(str::to_owned) }
        })
    }
}

/// `owner/name` of a directory below `models--owner--name/snapshots/COMMIT`, as the hub's cache has it.
fn of_hub(path: &Path) -> Option<String> {
    let mut above =
        path.ancestors().skip_while(|above| above.file_name().is_none_or(|name| name != "snapshots"));
    let repo = above.nth(1)?.file_name()?.to_str()?.strip_prefix("models--")?;
    Some(repo.replacen("--", "/", 1))
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
    fn in_the_cache_of_a_hub_a_model_has_the_name_of_its_repository() {
        let name = |path: &str| of_hub(Path::new(path));
        assert_eq!(name("cache/models--Owner--A-1--b/snapshots/0123"), Some("Owner/A-1--b".to_owned()));
        assert_eq!(name("cache/models--gpt2/snapshots/0123/onnx"), Some("gpt2".to_owned()));
        assert_eq!(name("models/Owner--A"), None);
    }

    #[test]
    fn the_licence_stands_in_the_front_matter() {
        assert_eq!(licence_in("---\ntags: [x]\nlicense: apache-2.0\n---\n# Model\n"), Some("apache-2.0"));
        assert_eq!(licence_in("---\nlicense: \"mit\"\n---\n"), Some("mit"));
        assert_eq!(licence_in("# Model\n\nlicense: mit\n"), None);
        assert_eq!(licence_in("---\nlicense_name: llama3\n---\n"), None);
    }
}

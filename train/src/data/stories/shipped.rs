//! data/README.md names every file in data/ with its hash, and nothing else; the language of the teacher is pinned.
//!
//! Knows no file by name: whoever adds one adds its row.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::generate;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes of all files below `folder`, by their path from data/.
fn hashes(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(data()).unwrap().to_str().unwrap().replace('\\', "/");
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if path.is_dir() {
            hashes(&path, found);
        } else if name != "README.md" && !hidden {
            found.insert(name, sha256(&fs::read(&path).unwrap()));
        }
    }
}

#[test]
fn the_readme_of_the_stories_and_their_teacher_names_every_file_with_its_hash() {
    let readme = fs::read_to_string(data().join("README.md")).unwrap();
    // A row is | `file` | `sha256` | …
    let rows = readme.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('`');
        let (file, hash) = (cells.next()?, cells.nth(1)?);
        Some((file.to_owned(), hash.to_owned()))
    });
    let mut found = BTreeMap::new();
    hashes(&data(), &mut found);
    assert!(!found.is_empty());
    assert_eq!(rows.collect::<BTreeMap<_, _>>(), found, "left: data/README.md, right: data/");
}

/// The teacher has learnt these stories: another text here means that it, and its tokenizer, must be trained again.
#[test]
fn the_stories_are_those_that_the_teacher_has_learnt() {
    let stories = generate(0, 1_000_000);
    assert_eq!(
        sha256(stories.text.as_bytes()),
        "2c2b5bccd4cb87b0bf51f00275810d9fc2686e5a3ea26c0b37eb4bebe12c5d3d"
    );
}

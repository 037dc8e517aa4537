//! Where the tests find the data that is kept beside the repository: model fixtures, texts, small published models.
//!
//! Knows none of the data. A checkout without it passes its tests, and says loudly which it skipped.

use std::path::{Path, PathBuf};

/// The folder or file `part` of the shared data, or none with a line that says so.
pub(crate) fn shared(part: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(part);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not there", path.display());
    None
}

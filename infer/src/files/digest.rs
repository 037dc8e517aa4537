//! SHA-256 as the lower-case hex that manifests hold.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// The digest of `parts`, one after the other.
pub fn sha256_hex(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String can't fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

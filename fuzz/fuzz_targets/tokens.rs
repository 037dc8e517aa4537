//! A token file. Its checksum is mended, so that what lies behind it is reached.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qat_fuzz::file;
use qat_train::data::Tokens;
use sha2::{Digest, Sha256};

/// Bytes of the header under its checksum, and of all of it.
const CHECKED: usize = 88;
const HEADER: usize = 120;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= HEADER {
        let ids = Sha256::digest(Sha256::digest(&bytes[HEADER..]));
        let sum = Sha256::new().chain_update(&bytes[..CHECKED]).chain_update(ids).finalize();
        bytes[CHECKED..HEADER].copy_from_slice(&sum);
    }
    let Ok(tokens) = Tokens::open(&file("data.tokens", &bytes)) else { return };
    assert_eq!(tokens.slice(0..tokens.len()).len(), tokens.len());
    if let Ok((first, second)) = tokens.split(0.5, 2) {
        assert!(first.len() + second.len() <= tokens.len());
    }
});

//! A `tokenizer.json`: what is loaded encodes and decodes, with ids below the vocabulary's size.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qat_fuzz::file;
use qat_infer::files::{load_tokenizer, tokenizer_sha256};

const VOCAB: usize = 300;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = load_tokenizer(&file("tokenizer.json", bytes), VOCAB) else { return };
    let _ = tokenizer_sha256(&tokenizer);
    if let Ok(encoded) = tokenizer.encode("It's 42 ☕\n  naïve", true) {
        assert!(encoded.get_ids().iter().all(|id| (*id as usize) < VOCAB));
        let _ = tokenizer.decode(encoded.get_ids(), true);
    }
});

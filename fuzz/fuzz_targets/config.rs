//! A Hugging Face `config.json`: what is accepted is written as one that means the same.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qat_infer::model::{Config, params};

/// Tensors of more layers are only listed where a list of that length is no finding.
const LISTED: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let Ok(json) = serde_json::from_slice(bytes) else { return };
    let path = Path::new("config.json");
    let Ok(config) = Config::from_json(&json, path) else { return };
    let Ok(again) = Config::from_json(&config.to_json(), path) else {
        panic!("{config:?} is not read again")
    };
    assert_eq!(config, again);
    if config.layers <= LISTED {
        assert!(!params(&config).is_empty());
    }
});

//! A packed directory: its manifest and its tensor file, with a separator between them; a part that is missing is a good one.
//!
//! Checksums and sums are mended, so that what lies behind them is reached. Of what opens a part is run.

#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qat_fuzz::{dir, file, is_run, one_thread, open, split};
use qat_infer::files::{CONFIG_FILE, MANIFEST_FILE, MODEL_FILE, Manifest, TensorFiles, sha256_hex};

const GOOD: [(&str, &[u8]); 3] = [
    (CONFIG_FILE, include_bytes!("../seeds/model/config.json")),
    (MANIFEST_FILE, include_bytes!("../seeds/model/manifest.json")),
    (MODEL_FILE, include_bytes!("../seeds/model/model.safetensors")),
];

fuzz_target!(init: one_thread(), |bytes: &[u8]| {
    let [manifest, tensors] = split(bytes);
    for ((name, good), part) in GOOD.into_iter().zip([&[], manifest, tensors]) {
        file(name, if part.is_empty() { good } else { part });
    }
    mend(dir());
    open(dir(), is_run(bytes));
});

/// Makes the manifest say what sums the tensor file has.
fn mend(dir: &Path) {
    let path = dir.join(MANIFEST_FILE);
    let (Ok(mut manifest), Ok(tensors)) =
        (Manifest::read(&path), TensorFiles::open_file(&dir.join(MODEL_FILE)))
    else {
        return;
    };
    for (name, entry) in &mut manifest.tensors {
        if let Ok(stored) = tensors.bytes(name) {
            entry.sha256 = sha256_hex(&[&stored]);
        }
    }
    manifest.file_bytes = fs::metadata(dir.join(MODEL_FILE)).map_or(0, |meta| meta.len());
    manifest.bits_per_weight = Manifest::bits_per_weight_of(&manifest.tensors);
    if let Ok(json) = manifest.to_json() {
        file(MANIFEST_FILE, json.as_bytes());
    }
}

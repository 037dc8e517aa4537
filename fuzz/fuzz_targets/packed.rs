//! A packed directory: its manifest and its tensor file, with a separator between them; a part that is missing is a good one.
//!
//! Checksums and sums are mended, so that what lies behind them is reached. What opens is run.

#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qat_fuzz::{dir, file, seeds, split};
use qat_infer::cpu::{Cpu, KvType};
use qat_infer::files::{MANIFEST_FILE, MODEL_FILE, Manifest, TensorFiles, sha256_hex};
use qat_infer::{Opened, Runtime};

fuzz_target!(|bytes: &[u8]| {
    let good = seeds::packed();
    for (name, content) in good {
        file(name, content);
    }
    let parts = split(bytes);
    for (name, part) in [MANIFEST_FILE, MODEL_FILE].into_iter().zip(&parts) {
        if !part.is_empty() {
            file(name, part);
        }
    }
    mend(dir());
    let Ok(model) = Opened::<<Cpu as Runtime>::Matrix>::open(dir()) else { return };
    let Ok(mut sequence) = Cpu.sequence(&model.decoder, 4, KvType::F32) else { return };
    if let Ok(logits) = sequence.prefill(&[1, 2]) {
        assert_eq!(logits.len(), model.decoder.config.vocab_size);
    }
});

/// Makes the manifest say what sums the tensor file has.
fn mend(dir: &Path) {
    let path = dir.join(MANIFEST_FILE);
    let (Ok(mut manifest), Ok(tensors)) = (Manifest::read(&path), TensorFiles::open_file(&dir.join(MODEL_FILE))) else {
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

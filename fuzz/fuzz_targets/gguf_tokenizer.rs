//! The tokenizer that the metadata of a GGUF file describe: what is made of them encodes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qat_fuzz::{file, one_thread};
use qat_infer::gguf::GgufModel;

fuzz_target!(init: one_thread(), |bytes: &[u8]| {
    let Ok(model) = GgufModel::open(&file("model.gguf", bytes)) else { return };
    if let Ok(tokenizer) = model.tokenizer() {
        let _ = tokenizer.encode("It's 42 ☕\n  naïve", true);
    }
});

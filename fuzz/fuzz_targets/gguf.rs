//! A GGUF file: its container, the model in it and its tensors. Of what opens a part is run.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qat_fuzz::{file, is_run, one_thread, open};
use qat_infer::gguf::GgufModel;
use qat_infer::model::params;

fuzz_target!(init: one_thread(), |bytes: &[u8]| {
    let path = file("model.gguf", bytes);
    let Ok(model) = GgufModel::open(&path) else { return };
    for param in params(&model.config) {
        if let Ok(values) = model.values(&param) {
            assert_eq!(values.len(), param.shape.iter().product::<usize>(), "{}", param.name);
            assert!(values.iter().all(|value| value.is_finite()), "{}", param.name);
        }
    }
    if is_run(bytes) {
        open(&path, true);
    }
});

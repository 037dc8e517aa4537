//! An MLX directory: its `config.json` and its tensors, with a separator between them; a part that is missing is a good one.
//! Of what opens a part is run.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qat_fuzz::{dir, file, is_run, one_thread, open, split};
use qat_infer::files::{CONFIG_FILE, MODEL_FILE};

const GOOD: [(&str, &[u8]); 2] = [
    (CONFIG_FILE, include_bytes!("../seeds/mlx-model/config.json")),
    (MODEL_FILE, include_bytes!("../seeds/mlx-model/model.safetensors")),
];

fuzz_target!(init: one_thread(), |bytes: &[u8]| {
    for ((name, good), part) in GOOD.into_iter().zip(split(bytes)) {
        file(name, if part.is_empty() { good } else { part });
    }
    open(dir(), is_run(bytes));
});

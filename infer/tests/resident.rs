//! A big model is in memory once. Alone in its process, because it weighs all of it.
#![cfg(target_os = "linux")]

mod random_model;

use qat_infer::cpu::{Model, RunOptions, Session};
use qat_infer::files::Activations;
use random_model::{RandomModel, llama};

/// Bytes of this process that are in memory: of the heap, and of mapped files.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let of = |key: &str| -> usize {
        let line = status.lines().find(|line| line.starts_with(key)).expect("a line of the status");
        line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number of KiB")
    };
    1024 * (of("RssAnon:") + of("RssFile:"))
}

#[test]
fn an_open_model_takes_the_memory_of_its_panels_and_no_second_copy() {
    let format = "int8-g32".parse().expect("a format");
    // 109 million weights.
    let random = RandomModel::new(&llama(40_000, 5, 6), format, Activations::Int8Token);
    let file = std::fs::metadata(random.path.join("model.safetensors")).expect("the file").len() as usize;
    assert!(file > 100 << 20, "{file}");
    let before = resident();
    let model = Model::open(&random.path).expect("opens");
    let taken = resident() - before;
    let session = Session::new(&model.decoder, &RunOptions::new(16)).expect("fits");
    let weights = session.weight_bytes() as usize;
    println!("file {file}, weights {weights}, resident {taken}");
    // Panels have a few rows of padding; what else a model holds is small. A second copy would be the double.
    assert!(weights.abs_diff(file) < file / 50, "{weights} bytes of panels from {file}");
    assert!(taken < weights + weights / 10, "{taken} bytes are resident for {weights} of weights");
}

//! What `train.checkpoint_layers` is for: memory. Alone in its process, because it counts all there is.

use std::path::Path;

use candle_core::Device;
use qat_train::{
    ranks::Ranks,
    recipe::{self, Plan},
    trainer::measure,
};

#[global_allocator]
static HEAP: dhat::Alloc = dhat::Alloc;

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 192,
"num_hidden_layers": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
"rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true}"#;

/// The most bytes on the heap during a step, and its loss.
fn step(folder: &Path, checkpoint_layers: bool) -> (usize, f64) {
    let text = format!(
        r#"
        [student.scratch]
        config = {:?}
        tokenizer = {:?}
        [quant]
        weights = "int4-g32"
        [data]
        train = ["none"]
        ctx = 512
        [loss]
        cross_entropy = 1.0
        [train]
        steps = 1
        batch = 4
        checkpoint_layers = {checkpoint_layers}
        "#,
        folder.join("config.json"),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/teacher/tokenizer.json"),
    );
    let named = recipe::parse(&text, Path::new("test.toml"), &[]).expect("a recipe");
    let plan = Plan::new(&named[0].recipe).expect("a plan");
    let profiler = dhat::Profiler::builder().testing().build();
    let measured = measure(&plan, (&Device::Cpu, &Ranks::alone()), 0, 1).expect("a step");
    let peak = dhat::HeapStats::get().max_bytes;
    drop(profiler);
    (peak, measured.losses[0])
}

#[test]
fn layers_that_are_computed_again_take_a_fraction_of_the_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), CONFIG).expect("a free disk");
    let [(kept, loss), (again, same)] = [false, true].map(|again| step(folder.path(), again));
    assert_eq!(loss, same);
    // A layer keeps some twenty tensors of 2048 × 64, twelve of which go; of each a boundary stays.
    assert!(again * 3 < kept, "{again} bytes instead of {kept}");
}

//! The trainer's executor against what transformers computed, and against the runtime.

use qat_infer::{FloatModel, cpu::Model, files::TensorFiles};

use super::*;
use crate::{
    student::Floats,
    tiny::{largest_difference, runtime_logits, shared, trained_logits},
};

const FIXTURES: [&str; 12] = [
    "llama_tied",
    "llama_untied",
    "llama_ternary",
    "llama_bitlinear",
    "qwen2",
    "qwen3",
    "qwen3_tied",
    "bitnet_online",
    "bitnet_packed",
    "lfm2",
    "phi3",
    "gemma3",
];

#[test]
fn logits_agree_with_transformers_and_with_the_runtime() {
    let Some(root) = shared("fixtures") else { return };
    for name in FIXTURES {
        let dir = root.join(name);
        let model = FloatModel::open(&dir).expect("fixture");
        let vocab = model.config.vocab_size;
        let decoder = Floats::read(&model).expect("weights").decoder(&Device::Cpu).expect("decoder");
        let runtime = Model::open(&dir).expect("opens");
        let expected = TensorFiles::open_file(&dir.join("expected.safetensors")).expect("reference");
        let (mut from_reference, mut from_runtime) = (Vec::new(), Vec::new());
        for prompt in 0..4 {
            let stored = expected.bytes(&format!("prompt_{prompt}")).expect("prompt");
            let ids: Vec<u32> = stored.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
            let want = expected.f32(&format!("logits_{prompt}"), &[ids.len(), vocab]).expect("logits");
            let found = trained_logits(&decoder, &ids);
            from_reference.push(largest_difference(&found, &want));
            from_runtime.push(largest_difference(&found, &runtime_logits(&runtime.decoder, &ids)));
        }
        for (whom, prompts) in [("transformers", from_reference), ("the runtime", from_runtime)] {
            // The bound of the task: logits of a few units, f32 sums of at most 512 products on all sides.
            let others = prompts.iter().filter(|worst| **worst > 1e-4);
            // As in the runtime's own comparison: inputs between two codes of 8 bits, here in the longer two of four prompts.
            let allowed = if name.starts_with("bitnet") { 2 } else { 0 };
            let is_near = others.clone().count() <= allowed && others.clone().all(|worst| *worst < 0.3);
            assert!(is_near, "{name}: {prompts:?} from {whom}");
        }
    }
}

#[test]
fn windows_of_a_batch_do_not_see_each_other() {
    // No tolerance: a window's rows go through the same sums, whichever batch they are in. Products are the exception
    // (how candle cuts one depends on its number of rows), so that the comparison is with a batch of equal size.
    let config = crate::tiny::config(serde_json::json!({}));
    let decoder = crate::tiny::floats(config, 1).decoder(&Device::Cpu).expect("decoder");
    let rope = RopeTable::new(&decoder.ropes, 8, &Device::Cpu).expect("rope");
    let second = |first: u32| -> Vec<f32> {
        let ids: Vec<u32> = [[first; 8], [5, 4, 3, 2, 1, 7, 8, 9]].concat();
        let mut exec = TrainExec::new(2, 8, &rope);
        let hidden = decoder.forward(&mut exec, &ids).expect("forward");
        hidden.narrow(0, 8, 8).and_then(|h| h.flatten_all()?.to_vec1()).expect("values")
    };
    assert!(second(1) == second(60));
}

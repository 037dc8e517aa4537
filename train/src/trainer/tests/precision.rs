//! Runs in bf16, on the emulator where there is no GPU.

use candle_core::DType;

use super::*;
use crate::ops::gpu::host::{self, Care};

const BF16: &str = "train.precision=bf16";

#[test]
fn bf16_on_the_cpu_is_refused_before_anything_is_read_with_key_and_way_out() {
    let place = Place::new();
    let plan = place.plan(&[BF16, "data.train=[\"nowhere.txt\"]"]);
    let message = place.train(&plan, "run", Start::Fresh, None).refusal();
    for part in ["train.precision = \"bf16\" is for GPUs", "train.precision = \"f32\"", "--device cuda"] {
        assert!(message.contains(part), "{message}");
    }
    let message = measure(&plan, (&Device::Cpu, &Ranks::alone()), 1, 1).expect_err("refused").to_string();
    assert!(message.contains("train.precision"), "{message}");
}

#[test]
fn another_spelling_is_refused() {
    let mut recipe = Place::new().plan(&[]).recipe;
    recipe.train.precision = "fp16".into();
    let message = Plan::new(&recipe).expect_err("refused").to_string();
    assert!(message.contains("train.precision = \"fp16\": want \"f32\" or \"bf16\""), "{message}");
}

/// Every kind of teacher and loss that a run can have, and both ways of training, in as few runs.
#[test]
fn a_run_in_bf16_learns_as_in_f32_and_keeps_f32() {
    if !host::available() {
        return;
    }
    let place = Place::new();
    let teacher = format!("teacher.model={}", place.model("teacher", 9));
    let whole = [
        "loss.cross_entropy=0.5",
        "loss.forward_kl=1.0",
        "teacher.model=latent",
        "train.checkpoint_layers=true",
    ];
    let inside =
        ["loss.cross_entropy=0.0", "loss.forward_kl=1.0", "loss.hidden=0.2", "loss.relations=0.2", &teacher];
    let cached = ["loss.cross_entropy=1.0", "loss.forward_kl=1.0", &teacher, "quant.activations=int8-token"];
    let layers = ["train.mode=blocks", "train.steps=3", "train.scale_steps=1"];
    let kinds =
        [("text", &[][..]), ("whole", &whole), ("inside", &inside), ("cached", &cached), ("layers", &layers)];
    for (name, sets) in kinds {
        let run = |precision: &str| {
            let precision = format!("train.precision={precision}");
            let cache = format!("teacher.cache={}", place.path("predictions").display());
            let few = ["train.steps=4", "train.accumulate=2", "train.batch=2", "quant.kv=int8", &precision];
            let sets: Vec<&str> = few.into_iter().chain(sets.iter().copied()).collect();
            let sets = if name == "cached" { [sets, vec![&cache]].concat() } else { sets };
            host::emulating(Care::Values, || place.finish(&place.plan(&sets), &format!("{name}-{precision}")))
        };
        let (narrow, wide) = (run("bf16"), run("f32"));
        let (found, want) = (narrow.losses(), wide.losses());
        assert_eq!(found.len(), want.len());
        assert!(found != want, "{name}: the same losses to the bit: bf16 was not used");
        // As of one step, and weights that have moved apart by a share of three steps. A layer's distance from the float one is small, and
        // follows the layer before it, which AdamW's first step has moved by the signs of its gradients, also of those near zero.
        let bound = if name == "layers" { 0.1 } else { 2e-3 };
        for (found, want) in found.iter().zip(&want) {
            assert!((found / want - 1.0).abs() < bound, "{name}: {found} in bf16, {want} in f32");
        }
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let path = narrow.out.join(format!("checkpoints/step-{:08}", found.len())).join(file);
            let tensors = candle_core::safetensors::load(path, &Device::Cpu).expect("a checkpoint");
            assert!(tensors.values().all(|t| t.dtype() == DType::F32), "{name}: {file}");
        }
    }
}

#[test]
fn a_run_in_bf16_that_was_stopped_ends_with_the_bits_of_one_that_was_not() {
    if !host::available() {
        return;
    }
    let place = Place::new();
    let plan = place.plan(&[BF16, "train.steps=4", "train.batch=2"]);
    host::emulating(Care::Values, || {
        let whole = place.finish(&plan, "whole");
        place.train(&plan, "parts", Start::Fresh, Some(2));
        let parts = place.train(&plan, "parts", Start::Resume, None);
        assert!(parts.outcome.is_ok() && whole.checkpoint(4) == parts.checkpoint(4));
    });
}

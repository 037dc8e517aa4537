//! One layer after the other: what is compared, what moves, and that a run can be cut anywhere.

use candle_core::Tensor;
use qat_infer::model::{Decoder, Exec as _, Ropes};

use super::*;
use crate::{
    data::Batch,
    exec::{Matrix, RopeTable, TrainExec},
    ops::{check::flat, gpu::Reader},
    precision::Precision,
    recipe::{Quantization, Rounding, Rules},
    student::{Moment, Student},
    trainer::{
        blocks::{Block, of_layer},
        gradients::StepGradients,
    },
};

const CTX: usize = 8;

fn batch(config: &Config) -> Batch {
    let ids = tiny::ids(2 * CTX + 1, config.vocab_size);
    let (inputs, targets) = (ids[1..].to_vec(), ids[..2 * CTX].to_vec());
    Batch { inputs, targets, rows: 2, context: CTX, windows: Vec::new(), packed: None }
}

/// What stands behind layer `index`, in f64.
fn behind(decoder: &Decoder<Matrix, Tensor>, rope: &RopeTable, index: usize, ids: &[u32]) -> Vec<f64> {
    let mut exec = TrainExec::new(ids.len() / CTX, CTX, rope);
    let mut x = exec.embed(&decoder.embed, ids, 1.0).expect("embedded");
    for index in 0..=index {
        x = decoder.layer(&mut exec, index, x).expect("a layer");
    }
    flat(&x).expect("values")
}

#[test]
fn a_layer_is_compared_with_the_float_one_behind_rounded_layers() {
    let config = tiny::config(json!({"num_hidden_layers": 3}));
    let floats = tiny::floats(config.clone(), 5);
    let rules = Rules::new("int2-affine-g32", "int8-g32", "int8-g32", &Default::default()).expect("rules");
    let start = Rounding::Rule(qat_quant::ScaleRule::Mse);
    let quantization = Quantization::untrained(rules, start, qat_infer::files::Activations::Float);
    let student = Student::new(&floats, quantization, &Device::Cpu).expect("student");
    let rope = RopeTable::new(&Ropes::new(&config), CTX, &Device::Cpu).expect("angles");
    let batch = batch(&config);
    let rounded = student.decoder(Some(1.0)).expect("a decoder");
    let float = floats.decoder(&Device::Cpu).expect("a decoder");
    let reader = Reader::new(&Device::Cpu).expect("a reader");
    for index in 0..3 {
        let (start, rope, precision) = (&floats, &rope, Precision::default());
        let block = Block { student: &student, start, rope, index, precision, reader: &reader };
        let moved: Vec<_> = of_layer(student.variables(), index).cloned().collect();
        let mut gradients = StepGradients::of(&moved);
        let sums = block.accumulate(&batch, Some(Moment::full()), 1, &mut gradients).expect("gradients");
        let sums = sums.read().expect("a distance");
        let gradients = gradients.finish().expect("gradients");
        let [ours, theirs] = [&rounded, &float].map(|decoder| behind(decoder, rope, index, &batch.inputs));
        let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let distance = squares(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b));
        let want = (2 * CTX) as f64 * distance / squares(&mut theirs.iter().copied());
        assert!(
            (sums.loss / want - 1.0).abs() < 1e-4 && want > 0.1,
            "layer {index}: {} and {want}",
            sums.loss
        );
        let variables: Vec<_> = of_layer(student.variables(), index).collect();
        assert_eq!((variables.len(), gradients.len()), (9 + 2 * 7, 9 + 2 * 7));
        for (variable, gradient) in variables.iter().zip(&gradients) {
            assert_eq!(variable.var.dims(), gradient.dims(), "{}", variable.name);
            assert!(flat(gradient).expect("values").iter().any(|v| *v != 0.0), "{}", variable.name);
        }
    }
}

/// Three steps a layer and three for the scales of both.
const SETS: [&str; 8] = [
    "train.mode=blocks",
    "train.steps=9",
    "train.scale_steps=3",
    "train.checkpoint_every=3",
    "train.keep_checkpoints=9",
    "train.accumulate=2",
    "quant.weights=int2-affine-g32",
    "optim.lr=1e-3",
];

fn plan(place: &Place) -> Plan {
    let teacher = place.model("teacher", 8);
    let model = format!("teacher.model={teacher}");
    let sets = [&SETS[..], &[&model, "loss.forward_kl=1.0", "loss.cross_entropy=0.0", "train.valid_every=3"]];
    place.plan_from(&teacher, &sets.concat())
}

/// The names of variables that differ between two checkpoints.
fn moved(run: &Run, from: usize, to: usize) -> Vec<String> {
    let load = |step: usize| {
        let file = format!("checkpoints/step-{step:08}/model.safetensors");
        candle_core::safetensors::load(run.out.join(file), &Device::Cpu).expect("a checkpoint")
    };
    let (before, after) = (load(from), load(to));
    let differs =
        |name: &&String| flat(&before[*name]).expect("values") != flat(&after[*name]).expect("values");
    let mut names: Vec<String> = before.keys().filter(differs).cloned().collect();
    names.sort();
    names
}

#[test]
fn layers_learn_one_by_one_and_then_the_scales_of_all() {
    let place = Place::new();
    let run = place.finish(&plan(&place), "run");
    let second = moved(&run, 3, 6);
    assert!(
        !second.is_empty() && second.iter().all(|name| name.starts_with("model.layers.1.")),
        "{second:?}"
    );
    let scales = moved(&run, 6, 9);
    assert!(scales.iter().all(|name| name.ends_with("_scale") || name.ends_with("_bias")), "{scales:?}");
    assert!(scales.iter().any(|name| name.starts_with("model.layers.0.")), "{scales:?}");
    let terms = |event: &Event| match event {
        Event::Step(line) => Some(line.terms.keys().cloned().collect::<Vec<_>>().join(" ")),
        _ => None,
    };
    let terms: Vec<String> = run.events.iter().filter_map(terms).collect();
    assert_eq!(terms, [vec!["block"; 6], vec!["forward_kl"; 3]].concat());
    let losses = run.losses();
    assert!(losses[2] < losses[0] && losses[5] < losses[3], "{losses:?}");
    let kl = |event: &Event| if let Event::Valid(line) = event { line.valid_kl } else { None };
    let kl: Vec<f64> = run.events.iter().filter_map(kl).collect();
    assert!(kl.len() == 3 && kl[2] < kl[0], "{kl:?}");
}

#[test]
fn a_run_that_was_stopped_inside_a_layer_ends_with_the_bits_of_one_that_was_not() {
    let place = Place::new();
    let plan = plan(&place);
    let whole = place.finish(&plan, "whole");
    for stop in [1, 3, 5, 7] {
        let out = format!("stopped-{stop}");
        let stopped = place.train(&plan, &out, Start::Fresh, Some(stop));
        assert_eq!(stopped.outcome.expect("stopped"), Outcome::Stopped { step: stop });
        let resumed = place.train(&plan, &out, Start::Resume, None);
        assert_eq!(resumed.outcome.as_ref().expect("finished"), &Outcome::Finished);
        assert!(resumed.checkpoint(9) == whole.checkpoint(9), "stopped after {stop}");
    }
}

#[test]
fn more_layers_than_steps_are_refused() {
    let place = Place::new();
    let refused =
        place.train(&place.plan(&["train.mode=blocks", "train.steps=1"]), "run", Start::Fresh, None);
    let message = refused.refusal();
    assert!(
        message.contains("train.mode") && message.contains("1 steps") && message.contains("2 layers"),
        "{message}"
    );
}

//! Weights that turn back too often are held: to the end, at one code, and alike in a run that was stopped.

use candle_core::safetensors::load;
use qat_quant::{Format, PackedRef};

use super::*;
use crate::{export::Shipment, ops::Turns};

const NAME: &str = "model.layers.1.mlp.down_proj.weight";

/// The codes that are held after `step` steps, NaN where none is, of the matrix `NAME` in int4.
fn held(run: &Run, step: usize, after: u32) -> Vec<f32> {
    let folder = run.out.join("checkpoints").join(format!("step-{step:08}"));
    let tensors = load(folder.join("model.safetensors"), &Device::Cpu).expect("a checkpoint");
    let state = &tensors[&format!("{NAME}_turns")];
    let mut codes = vec![f32::NAN; state.elem_count()];
    Turns::new(state, after).put_codes(Format::Int4G32, &mut codes).expect("on the CPU");
    codes
}

fn shares(run: &Run) -> Vec<f64> {
    let line = |e: &Event| if let Event::Step(line) = e { line.frozen } else { None };
    run.events.iter().filter_map(line).collect()
}

#[test]
fn a_held_weight_keeps_its_code_to_the_end_and_ships_with_it() {
    let place = Place::new();
    let sets = ["quant.freeze_after=1", "optim.lr=2e-2", "optim.scale_lr=0.05", "train.checkpoint_every=5"];
    for more in ["optim.kind=adamw", "optim.kind=muon", "quant.noise=0.5"] {
        let plan = place.plan(&[&sets[..], &["optim.weight_decay=0.1", more]].concat());
        let run = place.finish(&plan, more);
        let [middle, end] = [5, 10].map(|step| held(&run, step, 1));
        let before = middle.iter().filter(|code| !code.is_nan()).count();
        assert!(before > 0 && before < middle.len(), "{more}: {before} of {}", middle.len());
        for (at, (middle, end)) in middle.iter().zip(&end).enumerate() {
            assert!(middle.is_nan() || middle == end, "{more}: weight {at} went from {middle} to {end}");
        }
        let shares = shares(&run);
        assert!(shares.is_sorted() && shares[9] > shares[4] && shares[9] < 1.0, "{more}: {shares:?}");
        let target = run.out.join("packed");
        Shipment::of_run(&run.out).expect("a finished run").0.write(&target).expect("written");
        let dir = qat_infer::files::PackedDir::open(&target).expect("opens");
        let stored = dir.matrix(NAME, [64, 128]).expect("packed");
        let packed = PackedRef::new(NAME, Format::Int4G32, 64, 128, &stored.bytes, None).expect("blocks");
        let (mut codes, mut row) = (Vec::new(), vec![0i16; 128]);
        for at in 0..packed.rows() {
            packed.codes_row(at, &mut row);
            codes.extend(row.iter().map(|code| f32::from(*code)));
        }
        for (held, code) in end.iter().zip(codes).filter(|(held, _)| !held.is_nan()) {
            assert_eq!(*held, code, "{more}");
        }
    }
}

#[test]
fn without_the_key_nothing_is_counted_and_with_many_turns_nothing_changes() {
    let place = Place::new();
    let plain = place.finish(&place.plan(&[]), "plain");
    assert!(shares(&plain).is_empty());
    let patient = place.finish(&place.plan(&["quant.freeze_after=100"]), "patient");
    assert_eq!(shares(&patient), [0.0; 10]);
    assert_eq!(patient.losses(), plain.losses());
}

#[test]
fn layers_that_are_trained_one_by_one_are_counted_one_by_one() {
    let place = Place::new();
    let start = place.model("start", 8);
    let sets = [
        "train.mode=blocks",
        "train.steps=12",
        "train.scale_steps=2",
        "quant.freeze_after=1",
        "optim.lr=2e-2",
    ];
    let run = place.finish(&place.plan_from(&start, &sets), "blocks");
    let shares = shares(&run);
    assert!(shares.is_sorted() && shares[4] > 0.0 && shares[11] > shares[4], "{shares:?}");
}

#[test]
fn freezing_is_refused_where_no_code_can_be_held_or_all_are() {
    let place = Place::new();
    let plan = place.plan(&[]);
    let refusal = |change: &dyn Fn(&mut crate::recipe::Recipe)| {
        let mut recipe = plan.recipe.clone();
        recipe.quant.freeze_after = Some(3);
        change(&mut recipe);
        Plan::new(&recipe).expect_err("refused").to_string()
    };
    let message = refusal(&|recipe| recipe.quant.gradient = "ste".into());
    assert!(message.contains("quant.freeze_after = 3") && message.contains("use lsq or seq"), "{message}");
    let message = refusal(&|recipe| recipe.quant.learn = "scales".into());
    assert!(message.contains("quant.freeze_after = 3") && message.contains("leave it out"), "{message}");
    let message = refusal(&|recipe| recipe.quant.freeze_after = Some(0));
    assert!(message.contains("from 1 to 131071"), "{message}");
    let fine = place.plan(&["quant.freeze_after=3", "quant.weights=int8-g32"]);
    let message = place.train(&fine, "fine", Start::Fresh, None).refusal();
    assert!(message.contains("no matrix has a format of 4 bits or fewer"), "{message}");
}

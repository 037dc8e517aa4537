//! Rounding that comes in late, in part, or in formats that are chosen when the run begins.

use qat_infer::files::PackedDir;

use super::{mixed::Chosen, *};
use crate::export::Shipment;

fn steps(run: &Run) -> Vec<StepLog> {
    let step = |e: &Event| if let Event::Step(line) = e { Some(line.clone()) } else { None };
    run.events.iter().filter_map(step).collect()
}

#[test]
fn rounding_that_begins_with_the_decay_follows_a_float_run_until_then() {
    let place = Place::new();
    let late = ["optim.schedule=wsd", "optim.decay_share=0.5", "quant.weights=int3-affine-g32"];
    let sets = [&late[..], &["quant.begin=decay", "quant.warmup_steps=2", "quant.warmup=cosine"]].concat();
    let plan = place.plan(&sets);
    let run = place.finish(&plan, "late");
    let lambdas: Vec<f32> = steps(&run).iter().map(|line| line.lambda).collect();
    assert_eq!(lambdas, [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]);
    let float =
        ["optim.schedule=wsd", "optim.decay_share=0.5", "quant.weights=float", "quant.embeddings=float"];
    let float = place.finish(&place.plan(&float), "float");
    assert_eq!(run.losses()[..5], float.losses()[..5]);
    assert_ne!(run.losses()[5], float.losses()[5]);
    // Cut inside the float part, and at the step before rounding.
    for cut in [3, 5] {
        let name = format!("cut-{cut}");
        let stopped = place.train(&plan, &name, Start::Fresh, Some(cut));
        assert_eq!(stopped.outcome.as_ref().expect("stopped"), &Outcome::Stopped { step: cut });
        let resumed = place.train(&plan, &name, Start::Resume, None);
        assert!(resumed.checkpoint(10) == run.checkpoint(10), "cut after {cut} steps");
    }
}

#[test]
fn noise_is_drawn_anew_in_each_step_and_never_in_what_is_validated() {
    let place = Place::new();
    let sets = ["quant.noise=0.5", "quant.weights=ternary-g64", "train.valid_every=1", "optim.lr=1e-9"];
    let sets =
        [&sets[..], &["optim.scale_lr=1e-9", "optim.norm_lr=1e-9", "train.steps=4", "optim.warmup_steps=0"]];
    let plan = place.plan(&sets.concat());
    let run = place.finish(&plan, "noisy");
    let plain = place.finish(&place.plan(&[&sets.concat()[..], &["quant.noise=1.0"]].concat()), "plain");
    let valid = |run: &Run| -> Vec<f64> {
        let line = |e: &Event| if let Event::Valid(line) = e { Some(line.valid_cross_entropy) } else { None };
        run.events.iter().filter_map(line).collect()
    };
    // Weights that hardly move: what is validated is the same with and without, and what is trained is not.
    for (noisy, plain) in valid(&run).iter().zip(valid(&plain)) {
        assert!((noisy - plain).abs() < 1e-6, "{noisy} and {plain}");
    }
    assert!(run.losses().iter().zip(plain.losses()).all(|(a, b)| (a - b).abs() > 1e-6));
    let stopped = place.train(&plan, "cut", Start::Fresh, Some(2));
    assert_eq!(stopped.outcome.as_ref().expect("stopped"), &Outcome::Stopped { step: 2 });
    let resumed = place.train(&plan, "cut", Start::Resume, None);
    assert!(resumed.checkpoint(4) == run.checkpoint(4));
}

#[test]
fn the_log_tells_how_many_codes_have_changed() {
    let place = Place::new();
    let silent = place.finish(&place.plan(&["train.steps=2"]), "silent");
    assert!(steps(&silent).iter().all(|line| line.flips.is_none()));
    let plan = place.plan(&["quant.log_flips=true", "train.steps=6", "optim.lr=1e-2"]);
    let run = place.finish(&plan, "told");
    let flips: Vec<FlipLog> = steps(&run).iter().map(|line| line.flips.expect("asked for")).collect();
    assert!(flips.iter().all(|f| 0.0 < f.changed && f.changed < 1.0 && f.returned <= f.changed), "{flips:?}");
    assert!(flips[0].returned == 0.0 && flips[2..].iter().any(|f| f.returned > 0.0), "{flips:?}");
    let log = std::fs::read_to_string(run.out.join("log.jsonl")).expect("a log");
    assert!(log.lines().next().expect("a line").contains("\"flips\":{\"changed\":"), "{log}");
}

#[test]
fn mixed_formats_fill_the_budget_and_are_those_of_the_run_from_then_on() {
    let place = Place::new();
    let start = place.model("start", 8);
    let candidates = "quant.candidates=[\"int2-affine-g64\", \"int3-affine-g64\", \"int4-affine-g64\"]";
    let fixed = "quant.overrides.*.layers.0.mlp.down_proj.weight=int8-g32";
    let teacher = format!("teacher.model={start}");
    let sets = [candidates, "quant.target_bpw=6.6", fixed, &teacher, "loss.forward_kl=1.0", "train.steps=4"];
    let plan = place.plan_from(&start, &sets);
    let run = place.finish(&plan, "run");
    let chosen = Chosen::read(&run.out).expect("kept");
    assert_eq!(chosen.formats.len(), 13, "seven projections in two layers, but for one");
    let kinds: std::collections::BTreeSet<&str> = chosen.formats.values().map(String::as_str).collect();
    assert!(kinds.len() > 1, "{kinds:?}");
    for (name, losses) in &chosen.losses {
        // A bit less costs more: four levels have several times the error of eight.
        assert!(losses["int2-affine-g64"] > losses["int3-affine-g64"], "{name}: {losses:?}");
        assert!(losses["int3-affine-g64"] > losses["int4-affine-g64"], "{name}: {losses:?}");
    }
    assert!(run.notes().last().expect("a note").starts_with("mixed formats: "), "{:?}", run.notes());
    let target = run.out.join("packed");
    let manifest = Shipment::of_run(&run.out).expect("a finished run").0.write(&target).expect("written");
    // The same bits and weights, divided once in each.
    assert!((manifest.bits_per_weight - chosen.bits_per_weight).abs() < 1e-9, "{}", manifest.bits_per_weight);
    assert!(chosen.bits_per_weight <= 6.6 && chosen.bits_per_weight > 6.5, "{}", chosen.bits_per_weight);
    let dir = PackedDir::open(&target).expect("opens");
    for (name, format) in &chosen.formats {
        assert_eq!(
            dir.manifest.tensors[name].storage,
            qat_infer::files::Storage::Packed(format.parse().expect("one"))
        );
    }
    // A run that goes on asks nothing anew.
    let stopped = place.train(&plan, "cut", Start::Fresh, Some(2));
    assert_eq!(stopped.outcome.as_ref().expect("stopped"), &Outcome::Stopped { step: 2 });
    let resumed = place.train(&plan, "cut", Start::Resume, None);
    assert!(
        resumed.notes().is_empty() && resumed.checkpoint(4) == run.checkpoint(4),
        "{:?}",
        resumed.notes()
    );
    let sets = [&sets[..], &["quant.target_bpw=6.2"]].concat();
    let m = place.train(&place.plan_from(&start, &sets), "tight", Start::Fresh, None).refusal();
    assert!(
        m.contains("quant.target_bpw = 6.2") && m.contains("at least 6.26") && m.contains("raise the target"),
        "{m}"
    );
}

#[test]
fn embeddings_and_head_are_among_the_matrices_that_candidates_are_for_where_they_say_so() {
    let place = Place::new();
    let untied = Config { tie_word_embeddings: false, ..shape() };
    let start = place.model_of(untied, "start", 8);
    let candidates = "quant.candidates=[\"int2-affine-g64\", \"int4-affine-g64\", \"int8-affine-g64\"]";
    let teacher = format!("teacher.model={start}");
    let sets = [candidates, &teacher, "loss.forward_kl=1.0", "train.steps=2", "quant.target_bpw=4.4"];
    let of = |more: &[&str], name: &str| {
        let run = place.finish(&place.plan_from(&start, &[&sets[..], more].concat()), name);
        Chosen::read(&run.out).expect("kept")
    };
    let [embeddings, head] = ["quant.embeddings=candidates", "quant.head=candidates"];
    let [table, output] = ["model.embed_tokens.weight", "lm_head.weight"];
    let chosen = of(&[embeddings, head], "both");
    assert_eq!(chosen.formats.len(), 14 + 2, "seven projections in each of two layers, and both");
    assert!(chosen.bits_per_weight <= 4.4 && chosen.bits_per_weight > 4.0, "{}", chosen.bits_per_weight);
    for name in [table, output] {
        let losses = &chosen.losses[name];
        assert!(losses["int2-affine-g64"] > losses["int4-affine-g64"], "{name}: {losses:?}");
        assert!(losses["int4-affine-g64"] > losses["int8-affine-g64"], "{name}: {losses:?}");
    }
    let chosen = of(&[embeddings, "quant.head=int2-affine-g64"], "one");
    assert!(chosen.formats.contains_key(table) && !chosen.formats.contains_key(output));
    // What an override names is settled.
    let named = "quant.overrides.lm_head*=int2-affine-g64";
    let chosen = of(&[embeddings, head, named], "named");
    assert!(chosen.formats.contains_key(table) && !chosen.formats.contains_key(output));
}

//! The same run gives the same bits, in one piece or in two; and what it gives is what it gave when this was written.

use super::*;

/// Losses of the ten steps, by the matrices' format. They change when data, initial weights, arithmetic or schedule do; the
/// failure then prints the new list.
///
/// The tolerance of 10⁻⁴ is for machines that add in another order. A change of 2·10⁻⁶ in every activation (by
/// `rms_norm_eps` = 1.0001e-5), more than that order makes, moves these losses by at most 3·10⁻⁶.
const GOLDEN: [(&str, [f64; 10]); 2] = [
    (
        "int4-g32",
        [7.317374, 7.320491, 7.308270, 7.254602, 7.189959, 7.126571, 6.955758, 7.009571, 6.879386, 6.828395],
    ),
    (
        "float",
        [7.317892, 7.319532, 7.301471, 7.230538, 7.169978, 7.091991, 6.926684, 6.983503, 6.768425, 6.785834],
    ),
];

#[test]
fn ten_steps_give_the_losses_they_gave_when_this_was_written() {
    let place = Place::new();
    for (format, golden) in GOLDEN {
        let [weights, embeddings] = ["weights", "embeddings"].map(|key| format!("quant.{key}={format}"));
        let losses = place.finish(&place.plan(&[&weights, &embeddings]), format).losses();
        let furthest = losses.iter().zip(golden).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(furthest < 1e-4 && losses.len() == golden.len(), "{format}: {losses:?}");
    }
}

#[test]
fn the_same_run_twice_gives_the_same_bits() {
    let place = Place::new();
    let plan = place.plan(&["quant.weights=ternary-g64", "quant.activations=int8-token"]);
    let (one, two) = (place.finish(&plan, "one"), place.finish(&plan, "two"));
    assert_eq!(one.losses(), two.losses());
    assert!(one.checkpoint(10) == two.checkpoint(10));
    let other = place.finish(&place.plan(&["quant.weights=ternary-g64", "seed=6"]), "other");
    assert!(one.checkpoint(10) != other.checkpoint(10), "the seed has no effect");
}

#[test]
fn a_run_that_was_stopped_and_resumed_ends_with_the_bits_of_one_that_was_not() {
    let place = Place::new();
    // An accumulated step, a warm-up of rounding and an affine grid: everything that depends on the step number.
    let sets =
        ["train.accumulate=2", "quant.warmup_steps=8", "quant.weights=int3-affine-g32", "train.log_every=5"];
    for kind in ["adamw", "muon"] {
        let optimizer = format!("optim.kind={kind}");
        let sets = [&sets[..], &[&optimizer]].concat();
        assert_resumed_is_whole(&place, &place.plan(&sets), kind);
    }
    // Codes are counted from the fourth step on, and some are held before the fifth.
    let held = ["quant.warmup_steps=2", "quant.freeze_after=1", "optim.lr=2e-2", "optim.weight_decay=0.1"];
    assert_resumed_is_whole(&place, &place.plan(&[&sets[..], &held].concat()), "held");
}

fn assert_resumed_is_whole(place: &Place, plan: &Plan, name: &str) {
    let whole = place.finish(plan, &format!("{name}/whole"));
    let parts = format!("{name}/stopped");
    let stopped = place.train(plan, &parts, Start::Fresh, Some(5));
    assert_eq!(stopped.outcome.as_ref().expect("stopped"), &Outcome::Stopped { step: 5 });
    assert_eq!(stopped.checkpoints(), ["step-00000005"]);
    let resumed = place.train(plan, &parts, Start::Resume, None);
    assert_eq!(resumed.outcome.as_ref().expect("finished"), &Outcome::Finished);
    assert_eq!(resumed.losses(), whole.losses()[1..]);
    assert!(resumed.checkpoint(10) == whole.checkpoint(10), "variables or moments differ");
    let log = |run: &Run| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(run.out.join("log.jsonl")).expect("a log");
        let line = |line| {
            let mut line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            line.as_object_mut().expect("an object").remove("tps");
            line
        };
        text.lines().map(line).collect()
    };
    assert_eq!(log(&resumed), log(&whole));
}

#[test]
fn a_run_stopped_before_its_first_step_is_resumed() {
    let place = Place::new();
    let plan = place.plan(&["train.steps=2"]);
    let (out, cache) = (place.path("early"), place.path("cache"));
    let job = |start| Job {
        plan: &plan,
        out: &out,
        cache: &cache,
        device: Device::Cpu,
        start,
        ranks: Ranks::alone(),
    };
    let stop = AtomicBool::new(false);
    let mut raise = |event: Event| stop.store(matches!(event, Event::Begin { .. }), Ordering::Relaxed);
    assert_eq!(train(&job(Start::Fresh), &mut raise, &stop).expect("stopped"), Outcome::Stopped { step: 0 });
    let resumed = place.train(&plan, "early", Start::Resume, None);
    assert!(resumed.notes().is_empty(), "{:?}", resumed.notes());
    assert!(resumed.checkpoint(2) == place.finish(&plan, "whole").checkpoint(2));
}

#[test]
fn muon_learns_from_the_same_text_with_another_result() {
    let place = Place::new();
    let adamw = place.finish(&place.plan(&["quant.weights=ternary-g64"]), "adamw").losses();
    let sets = ["quant.weights=ternary-g64", "optim.kind=muon", "optim.muon_lr=0.05"];
    let muon = place.finish(&place.plan(&sets), "muon").losses();
    assert_eq!(muon[0], adamw[0]);
    assert!(muon[1] != adamw[1] && muon[9] < muon[0] - 0.2, "{muon:?}");
}

#[test]
fn accumulated_micro_batches_train_as_one_large_batch() {
    // Micro-batch m of step s holds the windows 2·(8s + m) and the one after, so that eight of them are the sixteen of
    // one large batch: the gradients are sums of the same terms in another order. Of a weight whose gradient is nearly
    // zero, Adam takes the sign of what rounding left; the loss does not feel those.
    let place = Place::new();
    let plan =
        |sets: [&str; 2]| place.plan(&[sets[0], sets[1], "quant.weights=float", "quant.embeddings=float"]);
    let small = place.finish(&plan(["train.batch=2", "train.accumulate=8"]), "small").losses();
    let large = place.finish(&plan(["train.batch=16", "train.accumulate=1"]), "large").losses();
    // The first loss is of equal weights: 512 terms of about 7, each known to some 1e-6.
    assert!((small[0] - large[0]).abs() < 1e-5, "{} and {}", small[0], large[0]);
    for (step, (a, b)) in small.iter().zip(&large).enumerate() {
        assert!((a - b).abs() < 1e-4, "step {step}: {a} and {b}");
    }
    let other = place.finish(&plan(["train.batch=8", "train.accumulate=1"]), "other").losses();
    assert!((other[5] - large[5]).abs() > 1e-3, "the comparison would not notice half a batch");
}

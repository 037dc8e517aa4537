//! Runs of several ranks, which are threads here: what they end with is what one process ends with.

use super::*;
use crate::ranks::threads::together;

/// A run of `size` ranks from `start`, as each of them saw it.
fn on(size: usize, place: &Place, plan: &Plan, out: &str, from: (Start, Option<usize>)) -> Vec<Run> {
    together(size, |ranks| place.train_as(ranks, plan, out, from))
}

/// The same from its beginning to its end, as the first saw it.
fn finish_on(size: usize, place: &Place, plan: &Plan, out: &str) -> Run {
    let mut runs = on(size, place, plan, out, (Start::Fresh, None));
    for run in &runs {
        assert_eq!(run.outcome.as_ref().expect("a run that goes through"), &Outcome::Finished);
        assert_eq!(run.losses(), runs[0].losses());
    }
    runs.swap_remove(0)
}

fn step(run: &Run, step: usize) -> &StepLog {
    let line = |e: &'_ Event| matches!(e, Event::Step(line) if line.step == step);
    let found = run.events.iter().find(|e| line(e));
    found.and_then(|e| if let Event::Step(line) = e { Some(line) } else { None }).expect("a line")
}

/// The runs began alike: what the first step makes of the same weights differs by the order of sums of 128 tokens' terms and of squares. Later a code
/// near a tie may round otherwise, which moves losses by some 10⁻⁴ at a time, and a student that writes may choose another token, after which its
/// text is another one: `most` is what losses may then differ by.
fn assert_near(name: &str, one: &Run, other: &Run, most: f64) {
    let (first, same) = (step(one, 1), step(other, 1));
    let apart = |a: f64, b: f64| (a / b - 1.0).abs();
    assert!(apart(first.loss, same.loss) < 1e-6, "{name}: {} and {}", first.loss, same.loss);
    assert!(
        apart(first.grad_norm, same.grad_norm) < 1e-5,
        "{name}: {} and {}",
        first.grad_norm,
        same.grad_norm
    );
    let (one, other) = (one.losses(), other.losses());
    let furthest = one.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(furthest < most && one.len() == other.len(), "{name}: {one:?} and {other:?}");
}

#[test]
fn ranks_end_with_the_bits_of_one_process_that_adds_up_their_rows_one_after_the_other() {
    let place = Place::new();
    let teacher = place.model("teacher", 8);
    let model = format!("teacher.model={teacher}");
    let cache = format!("teacher.cache={}", place.path("kept").display());
    let of_teacher = [&*model, "loss.cross_entropy=0.1", "loss.forward_kl=1.0"];
    let blocks = ["train.mode=blocks", "train.scale_steps=3", "quant.weights=int2-affine-g32"];
    let compared = ["loss.hidden=0.5", "loss.relations=0.5", "loss.balance=false"];
    let ways: [(&str, usize, Vec<&str>); 8] = [
        ("adamw", 2, vec!["quant.weights=int3-affine-g32", "quant.warmup_steps=4"]),
        ("four", 4, vec!["quant.weights=int3-affine-g32", "quant.warmup_steps=4"]),
        ("muon", 2, vec!["optim.kind=muon", "quant.weights=int3-affine-g32"]),
        ("layers again", 2, vec!["train.checkpoint_layers=true", "quant.activations=int8-token"]),
        ("noise", 2, vec!["quant.noise=0.5", "optim.lr=2e-2"]),
        ("blocks", 2, blocks.to_vec()),
        ("cache", 2, [&of_teacher[..], &[&*cache]].concat()),
        ("inside", 2, [&of_teacher[..], &compared].concat()),
    ];
    for (name, size, sets) in ways {
        // With clipping, squares would be summed in another order.
        let sets = [&["optim.clip=0"], &sets[..]].concat();
        let parts = [format!("train.batch={}", 4 / size), format!("train.accumulate={size}")];
        let one = place.plan_from(&teacher, &[&sets[..], &[&*parts[0], &parts[1]]].concat());
        let alone = place.finish(&one, &format!("{name}/alone"));
        let made_alone = std::fs::rename(place.path("kept"), place.path("made alone"));
        assert_eq!(made_alone.is_ok(), name == "cache");
        let together =
            finish_on(size, &place, &place.plan_from(&teacher, &sets), &format!("{name}/together"));
        assert_eq!(together.losses(), alone.losses(), "{name}");
        let (ours, theirs) = (together.checkpoint(10), alone.checkpoint(10));
        assert!(ours[0] == theirs[0], "{name}: variables differ");
        assert!(ours[1] == theirs[1], "{name}: moments differ");
        if name == "cache" {
            std::fs::remove_dir_all(place.path("kept")).expect("the ranks' cache");
        }
    }
}

#[test]
fn ranks_have_the_loss_curve_of_one_process_where_sums_have_another_order() {
    let place = Place::new();
    let teacher = place.model("teacher", 8);
    let model = format!("teacher.model={teacher}");
    let of_teacher = [&*model, "loss.cross_entropy=0.1", "loss.forward_kl=1.0"];
    let written =
        ["loss.cross_entropy=0.0", "loss.on_policy=0.5", "loss.on_policy_every=4", "loss.on_policy_prompt=5"];
    let mixed = ["quant.candidates=[\"int2-affine-g64\", \"int4-affine-g64\"]", "quant.target_bpw=6.6"];
    let ways: [(&str, Vec<&str>, f64); 3] = [
        ("clipped", vec!["train.accumulate=2", "train.valid_every=5", "optim.clip=0.5"], 1e-2),
        ("on policy", [&of_teacher[..], &written].concat(), 5e-2),
        ("mixed", mixed.to_vec(), 1e-2),
    ];
    for (name, sets, most) in ways {
        let plan = place.plan_from(&teacher, &sets);
        let alone = place.finish(&plan, &format!("{name}/alone"));
        let together = finish_on(2, &place, &plan, &format!("{name}/together"));
        assert_near(name, &alone, &together, most);
        let held_out = |run: &Run| -> Vec<f64> {
            let valid =
                run.events.iter().filter_map(|e| if let Event::Valid(line) = e { Some(line) } else { None });
            valid.map(|line| line.valid_cross_entropy).collect()
        };
        for (one, two) in held_out(&alone).iter().zip(held_out(&together)) {
            assert!((one - two).abs() < most, "{name}: {one} and {two} held out");
        }
        let again = finish_on(2, &place, &plan, &format!("{name}/again"));
        assert!(again.checkpoint(10) == together.checkpoint(10), "{name}: other bits with the same ranks");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let place = Place::new();
    for kind in ["adamw", "muon"] {
        let optimizer = format!("optim.kind={kind}");
        // Nothing is rounded, so that nothing near a tie rounds otherwise.
        let sets = ["train.accumulate=2", "quant.weights=float", "quant.embeddings=float", &optimizer];
        let plan = place.plan(&sets);
        let whole = place.finish(&plan, &format!("{kind}/whole"));
        for (before, after) in [(2, 2), (2, 1), (1, 4), (4, 2)] {
            let out = format!("{kind}/{before}-{after}");
            let stopped = on(before, &place, &plan, &out, (Start::Fresh, Some(5)));
            assert!(stopped.iter().all(|run| matches!(run.outcome, Ok(Outcome::Stopped { step: 5 }))));
            let resumed = on(after, &place, &plan, &out, (Start::Resume, None)).swap_remove(0);
            assert_eq!(resumed.outcome.as_ref().expect("finished"), &Outcome::Finished);
            // Sums in another order move the losses of such runs by at most 3·10⁻⁶ (see `bits.rs`).
            let (ours, theirs) = (resumed.losses(), &whole.losses()[5..]);
            let furthest = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(furthest < 1e-4 && ours.len() == 5, "{out}: {ours:?} and {theirs:?}");
            if before == after {
                let straight = finish_on(2, &place, &plan, &format!("{kind}/straight"));
                assert!(
                    resumed.checkpoint(10) == straight.checkpoint(10),
                    "{out}: other bits than unstopped"
                );
            }
        }
    }
}

#[test]
fn only_the_first_rank_writes_and_what_one_is_refused_all_are() {
    let place = Place::new();
    let plan = place.plan(&["train.steps=2"]);
    let runs = on(4, &place, &plan, "run", (Start::Fresh, None));
    let saved = |run: &Run| run.events.iter().filter(|e| matches!(e, Event::Saved { .. })).count();
    assert_eq!(runs.iter().map(saved).collect::<Vec<_>>(), [1, 0, 0, 0]);
    let log = std::fs::read_to_string(runs[0].out.join("log.jsonl")).expect("a log");
    // Two steps and a validation at the end.
    assert_eq!(log.lines().count(), 3);
    let refused: Vec<String> =
        on(2, &place, &plan, "run", (Start::Fresh, None)).into_iter().map(Run::refusal).collect();
    assert!(refused[0].contains("holds a run of 2 steps already"), "{refused:?}");
    assert_eq!(refused[1], format!("rank 0: {}", refused[0]));
    let uneven = on(3, &place, &plan, "uneven", (Start::Fresh, None)).swap_remove(0).refusal();
    assert!(uneven.contains("train.batch = 4") && uneven.contains("such as 6"), "{uneven}");
    assert!(!place.path("uneven").exists());
}

#[test]
fn a_rank_that_is_stopped_stops_all_after_the_same_step() {
    let place = Place::new();
    let plan = place.plan(&[]);
    let stop_one = |ranks: Ranks| {
        let stop_after = (ranks.rank() == 1).then_some(4);
        place.train_as(ranks, &plan, "run", (Start::Fresh, stop_after))
    };
    for run in together(2, stop_one) {
        assert_eq!(run.outcome.as_ref().expect("stopped"), &Outcome::Stopped { step: 4 });
        assert_eq!(run.checkpoints(), ["step-00000004"]);
    }
}

//! Runs whose student writes a part of what it is corrected on.

use std::fs;

use super::*;

fn plan(place: &Place, teacher: &str, sets: &[&str]) -> Plan {
    let model = format!("teacher.model={teacher}");
    let common = [
        &*model,
        "loss.cross_entropy=0.0",
        "loss.forward_kl=1.0",
        "quant.weights=int2-affine-g32",
        "loss.on_policy=0.5",
        "loss.on_policy_every=4",
        "loss.on_policy_prompt=5",
    ];
    place.plan_from(teacher, &[&common[..], sets].concat())
}

/// The windows in a file of what the student wrote.
fn windows(run: &Run, step: usize) -> Vec<Vec<u32>> {
    let bytes = fs::read(run.out.join(format!("on-policy/step-{step:08}"))).expect("a file");
    let ids: Vec<u32> = bytes[32..].as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    ids.chunks(32).map(<[u32]>::to_vec).collect()
}

#[test]
fn half_of_the_windows_are_the_students_own_from_the_prompt_on() {
    let place = Place::new();
    let teacher = place.model("teacher", 8);
    let plan = plan(&place, &teacher, &[]);
    let run = place.finish(&plan, "run");
    // Ten steps, four at a time; two windows of a batch of four.
    let counts = [0, 4, 8].map(|step| windows(&run, step).len());
    assert_eq!(counts, [8, 8, 4]);
    let cache = place.path("cache");
    let job = Job {
        plan: &plan,
        out: &run.out,
        cache: &cache,
        device: Device::Cpu,
        start: Start::Resume,
        ranks: Ranks::alone(),
    };
    let prepared = Prepared::new(&job, &mut |_| {}, &AtomicBool::new(false)).expect("the finished run");
    for (at, pair) in windows(&run, 4).chunks(2).enumerate() {
        let batch = prepared.batches.at(4 + at as u64);
        for (written, text) in pair.iter().zip(batch.inputs.chunks(32).skip(2)) {
            assert!(written[..5] == text[..5] && written[5..] != text[5..]);
        }
    }
    let mut of_text = plan.clone();
    of_text.on_policy = None;
    assert!(place.finish(&of_text, "text").losses()[0] != run.losses()[0]);
}

#[test]
fn a_run_stopped_between_two_writings_ends_with_the_bits_of_one_that_was_not() {
    let place = Place::new();
    let teacher = place.model("teacher", 8);
    let plan = plan(&place, &teacher, &["train.accumulate=2"]);
    let whole = place.finish(&plan, "whole");
    place.train(&plan, "stopped", Start::Fresh, Some(6));
    let resumed = place.train(&plan, "stopped", Start::Resume, None);
    assert!(resumed.checkpoint(10) == whole.checkpoint(10));
    assert!([0, 4, 8].iter().all(|step| windows(&resumed, *step) == windows(&whole, *step)));
}

#[test]
fn writings_that_are_damaged_or_gone_are_refused_by_name() {
    let place = Place::new();
    let teacher = place.model("teacher", 8);
    let plan = plan(&place, &teacher, &[]);
    let run = place.train(&plan, "run", Start::Fresh, Some(6));
    let file = run.out.join("on-policy/step-00000004");
    let good = fs::read(&file).expect("a file");
    for bytes in [&good[..good.len() - 1], &good[..10], &[&good[..40], &[9], &good[41..]].concat()] {
        fs::write(&file, bytes).expect("a free disk");
        let m = place.train(&plan, "run", Start::Resume, None).refusal();
        assert!(m.contains("step-00000004") && m.contains("is damaged"), "{m}");
    }
    fs::remove_file(&file).expect("a file");
    let m = place.train(&plan, "run", Start::Resume, None).refusal();
    assert!(m.contains("step-00000004: cannot read what the student wrote"), "{m}");
    assert!(place.train(&plan, "run", Start::Restart, None).outcome.is_ok());
}

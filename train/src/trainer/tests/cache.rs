//! Runs that read their teacher's predictions from a cache.

use std::fs;

use super::*;

/// A recipe of a student that starts from its teacher, whose predictions are kept in `cache`.
fn plan(place: &Place, teacher: &str, sets: &[&str]) -> Plan {
    let (model, cache) =
        (format!("teacher.model={teacher}"), format!("teacher.cache={}", place.path("kept").display()));
    let common =
        [&model, &cache, "loss.cross_entropy=0.1", "loss.forward_kl=1.0", "quant.weights=int2-affine-g32"];
    place.plan_from(teacher, &[&common[..], sets].concat())
}

fn asked(run: &Run) -> usize {
    run.events.iter().filter(|e| matches!(e, Event::Teaching { .. })).count()
}

/// Names and contents of the files in the cache.
fn files(place: &Place) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(place.path("kept")).expect("a folder").map(|e| e.expect("an entry").path());
    let mut paths: Vec<PathBuf> = entries.collect();
    paths.sort();
    let name = |p: &PathBuf| p.file_name().expect("a name").to_string_lossy().into_owned();
    paths.iter().map(|p| (name(p), fs::read(p).expect("a file"))).collect()
}

#[test]
fn a_teacher_is_asked_once_and_its_cache_serves_every_seed_to_the_bit() {
    let place = Place::new();
    let teacher = place.model("teacher", 8);
    let first = place.finish(&plan(&place, &teacher, &[]), "first");
    // 40 windows of the first shard's 64, four at a time.
    assert_eq!(asked(&first), 16);
    let kept = files(&place);
    assert_eq!(
        kept.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["shard-000000", "teacher.json"]
    );
    // 64 ids of 2 bytes, 64 f16 and a tail for each of 64 · 32 tokens.
    assert_eq!(kept[0].1.len(), 104 + 64 * 32 * 260);
    let again = place.finish(&plan(&place, &teacher, &[]), "again");
    assert_eq!((asked(&again), again.losses()), (0, first.losses()));
    assert!(again.checkpoint(10) == first.checkpoint(10));
    let seed = place.finish(&plan(&place, &teacher, &["seed=6"]), "seed");
    assert!(asked(&seed) == 0 && seed.losses() != first.losses());
    // A longer run adds what it needs to what is there.
    let longer = place.finish(&plan(&place, &teacher, &["train.steps=20"]), "longer");
    assert_eq!(asked(&longer), 16);
    assert!(files(&place)[0] == kept[0]);
}

#[test]
fn all_tokens_but_one_in_the_cache_score_as_the_teacher_itself() {
    let place = Place::new();
    let teacher = place.model("teacher", 8);
    let validations = |run: &Run| -> Vec<f64> {
        let kl = |e: &Event| if let Event::Valid(line) = e { line.valid_kl } else { None };
        run.events.iter().filter_map(kl).collect()
    };
    let run = |name: &str, top_k: &str, cached: bool| {
        // Weights that stay where they are: without a cache windows are cut elsewhere.
        let sets = [top_k, "loss.temperature=2.0", "train.steps=1", "optim.lr=1e-9", "optim.scale_lr=1e-9"];
        let mut plan = plan(&place, &teacher, &sets);
        plan.cache = plan.cache.filter(|_| cached);
        validations(&place.finish(&plan, name))[0]
    };
    let (all, live) = (run("all", "teacher.top_k=1535", true), run("live", "teacher.top_k=8", false));
    fs::remove_dir_all(place.path("kept")).expect("a folder");
    let few = run("few", "teacher.top_k=8", true);
    // f16 moves each logarithm by at most 2^-11 of its distance from the largest, a few nats, and the two by turns.
    assert!((all - live).abs() < 0.01 * live, "{all} with all tokens, {live} with the teacher");
    assert!(few < 0.95 * all, "{few} over eight tokens and the rest is not more than {all}");
}

#[test]
fn a_stopped_run_with_a_cache_ends_with_the_bits_of_one_that_was_not() {
    let place = Place::new();
    let teacher = place.model("teacher", 8);
    let plan = plan(&place, &teacher, &["train.batch=8"]);
    let whole = place.finish(&plan, "whole");
    place.train(&plan, "stopped", Start::Fresh, Some(5));
    let resumed = place.train(&plan, "stopped", Start::Resume, None);
    assert!(resumed.checkpoint(10) == whole.checkpoint(10));
}

#[test]
fn a_damaged_shard_is_made_again_with_a_note_and_another_teachers_cache_is_refused() {
    let place = Place::new();
    let teacher = place.model("teacher", 8);
    let first = place.finish(&plan(&place, &teacher, &[]), "first");
    let shard = place.path("kept").join("shard-000000");
    let mut bytes = fs::read(&shard).expect("a shard");
    bytes[5000] ^= 1;
    fs::write(&shard, &bytes).expect("a free disk");
    let again = place.finish(&plan(&place, &teacher, &[]), "again");
    assert!(again.notes().len() == 1 && again.notes()[0].contains("checksum"), "{:?}", again.notes());
    assert_eq!(again.losses(), first.losses());
    for (name, change, want) in [
        ("ctx", "data.ctx=16", "ctx = 32, this run has 16"),
        ("temperature", "loss.temperature=2.0", "temperature = 1, this run has 2"),
        ("text", "data.train=[\"stories:seed=4,bytes=60000\"]", "tokens = "),
    ] {
        let m = place.train(&plan(&place, &teacher, &[change]), name, Start::Fresh, None).refusal();
        assert!(m.contains("the cache was made with") && m.contains(want), "{m}");
    }
    let other = place.model("other", 9);
    let m = place.train(&plan(&place, &other, &[]), "other", Start::Fresh, None).refusal();
    assert!(m.contains("the cache was made with teacher = "), "{m}");
    let all = plan(&place, &teacher, &["teacher.top_k=1536"]);
    let m = place.train(&all, "wide", Start::Fresh, None).refusal();
    assert_eq!(m, "teacher.top_k = 1536: want less than the vocabulary's 1536");
}

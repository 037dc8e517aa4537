//! What can go wrong in a run, and what is left of it then.

use std::fs;

use super::*;

#[test]
fn an_absurd_learning_rate_stops_the_run_and_the_last_checkpoint_is_kept() {
    let place = Place::new();
    let sets =
        ["train.checkpoint_every=5", "train.steps=60", "train.divergence=0.5", "optim.schedule=constant"];
    let plan = place.plan(&sets);
    let good = place.train(&plan, "run", Start::Fresh, Some(5)).checkpoint(5);
    let mut wild = plan.clone();
    (wild.optim.lr, wild.optim.norm_lr) = (300.0, 300.0);
    let run = place.train(&wild, "run", Start::Resume, None);
    assert!(run.checkpoint(5) == good, "the good checkpoint was touched");
    assert_eq!(run.checkpoints(), ["step-00000005"]);
    let m = run.refusal();
    assert!(m.starts_with("step ") && m.contains("for ten steps"), "{m}");
    assert!(m.contains("the checkpoint of step 5 is kept; lower optim.lr"), "{m}");
}

#[test]
fn weights_that_overflow_are_never_saved() {
    let place = Place::new();
    let mut plan =
        place.plan(&["train.checkpoint_every=1", "optim.schedule=constant", "optim.warmup_steps=0"]);
    plan.optim.lr = 1e39;
    let run = place.train(&plan, "run", Start::Fresh, None);
    assert!(run.checkpoints().is_empty());
    let m = run.refusal();
    assert!(
        m.starts_with("step 1: ") && m.contains("is no longer finite; no checkpoint was written yet"),
        "{m}"
    );
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run() {
    let place = Place::new();
    let mut plan =
        place.plan(&["train.checkpoint_every=0", "optim.schedule=constant", "optim.warmup_steps=0"]);
    plan.optim.lr = 1e39;
    let m = place.train(&plan, "run", Start::Fresh, None).refusal();
    assert!(m.starts_with("step 2: the loss is NaN; no checkpoint was written yet"), "{m}");
}

#[test]
fn a_run_is_neither_begun_over_another_nor_continued_with_other_keys() {
    let place = Place::new();
    let plan = place.plan(&["train.steps=2"]);
    let first = place.finish(&plan, "run");
    let m = place.train(&plan, "run", Start::Fresh, None).refusal();
    assert!(m.contains("holds a run of 2 steps already; --resume continues it; --restart"), "{m}");
    let m =
        place.train(&place.plan(&["train.steps=2", "optim.lr=0.5"]), "run", Start::Resume, None).refusal();
    assert!(
        m.contains("--resume: optim.lr is 0.5 now, but the run in") && m.contains("began with 0.003"),
        "{m}"
    );
    let m = place
        .train(&place.plan(&["train.steps=2", "optim.norm_lr=0.5"]), "run", Start::Resume, None)
        .refusal();
    assert!(m.contains("optim.norm_lr is 0.5 now") && m.contains("began with not set"), "{m}");
    let free = [
        "train.steps=2",
        "train.log_every=7",
        "train.valid_windows=2",
        "train.checkpoint_every=1",
        "train.keep_checkpoints=9",
        "train.valid_every=3",
    ];
    let again = place.train(&place.plan(&free), "run", Start::Resume, None);
    assert_eq!(again.outcome.as_ref().expect("nothing left to do"), &Outcome::Finished);
    assert!(again.checkpoint(2) == first.checkpoint(2));
}

#[test]
fn another_text_under_the_same_name_is_no_continuation() {
    let place = Place::new();
    let text = place.path("story.txt");
    fs::write(&text, "Once upon a time there was a fox. ".repeat(200)).expect("a free disk");
    let data = format!("data.train=[{:?}]", text.display().to_string());
    let plan = place.plan(&["train.steps=1", &data]);
    place.finish(&plan, "run");
    fs::write(&text, "Once upon a time there was a hen. ".repeat(200)).expect("a free disk");
    let m = place.train(&plan, "run", Start::Resume, None).refusal();
    assert!(m.contains("token"), "{m}");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_with_a_note_and_replaced() {
    let place = Place::new();
    let plan = place.plan(&["train.checkpoint_every=5", "train.keep_checkpoints=1", "train.steps=10"]);
    let whole = place.finish(&plan, "whole").checkpoint(10);
    let keep_two = place.plan(&["train.checkpoint_every=5", "train.keep_checkpoints=2", "train.steps=10"]);
    for (name, file) in [("model", "model.safetensors"), ("state", "state.json")] {
        let run = place.finish(&keep_two, name);
        assert_eq!(run.checkpoints(), ["step-00000005", "step-00000010"]);
        let file = run.out.join("checkpoints/step-00000010").join(file);
        let bytes = fs::read(&file).expect("a checkpoint");
        fs::write(&file, &bytes[..bytes.len() / 2]).expect("a free disk");
        // With one checkpoint kept, the one written must not be taken for older than the damaged one.
        let resumed = place.train(&plan, name, Start::Resume, None);
        let notes = resumed.notes();
        assert!(notes.len() == 1 && notes[0].starts_with("passed over a damaged checkpoint: "), "{notes:?}");
        assert!(notes[0].contains(&file.display().to_string()), "{notes:?}");
        assert_eq!(resumed.losses().len(), 5);
        assert_eq!(resumed.checkpoints(), ["step-00000010"]);
        assert!(resumed.checkpoint(10) == whole);
    }
}

#[test]
fn a_run_without_a_whole_checkpoint_is_not_begun_over_unasked() {
    let place = Place::new();
    let plan = place.plan(&["train.steps=1"]);
    let run = place.finish(&plan, "run");
    fs::write(run.out.join("checkpoints/step-00000001/model.safetensors"), "").expect("a free disk");
    for start in [Start::Fresh, Start::Resume] {
        let m = place.train(&plan, "run", start, None).refusal();
        assert!(m.contains("holds no checkpoint that is whole") && m.contains("checksum differs"), "{m}");
    }
    let anew = place.train(&plan, "run", Start::Restart, None);
    assert!(anew.checkpoint(1) == place.finish(&plan, "another").checkpoint(1));
}

#[test]
fn a_restart_that_can_not_begin_deletes_nothing() {
    let place = Place::new();
    let run = place.finish(&place.plan(&["train.steps=1"]), "run");
    let m =
        place.train(&place.plan(&["data.train=[\"missing.txt\"]"]), "run", Start::Restart, None).refusal();
    assert!(m.contains("missing.txt"), "{m}");
    assert_eq!(run.checkpoints(), ["step-00000001"]);
}

#[test]
fn two_runs_in_one_folder_are_refused() {
    let place = Place::new();
    let out = place.path("run");
    fs::create_dir_all(&out).expect("a free disk");
    let held = fs::File::create(out.join(".lock")).expect("a free disk");
    held.try_lock().expect("nobody else's");
    let m = place.train(&place.plan(&[]), "run", Start::Fresh, None).refusal();
    assert!(m.contains("another qat is training here"), "{m}");
}

#[test]
fn a_window_longer_than_the_models_context_is_refused() {
    let place = Place::new();
    let m = place.train(&place.plan(&["data.ctx=65"]), "run", Start::Fresh, None).refusal();
    assert_eq!(m, "data.ctx = 65 is longer than the context of the model (max_position_embeddings 64)");
}

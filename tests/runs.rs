//! Folders that hold a run already: continued only by the recipe that began it, never overwritten by surprise.

use std::fs;

use crate::workshop::{Said, Workshop};

const TRAIN: &str = "train tiny.toml --out run";

#[test]
fn a_second_start_is_refused_with_three_ways_out() {
    let shop = Workshop::furnished();
    shop.done(TRAIN);
    shop.refused(TRAIN, &["run", "holds a run of 6 steps", "--resume", "--restart", "--out DIR"]);
    shop.done(&format!("{TRAIN} --resume"));
    // Nothing is deleted for a new run that can't begin.
    shop.refused(
        &format!("{TRAIN} --restart --set data.train=[\"nowhere.txt\"]"),
        &["nowhere.txt", "No such file"],
    );
    shop.done(&format!("{TRAIN} --restart"));
}

#[test]
fn a_changed_recipe_does_not_continue() {
    let shop = Workshop::furnished();
    shop.done(TRAIN);
    for (set, parts) in [
        ("optim.lr=0.5", ["optim.lr is 0.5 now", "began with 0.001"]),
        ("quant.weights=int8-g32", ["quant.weights is \"int8-g32\" now", "began with \"int4-g32\""]),
        ("train.steps=12", ["train.steps is 12 now", "began with 6"]),
        ("data.separator=---", ["data.separator is \"---\" now", "began with not set"]),
    ] {
        let ways_out = ["--resume", "another --out"];
        shop.refused(&format!("{TRAIN} --resume --set {set}"), &[&parts[..], &ways_out].concat());
    }
}

#[test]
fn changed_text_does_not_continue() {
    let shop = Workshop::furnished();
    shop.done(TRAIN);
    shop.text("train.txt", 300);
    shop.refused(&format!("{TRAIN} --resume"), &["data, tokenizer or their settings", "begin a new run"]);
}

#[test]
fn resume_and_restart_exclude_each_other() {
    let shop = Workshop::furnished();
    shop.refused(&format!("{TRAIN} --resume --restart"), &["--resume", "--restart", "cannot be used with"]);
}

#[test]
fn a_run_is_not_rounded_again() {
    let shop = Workshop::furnished();
    shop.done(TRAIN);
    shop.refused(
        "export run --format qat --weights int8-g32 --out packed",
        &["run", "were trained", "--weights", "run/student"],
    );
    shop.refused(
        "export teacher --format qat --out packed",
        &["teacher", "float model", "--weights int4-g32"],
    );
    shop.refused("export teacher --format qat --scales mse --out packed", &["--weights"]);
    shop.refused("export run --format gguf2 --out packed", &["--format", "gguf2", "qat"]);
    shop.refused(
        "export teacher --format qat --weights int4-g32 --scales best --out p",
        &["--scales", "absmax", "mse"],
    );
    shop.done("export run/student --format qat --weights int8-g32 --out packed");
}

#[test]
fn a_run_without_a_checkpoint_is_not_exported() {
    let shop = Workshop::furnished();
    shop.done(TRAIN);
    fs::remove_dir_all(shop.path("run/checkpoints")).expect("removed");
    shop.refused("export run --format qat --out packed", &["run", "no whole checkpoint", "--resume"]);
}

#[test]
fn two_processes_do_not_train_in_one_folder() {
    let shop = Workshop::furnished();
    let long = "train tiny.toml --out run --set train.steps=100000 --set train.checkpoint_every=0";
    let mut first = shop.command(long.split(' ')).spawn().expect("the tool starts");
    crate::accidents::wait_for(|| shop.path("run/log.jsonl").exists());
    let second = Said::of(shop.command(TRAIN.split(' ')));
    first.kill().expect("killed");
    first.wait().expect("ended");
    assert_eq!(second.code, Some(2), "{second:?}");
    assert!(
        second.err.contains("another qat is training here") && second.err.contains("--out"),
        "{second:?}"
    );
    // The lock ends with its process, however that ended.
    shop.done(&format!("{TRAIN} --restart"));
}

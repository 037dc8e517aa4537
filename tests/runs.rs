//! Folders that hold a run already: continued only by the recipe that began it, never overwritten by surprise. (What accidents do to them
//! is in `accidents/`.)

use std::{fs, path::Path};

use crate::{
    model::{RECIPE, SHIPPED},
    workshop::{Said, Workshop, send, wait_for},
};

const TRAIN: &str = "train tiny.toml --out run";

/// Steps of a run that is long enough to be hit.
const STEPS: usize = 48;

/// A workshop with such a recipe, and a checkpoint every third step.
fn long() -> Workshop {
    let shop = Workshop::furnished();
    shop.write("tiny.toml", format!("{RECIPE}{SHIPPED}").replace("steps = 6", &format!("steps = {STEPS}")));
    shop
}

fn folder(step: usize) -> String {
    format!("checkpoints/step-{step:08}")
}

/// The bytes that a run ends with: last checkpoint and packed model.
fn results(shop: &Workshop, run: &str) -> Vec<(String, Vec<u8>)> {
    let last = folder(STEPS);
    let files = ["model.safetensors", "optimizer.safetensors"].map(|file| format!("{last}/{file}"));
    let packed = ["model.safetensors", "manifest.json", "config.json"].map(|file| format!("qat/{file}"));
    let names = files.into_iter().chain(packed);
    names.map(|name| (name.clone(), shop.read(Path::new(run).join(&name)))).collect()
}

fn assert_same(shop: &Workshop, a: &str, b: &str) {
    for ((name, a_bytes), (_, b_bytes)) in results(shop, a).into_iter().zip(results(shop, b)) {
        assert!(a_bytes == b_bytes, "{name} of {a} and {b} differ");
    }
}

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
fn texts_are_found_by_a_glob_beside_the_recipe() {
    let shop = Workshop::furnished();
    shop.done(TRAIN);
    shop.done("train tiny.toml --out other --set data.train=[\"tr*.txt\"]");
    let folder = "checkpoints/step-00000006/model.safetensors";
    assert!(shop.read(format!("run/{folder}")) == shop.read(format!("other/{folder}")));
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
    wait_for(|| shop.path("run/log.jsonl").exists());
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

#[test]
#[cfg(unix)]
fn an_interrupt_before_the_first_step_leaves_nothing_that_is_in_the_way() {
    let shop = long();
    // So much text that it is still being read when the signal comes.
    let train = "train tiny.toml --set data.train=[\"stories:seed=1,bytes=40000000\"] --out run";
    let child = shop.command(train.split(' ')).spawn().expect("the tool starts");
    wait_for(|| shop.path("run/.lock").exists());
    send("INT", &child);
    let said = Said::from(child.wait_with_output().expect("ended"));
    assert_eq!(said.code, Some(130), "{said:?}");
    assert!(said.err.contains("stopped before the first step; nothing to save"), "{said:?}");
    assert!(!shop.path("run").exists(), "it was made for nothing");
    let left: Vec<_> = fs::read_dir(shop.path("cache")).into_iter().flatten().flatten().collect();
    let of_tokens = |name: String| name.ends_with(".tokens.part") || name.ends_with(".tokens.part.json");
    assert!(left.iter().all(|entry| of_tokens(entry.file_name().to_string_lossy().into_owned())), "{left:?}");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    let shop = long();
    shop.done("train tiny.toml --out whole");
    let last = format!("whole/{}", folder(STEPS));
    // One bit is another, half is missing, nothing is left.
    let damages: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes[1000] ^= 1, |bytes| bytes.truncate(bytes.len() / 2), |bytes| bytes.clear()];
    for (file, damage) in
        ["model.safetensors", "optimizer.safetensors", "state.json"].into_iter().zip(damages)
    {
        let name = format!("{last}/{file}");
        let mut bytes = shop.read(&name);
        damage(&mut bytes);
        shop.write(&name, bytes);
        let said = shop.done("export whole --format qat --out packed");
        assert!(
            said.err.contains("passed over a damaged checkpoint") && said.err.contains(&name),
            "{said:?}"
        );
        let source = &shop.json("packed/manifest.json")["source"];
        assert_eq!(source["step"], STEPS - 3, "the one before is exported");
        let said = shop.done("train tiny.toml --out whole --resume");
        assert!(
            said.err.contains("passed over a damaged checkpoint") && said.err.contains(&name),
            "{said:?}"
        );
        assert!(said.err.contains(&format!("continuing after step {}", STEPS - 3)), "{said:?}");
        shop.done("train tiny.toml --out other");
        assert_same(&shop, "whole", "other");
        fs::remove_dir_all(shop.path("other")).expect("removed");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let shop = long();
    for (run, threads) in [("two", "2"), ("again", "2"), ("one", "1"), ("seven", "7")] {
        let mut command = shop.command(["train", "tiny.toml", "--out", run]);
        command.env("RAYON_NUM_THREADS", threads);
        let said = Said::of(command);
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    for run in ["again", "one", "seven"] {
        assert_same(&shop, "two", run);
    }
    shop.done("train tiny.toml --out seeded --set seed=6");
    assert_ne!(results(&shop, "two"), results(&shop, "seeded"), "another seed is another run");
}

#[test]
fn a_run_without_a_whole_checkpoint_is_not_begun_anew_by_itself() {
    let shop = Workshop::furnished();
    shop.done("train tiny.toml --out run");
    for step in [3, 6] {
        shop.write(&format!("run/{}/model.safetensors", folder(step)), "");
    }
    for way in ["", " --resume"] {
        let parts = ["holds no checkpoint that is whole", "the file is damaged", "--restart"];
        shop.refused(&format!("train tiny.toml --out run{way}"), &parts);
    }
    shop.done("train tiny.toml --out run --restart");
}

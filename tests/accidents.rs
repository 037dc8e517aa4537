//! Accidents: a run that is killed, interrupted or damaged ends with the same bytes as one that was left alone.
//!
//! Timing decides only where a run is hit, never whether a test passes: moments are awaited by what lies on the disk.

use std::{
    fs,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use crate::{
    model::{RECIPE, SHIPPED},
    workshop::{Said, Workshop},
};

const STEPS: usize = 48;

/// Waits until `moment` has come.
pub fn wait_for(moment: impl Fn() -> bool) {
    let began = Instant::now();
    while !moment() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited for a minute");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A workshop whose recipe takes long enough to be hit, with a checkpoint every third step.
fn long() -> Workshop {
    let shop = Workshop::furnished();
    shop.write("tiny.toml", format!("{RECIPE}{SHIPPED}").replace("steps = 6", &format!("steps = {STEPS}")));
    shop
}

fn start(shop: &Workshop, line: &str) -> Child {
    shop.command(line.split(' ')).spawn().expect("the tool starts")
}

fn kill(mut child: Child) {
    child.kill().expect("killed");
    assert_eq!(child.wait().expect("ended").code(), None, "it was killed, not done");
}

/// Sends the signal to a command that runs.
#[cfg(unix)]
pub fn send(signal: &str, child: &Child) {
    let sent =
        std::process::Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
    assert!(sent.is_ok_and(|status| status.success()), "sent");
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
fn a_killed_run_resumes_to_the_same_bytes() {
    let shop = long();
    shop.done("train tiny.toml --out whole");
    // Killed as soon as this is there: the first checkpoint isn't yet; some are; almost all are; the export is under way.
    let signs = ["log.jsonl".to_owned(), folder(12), folder(45), folder(STEPS)];
    for (at, sign) in signs.iter().enumerate() {
        let run = format!("killed{at}");
        let child = start(&shop, &format!("train tiny.toml --out {run}"));
        wait_for(|| shop.path(&run).join(sign).exists());
        kill(child);
        let said = shop.done(&format!("train tiny.toml --out {run} --resume"));
        assert!(at == 0 || said.err.contains("continuing after step"), "{sign}: {said:?}");
        assert_same(&shop, "whole", &run);
    }
}

#[test]
fn a_run_killed_in_the_middle_of_a_checkpoint_resumes_to_the_same_bytes() {
    let shop = long();
    let every = "--set train.checkpoint_every=1";
    shop.done(&format!("train tiny.toml --out whole {every}"));
    let half_made = || {
        let listing = fs::read_dir(shop.path("run/checkpoints")).into_iter().flatten().flatten();
        listing.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().ends_with(".partial"))
    };
    let mut hit = false;
    for _ in 0..10 {
        let child = start(&shop, &format!("train tiny.toml --out run --resume {every}"));
        // Whatever was half made before is gone when the next one is begun.
        wait_for(half_made);
        kill(child);
        hit = half_made();
        if hit {
            break;
        }
    }
    if !hit {
        println!("SKIPPED: ten times the checkpoint was whole before the process could be killed");
    }
    shop.done(&format!("train tiny.toml --out run --resume {every}"));
    assert_same(&shop, "whole", "run");
    assert!(!half_made(), "what was half made is cleared away");
}

#[test]
#[cfg(unix)]
fn an_interrupt_saves_and_the_run_continues_to_the_same_bytes() {
    let shop = long();
    let never = "--set train.checkpoint_every=0";
    shop.done(&format!("train tiny.toml --out whole {never}"));
    for signal in ["INT", "TERM"] {
        let run = format!("stopped-by-{signal}");
        let child = start(&shop, &format!("train tiny.toml --out {run} {never}"));
        let logged =
            || fs::read_to_string(shop.path(&run).join("log.jsonl")).is_ok_and(|log| log.lines().count() > 3);
        wait_for(logged);
        send(signal, &child);
        let said = Said::from(child.wait_with_output().expect("ended"));
        assert_eq!(said.code, Some(130), "{said:?}");
        assert!(said.err.contains("; saved. Continue with the same command and --resume"), "{said:?}");
        assert!(!shop.path(&run).join("qat").exists(), "a stopped run is not exported");
        let said = shop.done(&format!("train tiny.toml --out {run} --resume {never}"));
        assert!(said.err.contains("continuing after step"), "{said:?}");
        assert_same(&shop, "whole", &run);
    }
}

#[test]
#[cfg(unix)]
fn an_interrupt_before_the_first_step_leaves_nothing_that_is_in_the_way() {
    let shop = long();
    // So much text that it is still being read when the signal comes.
    let train = "train tiny.toml --set data.train=[\"stories:seed=1,bytes=40000000\"] --out run";
    let child = start(&shop, train);
    wait_for(|| shop.path("run/.lock").exists());
    send("INT", &child);
    let said = Said::from(child.wait_with_output().expect("ended"));
    assert_eq!(said.code, Some(130), "{said:?}");
    assert!(said.err.contains("stopped before the first step; nothing to save"), "{said:?}");
    assert!(!shop.path("run").exists(), "it was made for nothing");
    let parts = fs::read_dir(shop.path("cache")).map_or(0, Iterator::count);
    assert_eq!(parts, 0, "no part of a token file stays");
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

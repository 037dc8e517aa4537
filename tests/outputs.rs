//! Places that can't be written: refused with the path and the fix, and nothing half made stays.

use std::{fs, process::Command};

use crate::workshop::{Said, Workshop};

/// A furnished workshop with a regular file `wall`: below it nothing can be made, whoever asks. (Tests may run as root, whom
/// permissions don't stop.)
fn walled() -> Workshop {
    let shop = Workshop::furnished();
    shop.write("wall", "a file");
    shop
}

#[test]
fn a_run_below_a_file_is_refused() {
    walled().refused("train tiny.toml --out wall/run", &["wall/run", "Not a directory"]);
    walled().refused("train tiny.toml --out wall", &["wall"]);
}

#[test]
fn an_export_below_a_file_is_refused() {
    let shop = walled();
    let export = "export teacher --format qat --weights int4-g32 --out";
    shop.refused(&format!("{export} wall/packed"), &["wall", "is a file; choose another directory"]);
    shop.refused(&format!("{export} wall"), &["wall", "is a file; choose another directory"]);
}

#[test]
fn a_foreign_directory_is_not_replaced() {
    let shop = walled();
    shop.write("photos/cat.png", "purr");
    for format in ["qat", "hf"] {
        shop.refused(
            &format!("export teacher --format {format} --weights int4-g32 --out photos"),
            &["photos", "not replaced", "choose another directory"],
        );
    }
    shop.refused(
        "export teacher --format qat --weights int4-g32 --out teacher",
        &["teacher", "not replaced", "choose another directory"],
    );
}

#[test]
fn a_place_that_the_export_can_not_take_is_found_before_training() {
    let shop = walled();
    shop.write("photos/cat.png", "purr");
    let train = "train tiny.toml --out run --set export.format=qat --set export.out=";
    shop.refused(&format!("{train}photos"), &["photos", "not replaced"]);
    shop.refused(&format!("{train}wall"), &["wall", "is a file"]);
}

#[test]
fn variants_do_not_replace_the_exports_of_each_other() {
    let shop = walled();
    let recipe = String::from_utf8(shop.read("tiny.toml")).expect("UTF-8");
    let export =
        "[export]\nformat = \"qat\"\nout = \"packed\"\n[variants.a]\nseed = 1\n[variants.b]\nseed = 2\n";
    shop.write("tiny.toml", recipe + export);
    let parts = ["export.out = packed", "b would replace the export of another variant"];
    shop.refused("train tiny.toml --out runs", &parts);
    shop.done("train tiny.toml --out runs --variant b");
}

#[test]
fn an_export_of_before_is_replaced() {
    let shop = walled();
    let export = "export teacher --format qat --out packed --weights";
    shop.done(&format!("{export} int8-g32"));
    let before = shop.read("packed/model.safetensors").len();
    shop.done(&format!("{export} int4-g32"));
    assert!(shop.read("packed/model.safetensors").len() < before);
}

#[test]
fn a_report_that_can_not_be_written_is_an_error() {
    let shop = walled();
    let eval = "eval teacher --data valid.txt --json";
    shop.refused(&format!("{eval} wall/report.json"), &["wall/report.json", "Not a directory"]);
    shop.refused(&format!("{eval} nowhere/report.json"), &["nowhere", "make its directory first"]);
    shop.refused(&format!("{eval} teacher"), &["teacher"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_under_a_report_is_an_error() {
    walled().refused(
        "eval teacher --data valid.txt --json /dev/full",
        &["/dev/full", "No space left", "make room"],
    );
}

#[test]
fn a_cache_that_can_not_be_written_is_an_error() {
    let shop = walled();
    let mut command = shop.command("train tiny.toml --out run".split(' '));
    command.env("QAT_CACHE", shop.path("wall").join("cache"));
    shop.refusal(command, &["wall/cache", "Not a directory"]);
}

/// A file system of `size` at `name`, unmounted at the end.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    /// None where this process may not mount.
    fn mount(shop: &Workshop, name: &str, size: &str) -> Option<Self> {
        let path = shop.path(name);
        fs::create_dir(&path).expect("created");
        let options = format!("size={size}");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "qat-test"]).arg(&path).output();
        if status.is_ok_and(|output| output.status.success()) {
            return Some(Self(path));
        }
        println!("SKIPPED: no small disk to fill, since tmpfs can't be mounted here");
        None
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.is_ok_and(|status| status.success()), "unmounted");
    }
}

#[test]
fn a_disk_that_fills_up_keeps_the_last_checkpoint() {
    let shop = walled();
    // The start takes 0.4 MB, a checkpoint 1.3 MB: one fits, the second finds no room.
    let Some(_disk) = Tmpfs::mount(&shop, "disk", "2600k") else { return };
    let said = Said::of(shop.command("train tiny.toml --out disk/run".split(' ')));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("disk/run/checkpoints") && said.err.contains("No space left"), "{said:?}");
    let kept: Vec<_> = fs::read_dir(shop.path("disk/run/checkpoints")).expect("listed").collect();
    let kept: Vec<_> = kept.into_iter().map(|e| e.expect("listed").file_name()).collect();
    assert_eq!(kept, ["step-00000003"], "the first checkpoint and nothing half made");
    shop.done("export disk/run --format qat --out packed");
    // The rest of the room goes to something else.
    let filled = fs::write(shop.path("disk/filler"), vec![0; 1 << 22]);
    assert_eq!(filled.expect_err("full").kind(), std::io::ErrorKind::StorageFull);
    for format in ["qat", "hf"] {
        let line = format!("export disk/run --format {format} --out disk/{format}");
        shop.refused(&line, &[&format!("disk/.{format}.partial"), "No space left", "make room"]);
    }
}

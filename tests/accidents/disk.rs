//! Disks that fill up, files that may not grow, folders that may not be written.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use tempfile::TempDir;

use crate::{
    Case, Extent, Held,
    draw::Draw,
    scene::{RESUME, STEPS, TRAIN, Whole, checkpoint, half_made, names, reached, scene},
    workshop::{Said, Workshop},
};

/// Disks with room for a part of the run, and limits on the length of a file.
pub fn full(draw: &mut Draw, extent: Extent, whole: &Whole) -> Vec<Case> {
    let (written, before) = whole.bytes();
    let largest = names(whole.shop().path("run"))
        .iter()
        .filter_map(|path| fs::metadata(whole.shop().path("run").join(path)).ok())
        .map(|meta| meta.len())
        .max()
        .unwrap_or(0);
    let count = if extent.all { 16 } else { 3 };
    let mut cases = Vec::new();
    for _ in 0..count {
        let share = draw.share();
        let room = before + (written as f64 * share) as u64;
        cases.push(Case::new(
            format!("a disk with room for {:.0} % of the run", share * 100.0),
            move |whole| on_a_small_disk(room, whole),
        ));
    }
    for _ in 0..count {
        let limit = 1 + draw.below(largest as usize / 512);
        cases.push(Case::new(
            format!("no file may be longer than {:.1} KiB", limit as f64 / 2.0),
            move |whole| with_short_files(limit, whole),
        ));
    }
    cases
}

/// A run that broke off because it couldn't write: it said so, and left nothing half made.
fn is_refused(said: &Said, shop: &Workshop, why: &str) {
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("error: ") && said.err.contains(why), "{said:?}");
    let half = half_made(shop);
    assert!(half.is_empty(), "left {half:?}");
}

/// The last line of what was said.
fn last(said: &Said) -> &str {
    said.err.lines().last().unwrap_or_default()
}

/// A file system in memory, unmounted at the end.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// One of `bytes` at `path`; none where this process may not mount.
    fn mount(path: PathBuf, bytes: u64) -> Option<Self> {
        fs::create_dir(&path).expect("created");
        let mounted = mount(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "qat-accidents"], &path);
        mounted.then(|| Self(path))
    }

    fn grow(&self) {
        assert!(mount(&["-o", "remount,size=1g"], &self.0), "remounted");
    }
}

fn mount(options: &[&str], path: &Path) -> bool {
    let done = Command::new("mount").args(options).arg(path).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.is_ok_and(|status| status.success()), "unmounted");
    }
}

fn on_a_small_disk(room: u64, whole: &Whole) -> Held {
    let host = Workshop::new();
    let Some(disk) = Tmpfs::mount(host.path("disk"), room) else {
        return Held::Skipped("no small disk to fill, since tmpfs can't be mounted here");
    };
    let shop = Workshop::at(disk.0.clone());
    let before = scene();
    for path in names(before.path("")) {
        match before.path(&path).is_dir() {
            true => fs::create_dir_all(shop.path(&path)).expect("created"),
            false => drop(fs::copy(before.path(&path), shop.path(&path)).expect("it fits")),
        }
    }
    let said = shop.run(TRAIN);
    if said.code == Some(0) {
        return Held::Yes("it had room enough".to_owned());
    }
    is_refused(&said, &shop, "No space left");
    disk.grow();
    shop.done(RESUME);
    whole.is_matched_by(&shop);
    let told = last(&said).replace(&host.path("").display().to_string(), "");
    Held::Yes(format!("\"{told}\"; with room the same bits"))
}

/// `limit` in the shell's blocks of 512 bytes.
fn with_short_files(limit: usize, whole: &Whole) -> Held {
    let shop = scene();
    let mut command = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" {TRAIN}");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_qat")]);
    let said = Said::of(shop.dressed(command));
    is_refused(&said, &shop, "File too large");
    shop.done(RESUME);
    whole.is_matched_by(&shop);
    Held::Yes(format!("\"{}\"; without the limit the same bits", last(&said)))
}

/// A user who may not do everything.
const NOBODY: u32 = 65534;

/// Where a folder is closed: at the start, or in the middle.
struct Closed {
    folder: &'static str,
    /// What is there when it is closed.
    sign: Option<String>,
}

/// Every folder that the run writes into, closed.
pub fn read_only(draw: &mut Draw, extent: Extent, _: &Whole) -> Vec<Case> {
    let at_start = |folder| Closed { folder, sign: None };
    let behind = |folder, step: usize| Closed { folder, sign: Some(checkpoint(step)) };
    let all = [
        at_start(""),
        at_start("cache"),
        at_start("taught"),
        at_start("run"),
        behind("run/checkpoints", 2 + 2 * draw.below(STEPS / 2 - 1)),
        behind("run", STEPS),
    ];
    let cases = all.map(|closed| {
        let when = closed.sign.as_ref().map_or("at the start".to_owned(), |sign| format!("behind {sign}"));
        let name = if closed.folder.is_empty() { "where the run is to be" } else { closed.folder };
        Case::new(format!("{name} is read-only {when}"), move |whole| closed_folder(&closed, whole))
    });
    extent.of(draw, 3, cases.into())
}

fn closed_folder(closed: &Closed, whole: &Whole) -> Held {
    let Some(tool) = common_tool() else {
        return Held::Skipped("the tool can't be put where another user may run it");
    };
    let shop = scene();
    fs::create_dir_all(shop.path(closed.folder)).expect("created");
    for path in names(shop.path("")).into_iter().chain([PathBuf::new()]) {
        let given = chown(shop.path(path), Some(NOBODY), Some(NOBODY));
        assert!(given.is_ok() || !is_root(), "given away");
    }
    let set = |mode| {
        let folder = shop.path(closed.folder);
        fs::set_permissions(folder, fs::Permissions::from_mode(mode)).expect("a folder of ours");
    };
    let run = |line: &str| {
        let mut command = Command::new(tool);
        command.args(line.split(' '));
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        shop.dressed(command).spawn().expect("the tool starts")
    };
    if closed.sign.is_none() {
        set(0o555);
    }
    let mut child = run(TRAIN);
    if let Some(sign) = &closed.sign {
        assert!(reached(&mut child, || shop.path(sign).exists()), "the run came by {sign}");
        set(0o555);
    }
    let said = Said::from(child.wait_with_output().expect("ended"));
    set(0o755);
    if said.code == Some(0) {
        return Held::Yes("it was over before".to_owned());
    }
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("error: ") && said.err.contains("Permission denied"), "{said:?}");
    let again = Said::from(run(RESUME).wait_with_output().expect("ended"));
    assert_eq!(again.code, Some(0), "{again:?}");
    whole.is_matched_by(&shop);
    Held::Yes(format!("\"{}\"; when it could be written the same bits", last(&said)))
}

fn is_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    *ROOT.get_or_init(|| {
        let id = Command::new("id").arg("-u").output();
        id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
    })
}

/// The tool where everybody may run it: a build may be in a folder that is closed to others.
fn common_tool() -> Option<&'static Path> {
    static TOOL: OnceLock<Option<(TempDir, PathBuf)>> = OnceLock::new();
    let made = || {
        let folder = TempDir::new().ok()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).ok()?;
        let tool = folder.path().join("qat");
        fs::copy(env!("CARGO_BIN_EXE_qat"), &tool).ok()?;
        Some((folder, tool))
    };
    TOOL.get_or_init(made).as_ref().map(|(_, tool)| tool.as_path())
}

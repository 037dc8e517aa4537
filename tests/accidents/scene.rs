//! The run that accidents happen to: text is tokenized, a teacher asked, a student trained, shipped in two formats and scored.
//!
//! Knows no accident. Invariant: two runs of it that end well leave the same names, and the same bytes in everything that has no times in it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Child,
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    model::{RECIPE, SHIPPED},
    workshop::{Said, Workshop, send},
};

/// Steps of the run; a checkpoint at every second.
pub const STEPS: usize = 24;

/// What begins the run, and what goes on with it.
pub const TRAIN: &str = "train run.toml --out run";
pub const RESUME: &str = "train run.toml --out run --resume";

/// Everything that the run needs, before it.
pub fn scene() -> Workshop {
    let shop = Workshop::new();
    shop.model("teacher");
    shop.text("train.txt", 30_000);
    shop.text("more.txt", 10_000);
    shop.text("valid.txt", 40);
    let recipe = RECIPE
        .replace("model = \"teacher\"", "model = \"teacher\"\ncache = \"taught\"\ntop_k = 16")
        .replace("[\"train.txt\"]", "[\"train.txt\", \"more.txt\"]")
        .replace("steps = 6\nbatch = 4\nlog_every = 2\ncheckpoint_every = 3", SCHEDULE);
    let shipped = SHIPPED.replace("format = \"qat\"", "format = [\"qat\", \"gguf\"]");
    shop.write("run.toml", recipe + &shipped);
    shop
}

const SCHEDULE: &str =
    "steps = 24\nbatch = 8\nlog_every = 1\ncheckpoint_every = 2\nvalid_every = 8\nvalid_windows = 8";

/// Name of the folder of the checkpoint at `step`.
pub fn checkpoint(step: usize) -> String {
    format!("run/checkpoints/step-{step:08}")
}

/// Begins `line`, on one thread.
pub fn start(shop: &Workshop, line: &str) -> Child {
    let mut command = shop.command(line.split(' '));
    command.env("RAYON_NUM_THREADS", "1");
    command.spawn().expect("the tool starts")
}

/// Waits until `moment` has come, and says whether it came before `child` ended.
pub fn reached(child: &mut Child, moment: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if moment() {
            return true;
        }
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "waited for two minutes");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Names of the entries of the folder `name`; none where it isn't there.
pub fn entries(shop: &Workshop, name: &str) -> Vec<String> {
    let listing = fs::read_dir(shop.path(name)).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        listing.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Lines that the run has logged.
pub fn logged(shop: &Workshop) -> usize {
    fs::read_to_string(shop.path("run/log.jsonl")).map_or(0, |log| log.lines().count())
}

/// Names that only stand while something is being written.
pub fn half_made(shop: &Workshop) -> Vec<PathBuf> {
    let is_half = |path: &&PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        [".partial", ".part", ".old"].iter().any(|end| name.ends_with(end))
    };
    names(shop.path("")).iter().filter(is_half).cloned().collect()
}

/// All names below `folder`, relative to it.
pub fn names(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    fn collect(root: &Path, folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            into.extend(path.strip_prefix(root).map(Path::to_owned));
            if path.is_dir() {
                collect(root, &path, into);
            }
        }
    }
    let mut found = Vec::new();
    collect(folder.as_ref(), folder.as_ref(), &mut found);
    found.sort();
    found
}

/// What a run leaves: its names, and what is in each file that has no times in it.
pub type Ending = BTreeMap<PathBuf, String>;

/// Files with speeds in them.
const TIMED: [&str; 4] = ["report.html", "report.json", "scores.json", "comparison.json"];

/// The ending of the run in `root`.
pub fn ending(root: &Path) -> Ending {
    let digest = |path: &PathBuf| {
        let file = root.join(path);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if file.is_dir() || TIMED.contains(&name.as_str()) {
            return String::new();
        }
        let mut bytes = fs::read(&file).expect("read");
        if name == "log.jsonl" {
            bytes = untimed(&bytes);
        }
        Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    names(root).into_iter().map(|path| (path.clone(), digest(&path))).collect()
}

/// A log without the speed of its steps.
fn untimed(log: &[u8]) -> Vec<u8> {
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).expect("a line of JSON");
        line["tps"] = Value::Null;
        format!("{line}\n")
    };
    String::from_utf8_lossy(log).lines().map(line).collect::<String>().into_bytes()
}

/// The run without an accident, which all others are held against.
pub struct Whole {
    shop: Workshop,
    ending: Ending,
    took: Duration,
    /// When, after its start, each of [`Whole::moments`] came.
    moments: Vec<Duration>,
    stopped: OnceLock<Workshop>,
}

impl Whole {
    /// Runs it.
    pub fn new() -> Self {
        let shop = scene();
        let began = Instant::now();
        let mut child = start(&shop, TRAIN);
        let mut moments = Vec::new();
        for moment in Self::SIGNS {
            assert!(reached(&mut child, || moment(&shop)), "the run came by");
            moments.push(began.elapsed());
        }
        let said = Said::from(child.wait_with_output().expect("ended"));
        assert_eq!(said.code, Some(0), "{said:?}");
        moments.push(began.elapsed());
        Self {
            ending: ending(&shop.path("")),
            took: began.elapsed(),
            shop,
            moments,
            stopped: OnceLock::new(),
        }
    }

    /// What lies on the disk when each stretch of the run begins.
    const SIGNS: [fn(&Workshop) -> bool; 5] = [
        |shop| !entries(shop, "cache").is_empty(),
        |shop| shop.path("taught/teacher.json").exists(),
        |shop| logged(shop) > 0,
        |shop| shop.path(checkpoint(STEPS)).exists(),
        |shop| shop.path("run/qat/manifest.json").exists(),
    ];

    /// How long the run took.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// How long stretch number `index` of the run took: tokens, teacher, steps, export, scores.
    pub fn stretch(&self, index: usize) -> Duration {
        self.moments[index + 1].saturating_sub(self.moments[index])
    }

    /// The folder of the run.
    pub fn shop(&self) -> &Workshop {
        &self.shop
    }

    /// Bytes of all that the run wrote, and of all that was there before it.
    pub fn bytes(&self) -> (u64, u64) {
        let size = |root: &Workshop| {
            let paths = names(root.path(""));
            paths.iter().filter_map(|path| fs::metadata(root.path(path)).ok()).map(|m| m.len()).sum::<u64>()
        };
        let before = size(&scene());
        (size(&self.shop).saturating_sub(before), before)
    }

    /// Holds the run in `shop` against this one.
    pub fn is_matched_by(&self, shop: &Workshop) {
        self.is_matched_in(&shop.path(""));
    }

    /// Holds the run in the folder `root` against this one.
    pub fn is_matched_in(&self, root: &Path) {
        let found = ending(root);
        let mut wrong: Vec<String> = Vec::new();
        for (path, wanted) in &self.ending {
            match found.get(path) {
                None => wrong.push(format!("{} is missing", path.display())),
                Some(digest) if digest != wanted => wrong.push(format!("{} differs", path.display())),
                Some(_) => {}
            }
        }
        let more = found.keys().filter(|path| !self.ending.contains_key(*path));
        wrong.extend(more.map(|path| format!("{} is too much", path.display())));
        assert!(wrong.is_empty(), "against a run without an accident: {}", wrong.join(", "));
    }

    /// A copy of a run that was stopped half-way.
    pub fn stopped(&self) -> Workshop {
        let stopped = self.stopped.get_or_init(|| {
            let shop = scene();
            let mut child = start(&shop, TRAIN);
            assert!(reached(&mut child, || logged(&shop) > STEPS / 2));
            send("TERM", &child);
            let said = Said::from(child.wait_with_output().expect("ended"));
            assert_eq!(said.code, Some(130), "{said:?}");
            shop
        });
        copy(stopped)
    }
}

/// The same folder once more.
pub fn copy(shop: &Workshop) -> Workshop {
    let new = Workshop::new();
    for path in names(shop.path("")) {
        if shop.path(&path).is_dir() {
            fs::create_dir_all(new.path(&path)).expect("created");
        } else {
            fs::copy(shop.path(&path), new.path(&path)).expect("copied");
        }
    }
    new
}

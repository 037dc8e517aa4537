//! Plants bugs in the Metal kernels, one at a time, and tells how many the tests notice: `mutate BUGS.toml [ONLY]`.
//!
//! The list is plain data: which tests guard a kernel's file, and the bugs, each a piece of text that the file has once and
//! what it becomes. Nothing is rebuilt for a bug; the emulator plants it in the source that it compiles (see the README). With
//! ONLY, bugs whose file or description doesn't contain it are left out. `MUTATE_RUNNER` names a command to put in front of
//! each run of tests (`nice`, say, or one that takes a lock).

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use serde::Deserialize;

/// How long the tests of a bug may take: a planted bug can keep a kernel from ending.
const PATIENCE: Duration = Duration::from_secs(600);
/// Of a hundred bugs, so many have to be caught.
const WANTED_PERCENT: usize = 95;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    guard: Vec<Guard>,
    bug: Vec<Bug>,
}

/// The tests that look after some kernels.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Guard {
    /// The files begin with one of these.
    files: Vec<String>,
    package: String,
    /// Arguments of cargo that name the tests' binary.
    target: Vec<String>,
    /// What the tests' names contain.
    filters: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bug {
    file: String,
    what: String,
    /// A test that is tried before the guard's others.
    test: Option<String>,
    find: String,
    replace: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// A test failed.
    Caught,
    /// The tests did not end.
    Endless,
    Survived,
    /// No library had the text.
    NotPlanted,
}

fn main() -> ExitCode {
    match mutate() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether enough was caught.
fn mutate() -> Result<bool, Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let path = args.next().ok_or("usage: mutate BUGS.toml [ONLY]")?;
    let only = args.next().unwrap_or_default();
    let list: List = toml::from_str(&fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let bugs: Vec<&Bug> =
        list.bug.iter().filter(|b| b.file.contains(&only) || b.what.contains(&only)).collect();
    for bug in &list.bug {
        check(&root, bug)?;
    }
    let mut tests = BTreeMap::new();
    let mut survivors = Vec::new();
    for (nth, bug) in bugs.iter().enumerate() {
        let guards: Vec<usize> = (0..list.guard.len()).filter(|g| list.guard[*g].guards(&bug.file)).collect();
        if guards.is_empty() {
            return Err(format!("{}: no guard", bug.file).into());
        }
        let start = Instant::now();
        let mut outcome = Outcome::NotPlanted;
        for guard in guards {
            let binary = match tests.get(&guard) {
                Some(binary) => binary,
                None => tests.entry(guard).or_insert(ready(&root, &list.guard[guard])?),
            };
            let first = bug.test.as_ref().map(std::slice::from_ref);
            for filters in first.into_iter().chain([&list.guard[guard].filters[..]]) {
                match run(&root, binary, &list.guard[guard], filters, Some(bug))? {
                    Outcome::NotPlanted => {}
                    found => outcome = found,
                }
                if matches!(outcome, Outcome::Caught | Outcome::Endless) {
                    break;
                }
            }
        }
        let word = match outcome {
            Outcome::Caught => "caught",
            Outcome::Endless => "caught (did not end)",
            Outcome::Survived => "SURVIVED",
            Outcome::NotPlanted => "NOT PLANTED",
        };
        let seconds = start.elapsed().as_secs_f64();
        println!("{:>3}/{} {word:9} {seconds:6.1} s  {}: {}", nth + 1, bugs.len(), bug.file, bug.what);
        if matches!(outcome, Outcome::Survived | Outcome::NotPlanted) {
            survivors.push(format!("{}: {}", bug.file, bug.what));
        }
    }
    let caught = bugs.len() - survivors.len();
    println!("{caught} of {} planted bugs were caught", bugs.len());
    survivors.iter().for_each(|survivor| println!("  not: {survivor}"));
    Ok(caught * 100 >= WANTED_PERCENT * bugs.len())
}

/// A bug is planted in exactly one place, and changes it.
fn check(root: &Path, bug: &Bug) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(root.join(&bug.file)).map_err(|e| format!("{}: {e}", bug.file))?;
    let times = text.matches(&bug.find).count();
    if times != 1 || bug.find == bug.replace {
        return Err(format!(
            "{}: {}: the text is there {times} times, want once: {:?}",
            bug.file, bug.what, bug.find
        )
        .into());
    }
    Ok(())
}

impl Guard {
    fn guards(&self, file: &str) -> bool {
        self.files.iter().any(|prefix| file.starts_with(prefix))
    }
}

/// The tests' binary, built and seen to pass without a bug.
fn ready(root: &Path, guard: &Guard) -> Result<PathBuf, Box<dyn Error>> {
    let mut cargo = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo.current_dir(root).args([
        "test",
        "--release",
        "--no-run",
        "--message-format=json",
        "-p",
        &guard.package,
    ]);
    let output = cargo.args(&guard.target).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut built = text.lines().filter_map(|line| line.split("\"executable\":\"").nth(1)?.split('"').next());
    let binary = built.next_back().ok_or_else(|| format!("{}: the tests can't be built", guard.package))?;
    let binary = PathBuf::from(binary);
    match run(root, &binary, guard, &guard.filters, None)? {
        Outcome::Survived => Ok(binary),
        _ => Err(format!("{}: the tests fail without any bug", binary.display()).into()),
    }
}

/// Runs those of a guard's tests that `filters` name, until the first fails.
fn run(
    root: &Path,
    binary: &Path,
    guard: &Guard,
    filters: &[String],
    bug: Option<&Bug>,
) -> Result<Outcome, Box<dyn Error>> {
    let log = env::temp_dir().join(format!("mutate-metal-{}", std::process::id()));
    let _ = fs::remove_file(&log);
    let mut command = match env::var("MUTATE_RUNNER") {
        Ok(runner) => Command::new(runner),
        Err(_) => Command::new("env"),
    };
    command.arg(binary);
    // Cargo runs tests in their package's folder.
    let folder = ["quant", "infer", "train"].into_iter().find(|f| guard.package.ends_with(f)).unwrap_or(".");
    command.current_dir(root.join(folder)).args(filters).env("QAT_REQUIRE_METAL_HOST", "1");
    if let Some(bug) = bug {
        command.env("QAT_METAL_MUTATION_FIND", &bug.find).env("QAT_METAL_MUTATION_REPLACE", &bug.replace);
        command.env("QAT_METAL_MUTATION_LOG", &log);
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let passed = watch(&mut child)?;
    let planted = fs::read_to_string(&log).is_ok_and(|said| !said.is_empty());
    let _ = fs::remove_file(&log);
    Ok(match passed {
        _ if bug.is_some() && !planted => Outcome::NotPlanted,
        Some(true) => Outcome::Survived,
        Some(false) => Outcome::Caught,
        None => Outcome::Endless,
    })
}

/// Whether all tests passed; nothing if they don't end.
fn watch(child: &mut Child) -> Result<Option<bool>, Box<dyn Error>> {
    let output = child.stdout.take().ok_or("no output")?;
    let (send, failed) = mpsc::channel();
    // The line of the first test that fails; the channel closes when the tests end.
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if line.starts_with("test ") && line.ends_with("FAILED") {
                let _ = send.send(());
                return;
            }
        }
    });
    let outcome = match failed.recv_timeout(PATIENCE) {
        Ok(()) => Some(false),
        Err(mpsc::RecvTimeoutError::Timeout) => None,
        Err(mpsc::RecvTimeoutError::Disconnected) => Some(child.wait()?.success()),
    };
    let _ = child.kill();
    child.wait()?;
    let _ = reader.join();
    Ok(outcome)
}

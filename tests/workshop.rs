//! A bench to run the tool on: a temporary folder, the binary, and what it said.
//!
//! Knows no model and no recipe. Invariants: nothing outside the folder is written (the token cache is inside it too), and a
//! refused command leaves the folder as it was.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Name of the token cache in the folder.
const CACHE: &str = "cache";

/// A folder in which commands run.
pub struct Workshop {
    root: PathBuf,
    /// Removes the folder in the end, where it was made for this.
    _made: Option<TempDir>,
}

impl Workshop {
    /// An empty one.
    pub fn new() -> Self {
        let made = TempDir::new().expect("a temporary folder");
        let mut shop = Self::at(made.path().to_owned());
        shop._made = Some(made);
        shop
    }

    /// The folder `root`, which stays.
    pub fn at(root: PathBuf) -> Self {
        Self { root, _made: None }
    }

    /// A path in the folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a file in the folder, with the folders above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("created");
        fs::write(path, content).expect("written");
    }

    /// Reads a file of the folder.
    pub fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Reads a JSON file of the folder.
    pub fn json(&self, name: impl AsRef<Path>) -> serde_json::Value {
        serde_json::from_slice(&self.read(name)).expect("JSON")
    }

    /// The tool, about to run in the folder.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qat"));
        command.args(args);
        self.dressed(command)
    }

    /// `command`, about to run in the folder.
    pub fn dressed(&self, mut command: Command) -> Command {
        command
            .current_dir(&self.root)
            .env("QAT_CACHE", self.path(CACHE))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the tool to its end with the words of `line`.
    pub fn run(&self, line: &str) -> Said {
        Said::of(self.command(line.split_whitespace()))
    }

    /// Runs the tool, which must do what it was asked.
    pub fn done(&self, line: &str) -> Said {
        let said = self.run(line);
        assert_eq!(said.code, Some(0), "{line}\n{said:?}");
        said
    }

    /// Runs the tool, which must refuse: exit code 2, one error with all of `parts` in it, no panic, and everything in the
    /// folder as it was before (tokens of a text that was good may have been cached).
    pub fn refused(&self, line: &str, parts: &[&str]) -> Said {
        self.refusal(self.command(line.split_whitespace()), parts)
    }

    /// [`Workshop::refused`] for a command made by hand.
    pub fn refusal(&self, command: Command, parts: &[&str]) -> Said {
        let line = format!("{command:?}");
        let before = self.content();
        let said = Said::of(command);
        assert_eq!(said.code, Some(2), "{line}\n{said:?}");
        for part in parts {
            assert!(said.err.contains(part), "{line}\n{part:?} is not in:\n{}", said.err);
        }
        let after = self.content();
        let changed: Vec<_> = after
            .iter()
            .filter(|(path, bytes)| before.get(*path) != Some(bytes))
            .map(|(path, _)| path)
            .collect();
        let lost: Vec<_> = before.keys().filter(|path| !after.contains_key(*path)).collect();
        assert!(changed.is_empty() && lost.is_empty(), "{line}\nleft behind {changed:?}, lost {lost:?}");
        said
    }

    /// Everything in the folder but the token cache: path → content, none for a folder.
    fn content(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        collect(&self.root, &mut found);
        found.retain(|path, _| !path.starts_with(self.path(CACHE)));
        found
    }
}

/// Waits until `moment` has come.
pub fn wait_for(moment: impl Fn() -> bool) {
    let began = Instant::now();
    while !moment() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited for a minute");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Sends the signal to a command that runs.
#[cfg(unix)]
pub fn send(signal: &str, child: &Child) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).output();
    assert!(sent.is_ok(), "sh can be run");
}

fn collect(folder: &Path, into: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
    for entry in fs::read_dir(folder).expect("listed") {
        let path = entry.expect("listed").path();
        if path.is_dir() {
            collect(&path, into);
            into.insert(path, None);
        } else {
            into.insert(path.clone(), Some(fs::read(path).expect("read")));
        }
    }
}

/// How a command ended, and what it printed.
#[derive(Debug)]
pub struct Said {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Runs `command` to its end; a panic is a failure whatever else happens.
    pub fn of(mut command: Command) -> Self {
        Self::from(command.output().expect("the tool starts"))
    }
}

impl From<std::process::Output> for Said {
    fn from(output: std::process::Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        let said = Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        assert!(!said.err.contains("panicked"), "{}", said.err);
        said
    }
}

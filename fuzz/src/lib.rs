//! Where fuzz targets put the bytes that they try: they go in through the same doors as a user's files.
//!
//! Knows no format. Invariant: a process has a folder of its own, in memory where the system offers that.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use qat_infer::Opened;
use qat_infer::cpu::{KvType, Matrix, RunOptions, Session};
use tempfile::TempDir;

/// A folder in memory on Linux, the system's own for temporary files elsewhere.
const IN_MEMORY: &str = "/dev/shm";

fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let made = TempDir::new_in(IN_MEMORY).or_else(|_| TempDir::new());
        made.unwrap_or_else(|error| fail("a temporary folder", &error))
    });
    folder.path()
}

/// What was last written, by name: of an input's files most are those of the input before.
static WRITTEN: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());

/// The path of `bytes` as the file `name`, written anew unless they are there.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    if written.get(name).is_some_and(|last| last == bytes) {
        return path;
    }
    // A map of the file before it may not see another one's bytes: a new file, not new content.
    let _ = fs::remove_file(&path);
    fs::write(&path, bytes).unwrap_or_else(|error| fail("written", &error));
    written.insert(name.to_owned(), bytes.to_vec());
    path
}

/// The folder that [`file()`] writes to.
pub fn dir() -> &'static Path {
    folder()
}

/// What stands between the parts of an input of several files.
const SEPARATOR: &[u8] = b"\0--\0";

/// The two files of an input; what lacks the separator is the first.
pub fn split(bytes: &[u8]) -> [&[u8]; 2] {
    let at = bytes.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
    at.map_or([bytes, &[]], |at| [&bytes[..at], &bytes[at + SEPARATOR.len()..]])
}

/// From now on a panic that is caught is no finding: the library that reads Parquet panics on damaged files, and is guarded.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|_| ()));
}

/// From now on what is parallel runs on this thread: handing a matrix of a few rows to another costs more than all else of an input.
pub fn one_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().unwrap_or_else(|error| fail("one thread", &error));
}

/// One in so many inputs is run: what opens has been checked, and running it takes longer than all before.
const RUN: u64 = 16;

/// Whether `input` is one of those that are run; the input alone decides.
pub fn is_run(input: &[u8]) -> bool {
    let hash = input.iter().fold(0u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    (hash >> 32).is_multiple_of(RUN)
}

/// Opens the model at `path`, and reads two tokens if it can be opened and `is_run`.
pub fn open(path: &Path, is_run: bool) {
    let Ok(model) = Opened::<Matrix>::open(path) else { return };
    if !is_run {
        return;
    }
    let options = RunOptions { threads: Some(1), ..RunOptions::new(4).with_kv(KvType::F32) };
    let Ok(mut sequence) = Session::new(&model.decoder, &options) else { return };
    if let Ok(logits) = sequence.prefill(&[1, 2]) {
        assert_eq!(logits.len(), model.decoder.config.vocab_size);
    }
}

/// Ends a target that can't work, which is no finding.
fn fail(what: &str, error: &dyn std::fmt::Display) -> ! {
    eprintln!("{what}: {error}");
    std::process::exit(2)
}

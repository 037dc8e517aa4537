//! What a run tells whoever watches it, and the lines it leaves in `log.jsonl`.
//!
//! Prints nothing. Invariant: a log holds each step at most once, also after a resume.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::FlipLog;
use crate::{Error, Result, data};

/// A moment of a run.
#[derive(Debug, Clone)]
pub enum Event {
    /// Something the user should know, in a sentence.
    Note(String),
    /// Text is being read, to know which text it is.
    Reading {
        /// Bytes read.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Another process is tokenizing the text.
    Waiting,
    /// Text is being tokenized.
    Tokenizing {
        /// Bytes read.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The teacher is asked for predictions that its cache lacks.
    Teaching {
        /// Windows done.
        done: u64,
        /// Windows that this run needs.
        total: u64,
    },
    /// Training begins.
    Begin {
        /// Steps done before (a resumed run).
        from: usize,
        /// Steps in all.
        steps: usize,
        /// Trainable values.
        parameters: usize,
        /// Tokens in the training part.
        tokens: u64,
        /// Tokens in a step.
        tokens_per_step: usize,
    },
    /// A step was taken.
    Step(StepLog),
    /// The held-out windows were scored with the weights on their grid.
    Valid(ValidLog),
    /// A checkpoint is on disk.
    Saved {
        /// Steps done.
        step: usize,
        /// Its folder.
        path: PathBuf,
    },
}

impl From<data::Progress> for Event {
    fn from(progress: data::Progress) -> Self {
        let (done, total) = (progress.bytes_done, progress.bytes_total);
        match progress.stage {
            data::Stage::Reading => Self::Reading { done, total },
            data::Stage::Waiting => Self::Waiting,
            data::Stage::Tokenizing => Self::Tokenizing { done, total },
        }
    }
}

/// Means over the steps since the line before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepLog {
    /// Steps done.
    pub step: usize,
    /// Weighted loss, nats per token.
    pub loss: f64,
    /// Its terms, unweighted, nats per token.
    pub terms: BTreeMap<String, f64>,
    /// Learning rate of the matrices.
    pub lr: f64,
    /// Share of the rounding.
    pub lambda: f32,
    /// Gradient norm before clipping, of the last step.
    pub grad_norm: f64,
    /// How many codes have changed since the line before, where `quant.log_flips` asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flips: Option<FlipLog>,
    /// Share of all quantized weights that are held at their code, where `quant.freeze_after` asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<f64>,
    /// Tokens seen.
    pub tokens: u64,
    /// Tokens per second.
    pub tps: f64,
}

/// Scores on held-out windows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ValidLog {
    /// Steps done.
    pub step: usize,
    /// Cross entropy, nats per token.
    pub valid_cross_entropy: f64,
    /// KL(teacher ‖ student), nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_kl: Option<f64>,
}

/// `log.jsonl` of a run.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log of the run in `out`, without the lines behind `step`: they will be written again.
    ///
    /// # Errors
    /// The file can't be read or written.
    pub fn open(out: &Path, step: usize) -> Result<Self> {
        #[derive(Deserialize)]
        struct Line {
            step: usize,
        }
        let path = out.join("log.jsonl");
        let old = match fs::read(&path) {
            // A line that is damaged is none.
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io("cannot read", &path, e)),
        };
        let keep = |line: &&str| serde_json::from_str::<Line>(line).is_ok_and(|l| l.step <= step && step > 0);
        let kept: String = old.lines().filter(keep).flat_map(|line| [line, "\n"]).collect();
        qat_infer::files::write_file_atomic(&path, kept.as_bytes())?;
        let file =
            File::options().append(true).open(&path).map_err(|e| Error::io("cannot append to", &path, e))?;
        Ok(Self { path, file })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The disk is full.
    pub fn add(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line).map_err(|e| Error::file(&self.path, e.to_string()))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io("cannot append to", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_log_holds_each_step_once_and_no_torn_line() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let valid = |step| ValidLog { step, valid_cross_entropy: 1.0, valid_kl: None };
        let mut log = Log::open(dir.path(), 0).expect("opens");
        [10, 20, 30].iter().for_each(|&s| log.add(&valid(s)).expect("adds"));
        log.file.write_all(b"{\"step\": 2").expect("a torn line");
        let mut log = Log::open(dir.path(), 20).expect("opens again");
        log.add(&valid(30)).expect("adds");
        let text = fs::read_to_string(dir.path().join("log.jsonl")).expect("reads");
        let steps: Vec<usize> =
            text.lines().map(|l| serde_json::from_str::<ValidLog>(l).expect("whole line").step).collect();
        assert_eq!(steps, [10, 20, 30]);
        Log::open(dir.path(), 0).expect("a fresh run starts a fresh log");
        assert_eq!(fs::read_to_string(dir.path().join("log.jsonl")).expect("reads"), "");
    }
}

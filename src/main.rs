//! The front door: one parse, one match, and everything that is printed.
//!
//! Exit codes: 0 done, 1 a gate failed, 2 bad input or an error, 130 stopped by Ctrl-C after saving.

mod bench;
mod chat;
mod cli;
mod compare;
mod complete;
mod dashboard;
mod data;
mod deferral;
mod doctor;
mod evaluate;
mod export;
mod generate;
mod heap;
mod hub;
mod init;
mod inspect;
mod logits;
mod plan;
mod progress;
mod ranks;
mod report;
mod table;
mod tasks;
mod train;
mod writing;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Parser as _;
use cli::{Cli, Command};

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Everything that was asked for.
    Done,
    /// A gate of `--require` or `eval.require` doesn't hold.
    GateFailed,
    /// Ctrl-C or SIGTERM; what was done is saved.
    Stopped,
    /// An error of which another rank of the run has told.
    Elsewhere,
}

fn main() -> ExitCode {
    heap::keep_freed_memory();
    let ending = hub::brought(Cli::parse().command).and_then(|command| match command {
        Command::Train(args) => train::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Eval(args) => evaluate::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Doctor => doctor::run(),
        Command::Logits(args) => logits::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Completions(args) => complete::completions(&args),
        Command::Man(args) => complete::man(&args),
    });
    match ending {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::GateFailed) => ExitCode::from(1),
        Ok(Ending::Stopped) => ExitCode::from(130),
        Ok(Ending::Elsewhere) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(2)
        }
    }
}

/// Refuses the folder of a run where a model is wanted.
fn no_run(dir: &Path) -> anyhow::Result<()> {
    if qat_train::export::is_run(dir) {
        bail!(
            "{} is a run of qat train, not a model: export it first (qat export {0} --format qat --out DIR), or name what it \
             has exported ({0}/qat) or started from ({0}/student)",
            dir.display()
        );
    }
    Ok(())
}

/// Where token files are kept: `$QAT_CACHE`, or the user's cache folder.
fn cache_dir() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = var("QAT_CACHE") {
        return dir;
    }
    let home = || var("HOME").or_else(|| var("USERPROFILE"));
    let base = match std::env::consts::OS {
        "macos" => home().map(|h| h.join("Library/Caches")),
        _ => var("XDG_CACHE_HOME").or_else(|| home().map(|h| h.join(".cache"))),
    };
    base.unwrap_or_else(std::env::temp_dir).join("qat")
}

/// The error with its causes. Many errors tell their cause in their own message: nothing is said twice.
fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

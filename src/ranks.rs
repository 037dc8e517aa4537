//! Whether this process was started with others to train together: what the environment says, and how one that fails takes its leave.

use std::{thread, time::Duration};

use anyhow::anyhow;
use qat_train::{
    Error,
    device::{Choice, Opened},
    ranks::{Launch, Ranks},
};

use crate::Ending;

/// How long the others are waited for when one of them has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the others leave the first the word.
const GRACE: Duration = Duration::from_secs(2);

/// Exit code of a rank that failed, or lost another.
const FAILED: i32 = 2;

/// Runs `work` on the device called `device`, alone or as one of the processes that were started together.
pub fn together(
    device: &str,
    work: impl FnOnce(&Ranks, &Opened) -> anyhow::Result<Ending>,
) -> anyhow::Result<Ending> {
    let choice = device.parse::<Choice>()?;
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some(launch) = Launch::of(&variable)? else { return work(&Ranks::alone(), &choice.open()?) };
    let met = choice.open_nth(launch.local).and_then(|opened| {
        let ranks = launch.connect(&opened.device, lost)?;
        Ok((opened, ranks))
    });
    match met {
        Ok((opened, ranks)) => end(&ranks, work(&ranks, &opened)),
        Err(error) if launch.rank == 0 => Err(error.into()),
        Err(error) => {
            // If the first has the same to say, it ends the others with it.
            thread::sleep(GRACE);
            Err(anyhow!("rank {}: {error}", launch.rank))
        }
    }
}

/// Ends this process because another one of the run is gone: nobody would answer.
fn lost(problem: &str) {
    eprintln!("error: {problem}; the last checkpoint is kept");
    leave()
}

/// Ends this process without what libraries do at its end: CUDA's driver would be shut down while the thread that trains still uses it,
/// which panics or dies of a segmentation fault then.
#[cfg(unix)]
#[expect(unsafe_code, reason = "_exit has no safe wrapper")]
fn leave() -> ! {
    // SAFETY: _exit takes an integer and doesn't return; nothing is buffered that is not on disk or on the terminal already.
    unsafe { libc::_exit(FAILED) }
}

/// Ends this process.
#[cfg(not(unix))]
fn leave() -> ! {
    std::process::exit(FAILED)
}

/// An error as the others are told of it.
pub fn told(error: anyhow::Error) -> Error {
    match error.downcast_ref::<Error>() {
        Some(Error::Interrupted) => Error::Interrupted,
        _ => Error::Config(crate::message(&error)),
    }
}

/// How this rank ends: one speaks for all, unless they no longer hear each other.
fn end(ranks: &Ranks, ended: anyhow::Result<Ending>) -> anyhow::Result<Ending> {
    let Err(error) = ended else { return ended };
    if ranks.size() == 1 {
        return Err(error);
    }
    let (rank, error) = (ranks.rank(), told(error));
    let said = error.to_string();
    thread::spawn(move || {
        thread::sleep(PATIENCE);
        eprintln!("error: rank {rank}: {said}");
        // Whoever started them ends the others.
        leave()
    });
    ranks.part(&error);
    if ranks.is_first() { Err(anyhow!(error)) } else { Ok(Ending::Elsewhere) }
}

//! The pages that runs leave behind when they end.
//!
//! Invariant: nothing here fails a run; what could not be done is said in a warning.

use std::{path::Path, sync::atomic::AtomicBool};

use qat_train::export::Changes;

use super::{FILE, Run, Samples, beside, of_run, write};

/// Name of the page of several runs.
const COMPARISON: &str = "comparison.html";

/// What a run knows when it ends, beside what its folder holds.
pub struct Leaving<'a> {
    /// Its folder.
    pub out: &'a Path,
    /// What training did to its matrices; none where that is not asked for.
    pub changes: Option<Changes>,
    /// Two models and the text that they were scored on.
    pub texts: Option<Texts<'a>>,
    /// Raised when whoever waits has had enough.
    pub stop: &'a AtomicBool,
}

/// Two models and the text that they were scored on.
pub struct Texts<'a> {
    /// The float model.
    pub float: &'a Path,
    /// The packed one.
    pub packed: &'a Path,
    /// The text.
    pub text: &'a str,
}

/// Writes the page of a run into its folder.
pub fn leave(leaving: Leaving) {
    let path = leaving.out.join(FILE);
    match page(leaving) {
        Ok(true) => eprintln!("report: {}", path.display()),
        Ok(false) => {}
        Err(error) => eprintln!("warning: no report: {}: {}", path.display(), crate::message(&error)),
    }
}

/// Writes the page of a recipe's runs beside each other into the folder `out` that they are in.
pub fn leave_comparison(folders: &[&Path], out: &Path) {
    let path = out.join(COMPARISON);
    let page = folders.iter().map(|dir| Run::read(dir)).collect::<anyhow::Result<Vec<_>>>();
    match page.and_then(|runs| write(&beside(&runs), &path)) {
        Ok(()) => eprintln!("report: {}", path.display()),
        Err(error) => eprintln!("warning: no report: {}: {}", path.display(), crate::message(&error)),
    }
}

/// Writes the page; false where the run has nothing to tell yet.
fn page(leaving: Leaving) -> anyhow::Result<bool> {
    let mut run = Run::read(leaving.out)?;
    if run.curves.is_empty() {
        return Ok(false);
    }
    run.changes = leaving.changes;
    if let Some(texts) = leaving.texts {
        let made_of = run.scores.trained().and_then(|report| report.model_sha256.clone());
        let known = run.samples.take().filter(|samples| made_of.is_some() && samples.model_sha256 == made_of);
        run.samples = match known {
            Some(known) => Some(known),
            None => match Samples::make(texts.float, texts.packed, texts.text, leaving.stop) {
                Ok(samples) => {
                    samples.write(leaving.out)?;
                    Some(samples)
                }
                Err(error) => {
                    run.troubles.push(format!("texts of both models: {}", crate::message(&error)));
                    None
                }
            },
        };
    }
    run.troubles.iter().for_each(|trouble| eprintln!("report: left out: {trouble}"));
    write(&of_run(&run), &leaving.out.join(FILE))?;
    Ok(true)
}

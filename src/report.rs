//! `qat report`, and the page that each run of `qat train` leaves behind: what was trained, how it went and what came out, for a reader who
//! knows nothing of it.
//!
//! Invariant: a page that can't be written is a warning of a run and never its end.

mod axis;
mod charts;
mod curves;
mod leave;
mod page;
mod run;
mod samples;
mod scores;
mod sections;
mod svg;
mod thin;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use qat_infer::files::write_file_atomic;

pub use self::{
    axis::{Axis, Spread, number},
    curves::Curves,
    leave::{Leaving, Texts, leave, leave_comparison},
    page::Page,
    run::{Run, folders},
    samples::Samples,
    scores::{Kind, Scores},
    sections::{PROGRESS, all_rows, beside, differences, duration, of_run, progress},
    thin::{Points, thin},
};
use crate::{Ending, cli};

/// Name of the page in the folder of a run.
pub const FILE: &str = "report.html";

/// Runs the command.
pub fn run(args: &cli::Report) -> anyhow::Result<Ending> {
    let folders = folders(&args.runs)?;
    for dir in &folders {
        let mut run = Run::read(dir)?;
        run.look_at_matrices(dir);
        run.troubles.iter().for_each(|trouble| eprintln!("left out: {trouble}"));
        let page = of_run(&run);
        let path = dir.join(FILE);
        write(&page, &path)?;
        println!("{}", path.display());
        if let Some(pictures) = &args.pictures {
            let into = if folders.len() > 1 { pictures.join(&run.name) } else { pictures.clone() };
            write_pictures(&page, &into)?;
        }
    }
    Ok(Ending::Done)
}

/// Writes the page, whole or not at all.
///
/// # Errors
/// The disk is full.
pub fn write(page: &Page, path: &Path) -> anyhow::Result<()> {
    Ok(write_file_atomic(path, page.html()?.as_bytes())?)
}

/// Writes each picture of the page as a file of its own.
fn write_pictures(page: &Page, into: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(into).with_context(|| into.display().to_string())?;
    for figure in page.figures() {
        let path: PathBuf = into.join(format!("{}.svg", figure.name));
        write_file_atomic(&path, svg::file(&figure.svg).as_bytes())?;
        println!("{}", path.display());
    }
    Ok(())
}

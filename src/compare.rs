//! `qat compare`: runs side by side, in the terminal and as a page.

use std::path::Path;

use anyhow::bail;

use crate::{
    Ending, cli,
    report::{self, Run},
    table,
};

/// Runs the command.
pub fn run(args: &cli::Compare) -> anyhow::Result<Ending> {
    let folders = report::folders(&args.runs)?;
    if folders.len() < 2 {
        bail!("one run has nothing to be compared with: name another; qat report says what is known of one");
    }
    let mut runs = folders.iter().map(|dir| Run::read(dir)).collect::<anyhow::Result<Vec<_>>>()?;
    name_apart(&mut runs, &folders);
    for run in &runs {
        run.troubles.iter().for_each(|trouble| eprintln!("{}: left out: {trouble}", run.name));
    }
    let mut progress = table::with_header(&report::PROGRESS, &[0, 1]);
    progress.add_rows(report::progress(&runs));
    println!("{progress}");
    let rows: Vec<table::Row> = report::all_rows(&runs).into_iter().map(|(.., row)| row).collect();
    if !rows.is_empty() {
        println!("\n{}", table::comparison(&rows));
    }
    let differences = report::differences(&runs);
    if !differences.is_empty() {
        let mut header = vec!["key"];
        header.extend(runs.iter().map(|run| run.name.as_str()));
        let mut keys = table::with_header(&header, &(0..header.len()).collect::<Vec<_>>());
        keys.add_rows(differences);
        println!("\n{keys}");
    }
    if let Some(path) = &args.html {
        report::write(&report::beside(&runs), path)?;
        println!("\n{}", path.display());
    }
    Ok(Ending::Done)
}

/// Gives runs of one name the paths of their folders instead.
fn name_apart(runs: &mut [Run], folders: &[impl AsRef<Path>]) {
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for (at, run) in runs.iter_mut().enumerate() {
        if names.iter().filter(|name| **name == names[at]).count() > 1 {
            run.name = folders[at].as_ref().display().to_string();
        }
    }
}

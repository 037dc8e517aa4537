//! `hf://…` wherever a model or a text is named: fetched, and from there on files like all others.
//!
//! Reads what the environment says about the hub (the variables of Python's `huggingface_hub`), and shows how far a file is. Invariant: a
//! recipe that has passed here names commits, so that what a run began with is what it goes on with.

mod environment;
mod recipes;

use std::{
    io::{IsTerminal as _, stderr},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use qat_hub::{Found, Hub, Kind, Part, Progress, Reference};

use crate::{
    cli::{Command, DataCommand},
    table,
};

pub use recipes::fetch;

/// A file of at least so many bytes is worth a line where there is no bar.
const WORTH_A_LINE: u64 = 10 << 20;

/// Fetches what `command` names of the hub, and puts the places of the files there instead. Recipes come later, when they are read.
pub fn brought(mut command: Command) -> anyhow::Result<Command> {
    match &mut command {
        Command::Export(args) => {
            model(&mut args.from)?;
            texts(&mut args.calibration)?;
        }
        Command::Eval(args) => {
            model(&mut args.dir)?;
            args.against.iter_mut().try_for_each(model)?;
            texts(&mut args.data)?;
        }
        Command::Generate(args) => model(&mut args.dir)?,
        Command::Chat(args) => model(&mut args.dir)?,
        Command::Logits(args) => model(&mut args.dir)?,
        Command::Bench(args) => args.dirs.iter_mut().try_for_each(model)?,
        Command::Inspect(args) => model(&mut args.dir)?,
        Command::Plan(args) => shape(&mut args.target)?,
        Command::Data(args) => {
            let args = match &mut args.command {
                DataCommand::Show(args) => &mut args.text,
                DataCommand::Tokenize(args) => &mut args.text,
                DataCommand::Text(args) => {
                    texts(&mut args.files)?;
                    return Ok(command);
                }
            };
            args.model.iter_mut().try_for_each(model)?;
            texts(&mut args.targets)?;
        }
        _ => {}
    }
    Ok(command)
}

/// The model that `path` names, on this machine.
fn model(path: &mut PathBuf) -> anyhow::Result<()> {
    let Some(reference) = reference(path)? else { return Ok(()) };
    *path = fetched(&reference, Part::Whole)?.paths.remove(0);
    Ok(())
}

/// What says the shape of the model that `path` names: no weights are needed to plan it.
pub fn shape(path: &mut PathBuf) -> anyhow::Result<()> {
    let Some(reference) = reference(path)? else { return Ok(()) };
    let place = fetched(&reference, Part::Shape)?.paths.remove(0);
    let is_packed = !place.is_dir() || place.join("manifest.json").is_file();
    *path = if is_packed { place } else { place.join("config.json") };
    Ok(())
}

/// The texts that `list` names, on this machine.
fn texts(list: &mut Vec<String>) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for entry in list.drain(..) {
        match Reference::is(&entry) {
            true => found.extend(places(&fetched(&entry.parse()?, Part::Whole)?)?),
            false => found.push(entry),
        }
    }
    *list = found;
    Ok(())
}

/// The reference that `path` spells, if it does.
fn reference(path: &Path) -> anyhow::Result<Option<Reference>> {
    let spelled = path.to_str().filter(|text| Reference::is(text));
    Ok(spelled.map(str::parse).transpose()?)
}

fn places(found: &Found) -> anyhow::Result<Vec<String>> {
    let text = |path: &PathBuf| path.to_str().map(str::to_owned);
    found
        .paths
        .iter()
        .map(|path| text(path).with_context(|| format!("{}: no UTF-8", path.display())))
        .collect()
}

/// Fetches what `reference` names: data, a model, or so much of it.
fn fetched(reference: &Reference, part: Part) -> anyhow::Result<Found> {
    let hub = Hub::new(environment::settings())?;
    let mut bar = Bar::default();
    let mut show = |progress: Progress| bar.show(progress);
    let is_data = reference.kind == Kind::Dataset;
    let found =
        if is_data { hub.data(reference, &mut show)? } else { hub.model(reference, part, &mut show)? };
    bar.end();
    found.note.iter().for_each(|note| eprintln!("{note}"));
    Ok(found)
}

/// How far a file is: a bar on a terminal, a line for a large one elsewhere.
#[derive(Default)]
struct Bar {
    file: String,
    bar: Option<ProgressBar>,
}

impl Bar {
    fn show(&mut self, progress: Progress) {
        if self.file != progress.file {
            self.begin(&progress);
        }
        self.bar.iter().for_each(|bar| bar.set_position(progress.done));
    }

    fn begin(&mut self, progress: &Progress) {
        self.end();
        progress.file.clone_into(&mut self.file);
        let total = progress.total.unwrap_or(progress.done);
        if !stderr().is_terminal() {
            if total >= WORTH_A_LINE {
                eprintln!("fetching {} ({})", progress.file, table::bytes(total));
            }
            return;
        }
        let style = "fetching {prefix} {bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(total).with_style(style).with_prefix(progress.file.to_owned());
        // What was here before took no time.
        bar.set_position(progress.done);
        bar.reset_eta();
        self.bar = Some(bar);
    }

    fn end(&mut self) {
        self.bar.take().iter().for_each(ProgressBar::finish_and_clear);
    }
}

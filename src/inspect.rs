//! `qat inspect`: what a model directory is, and what a Mac's GPU would do to run it.
//!
//! Runs no model.

mod chips;
mod dispatches;
mod model;

use std::io::{ErrorKind, Write as _, stdout};

use qat_infer::metal::Model;

use crate::{Ending, cli};
use dispatches::Dispatches;
use model::Inspected;

/// Longest context unless one is asked for.
const LONGEST_DEFAULT: usize = 2048;

/// Runs the command.
pub fn run(args: &cli::Inspect) -> anyhow::Result<Ending> {
    crate::no_run(&args.dir)?;
    if args.dispatches {
        dispatches(args)?
    } else {
        model(args)?
    }
    Ok(Ending::Done)
}

fn model(args: &cli::Inspect) -> anyhow::Result<()> {
    let inspected = Inspected::open(&args.dir)?;
    if args.json {
        return print(&serde_json::to_string_pretty(&inspected)?);
    }
    let [about, parts] = inspected.tables();
    print(&format!("{about}\n\n{parts}"))
}

fn dispatches(args: &cli::Inspect) -> anyhow::Result<()> {
    let model = Model::open(&args.dir)?;
    let longest = model.decoder.config.max_position_embeddings;
    let context = args.context.unwrap_or(longest.min(LONGEST_DEFAULT));
    let found = Dispatches::of(&model.decoder, context, args.kv, args.tokens)?;
    print(&if args.json { serde_json::to_string_pretty(&found.json())? } else { found.to_string() })
}

/// Prints a text that may be long: whoever reads it (`| head`) may stop before its end.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(stdout(), "{text}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

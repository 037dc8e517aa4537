//! `qat completions` and `qat man`: what a shell and `man` want to know of the command line, made of its own definition.

use std::io;

use clap::CommandFactory as _;

use crate::{Ending, cli};

/// Writes the completions of a shell to standard output.
pub fn completions(args: &cli::Completions) -> anyhow::Result<Ending> {
    clap_complete::generate(args.shell, &mut cli::Cli::command(), "qat", &mut io::stdout());
    Ok(Ending::Done)
}

/// Writes a page for `qat` and one for each command.
pub fn man(args: &cli::Man) -> anyhow::Result<Ending> {
    std::fs::create_dir_all(&args.out)
        .map_err(|e| anyhow::anyhow!("cannot make {}: {e}", args.out.display()))?;
    clap_mangen::generate_to(cli::Cli::command(), &args.out)
        .map_err(|e| anyhow::anyhow!("cannot write the pages to {}: {e}", args.out.display()))?;
    println!("wrote {0}; read them with man -l {0}/qat.1", args.out.display());
    Ok(Ending::Done)
}

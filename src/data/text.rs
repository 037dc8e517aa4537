//! `qat data text`: the text of files, or generated stories, on standard output, as scorers read it.

use std::io::{BufWriter, ErrorKind, Write as _, stdout};
use std::path::Path;

use qat_train::data::{Corpus, Source};

use crate::{Ending, cli};

/// Runs the command.
pub fn run(args: &cli::DataPlain) -> anyhow::Result<Ending> {
    let sources = Source::resolve(&args.files, Path::new(""))?;
    let corpus = Corpus::new(sources, args.field.as_deref(), None)?;
    let mut out = BufWriter::with_capacity(1 << 20, stdout().lock());
    for text in corpus.joined() {
        match out.write_all(text?.as_bytes()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(Ending::Done),
            written => written?,
        }
    }
    match out.flush() {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(Ending::Done),
    }
}

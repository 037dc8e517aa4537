//! `qat data tokenize`: the token files of a recipe's text, before they are needed.
//!
//! What it makes is what `qat train` would make, in the same place; what was begun by either is gone on with.

use std::{path::Path, time::Duration, time::Instant};

use anyhow::bail;
use qat_infer::eval::{peak_rss_bytes, processor_time};
use qat_train::{
    Error,
    data::{Corpus, Library, Source, Tokens},
    recipe::Plan,
    trainer::{Event, Look as Seen, look},
};

use super::{job, plan};
use crate::{
    Ending, cli,
    progress::{Look, Progress},
    table, train,
};

/// Text that the library is measured on.
const SAMPLE: usize = 64 << 20;

/// Runs the command.
pub fn run(args: &cli::DataTokenize) -> anyhow::Result<Ending> {
    let (plan, cache) = (plan(&args.text)?, crate::cache_dir());
    if args.bench && plan.data.chat.is_some() {
        bail!("--bench: measures plain text; conversations take a template and windows too");
    }
    let stop = train::stop_flag(true)?;
    let look_of = if args.plain { Look::Lines } else { Look::of_stderr() };
    let mut progress = Progress::new("text", look_of, Path::new(""), &stop)?;
    let mut watch = Watch::default();
    let mut hear = |event: Event| {
        watch.hear(&event);
        progress.show(event);
    };
    let seen = look(&job(&plan, &cache)?, &mut hear, &stop);
    progress.finish();
    let seen = match seen {
        Err(Error::Interrupted) => {
            eprintln!("stopped; what is tokenized is kept, and the same command goes on with it");
            return Ok(Ending::Stopped);
        }
        seen => seen?,
    };
    println!("{}", report(&seen, &watch));
    if args.bench {
        println!("{}", bench(&plan, &seen, &watch)?);
    }
    Ok(Ending::Done)
}

/// A moment of a job: when it was, what it had cost by then, and how much was done.
#[derive(Debug, Clone, Copy)]
struct Moment {
    at: Instant,
    processor: Duration,
    bytes: u64,
}

impl Moment {
    fn now(bytes: u64) -> Self {
        Self { at: Instant::now(), processor: processor_time().unwrap_or_default(), bytes }
    }
}

/// Time and work between two moments.
#[derive(Debug, Clone, Copy)]
struct Speed {
    bytes: u64,
    clock: Duration,
    processor: Duration,
}

impl Speed {
    fn between(from: Moment, to: Moment) -> Self {
        Self {
            bytes: to.bytes - from.bytes,
            clock: to.at - from.at,
            processor: to.processor - from.processor,
        }
    }

    /// Millions of bytes a second of the clock.
    fn by_the_clock(self) -> f64 {
        self.bytes as f64 / 1e6 / self.clock.as_secs_f64().max(1e-9)
    }

    /// Millions of bytes a second of one core; where the system doesn't tell, infinite.
    fn of_a_core(self) -> f64 {
        self.bytes as f64 / 1e6 / self.processor.as_secs_f64()
    }
}

/// When the text was read, and when it was tokenized.
#[derive(Debug, Default)]
struct Watch {
    /// From the first report of each to the last.
    reading: Option<(Moment, Moment)>,
    tokenizing: Option<(Moment, Moment)>,
}

impl Watch {
    fn hear(&mut self, event: &Event) {
        let (times, done) = match event {
            Event::Reading { done, .. } => (&mut self.reading, *done),
            Event::Tokenizing { done, .. } => (&mut self.tokenizing, *done),
            _ => return,
        };
        let now = Moment::now(done);
        // A second text begins anew: it is measured by itself.
        *times = match *times {
            Some((first, last)) if last.bytes <= done => Some((first, now)),
            _ => Some((now, now)),
        };
    }

    fn tokenizing(&self) -> Option<Speed> {
        self.tokenizing.map(|(from, to)| Speed::between(from, to)).filter(|speed| speed.bytes > 0)
    }
}

/// What there is now.
fn report(seen: &Seen, watch: &Watch) -> String {
    let mut lines = table::lines();
    let mut row = |name: &str, value: String| {
        lines.add_row([name.to_owned(), value]);
    };
    let mut files: Vec<&Tokens> = vec![&seen.train];
    files.extend(Some(&seen.valid).filter(|valid| valid.path() != seen.train.path()));
    for tokens in files {
        let header = tokens.header();
        row("tokens", table::count(header.tokens));
        row("documents", table::count(header.documents));
        let bytes = header.text_bytes;
        let each = bytes as f64 / header.tokens.max(1) as f64;
        row("text", format!("{} bytes, {each:.2} a token", table::count(bytes)));
        row("in", tokens.path().display().to_string());
    }
    if let Some(speed) = watch.tokenizing() {
        let rate = format!("{:.2} MB/s, {:.2} MB a core-second", speed.by_the_clock(), speed.of_a_core());
        row("tokenized", format!("{rate}, in {:.1?}", speed.clock));
    }
    if let Some(peak) = peak_rss_bytes() {
        row("memory of the process", format!("at most {}", table::bytes(peak)));
    }
    lines.to_string()
}

/// The library by itself on some of the text, beside what was measured.
fn bench(plan: &Plan, seen: &Seen, watch: &Watch) -> anyhow::Result<String> {
    let settings = &plan.recipe.data;
    let sources = Source::resolve(&plan.data.train, Path::new(""))?;
    let corpus = Corpus::new(sources, Some(&settings.field), settings.separator.as_deref())?;
    let library = Library::new(&corpus, SAMPLE, seen.tokenizer.clone())?;
    let before = Moment::now(0);
    library.encode()?;
    let alone = Speed::between(before, Moment::now(library.text_bytes() as u64));
    let mut lines = table::lines();
    lines.add_row([
        "library alone".to_owned(),
        format!("{:.2} MB a core-second, on {} of text", alone.of_a_core(), table::bytes(alone.bytes)),
    ]);
    if let Some(speed) = watch.tokenizing() {
        let share = 100.0 * speed.of_a_core() / alone.of_a_core();
        lines.add_row(["of that here".to_owned(), format!("{share:.1} %")]);
    }
    Ok(lines.to_string())
}

//! Accidents, and how a run comes out of them: a suite that prints a score.
//!
//!     cargo test --release --test accidents                    # a short set
//!     cargo test --release --test accidents -- --kills 200     # all of it
//!     cargo test --release --test accidents -- clock disk      # kinds whose names have these words
//!
//! A case is a run, in a folder of its own, that meets one accident. It has held when the run said what it had to say and, after what the
//! message advises, left the same files with the same bytes as a run that met none. What happens is drawn from a seed, which is
//! printed; timing decides where a run is hit, never whether a case holds.

mod clock;
mod company;
mod damage;
mod disk;
mod draw;
mod kill;
mod long_text;
#[allow(dead_code, reason = "the bench of all black-box tests; not all of it is needed here")]
#[path = "../model.rs"]
mod model;
mod scene;
mod signal;
#[allow(dead_code, reason = "the bench of all black-box tests; not all of it is needed here")]
#[path = "../workshop.rs"]
mod workshop;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use draw::Draw;
use scene::Whole;

/// How a case ended that did not fail.
pub enum Held {
    /// As promised; what happened, in a few words.
    Yes(String),
    /// It can't happen on this machine.
    Skipped(&'static str),
}

/// One accident.
pub struct Case {
    name: String,
    run: Box<dyn Fn(&Whole) -> Held + Send + Sync>,
}

impl Case {
    fn new(name: impl Into<String>, run: impl Fn(&Whole) -> Held + Send + Sync + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// How much of each kind is tried.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    kills: usize,
    /// All that is there, or a few drawn ones.
    all: bool,
}

impl Extent {
    /// All of `cases`, or `few` drawn ones.
    fn of(self, draw: &mut Draw, few: usize, mut cases: Vec<Case>) -> Vec<Case> {
        while !self.all && cases.len() > few {
            cases.swap_remove(draw.below(cases.len()));
        }
        cases
    }
}

/// A kind of accident.
struct Kind {
    name: &'static str,
    promise: &'static str,
    cases: fn(&mut Draw, Extent, &Whole) -> Vec<Case>,
}

const KINDS: [Kind; 9] = [
    Kind { name: "kill -9", promise: "resumed to the same bits", cases: kill::once },
    Kind { name: "kill -9, five times in a row", promise: "resumed to the same bits", cases: kill::often },
    Kind {
        name: "kill -9 in a long text",
        promise: "went on where it was, to the same tokens",
        cases: long_text::cases,
    },
    Kind {
        name: "Ctrl-C, SIGTERM, SIGHUP",
        promise: "ended with 130, then the same bits",
        cases: signal::cases,
    },
    Kind { name: "full disk", promise: "said so, went on to the same bits with room", cases: disk::full },
    Kind {
        name: "read-only folder",
        promise: "named it, went on to the same bits when it could be written",
        cases: disk::read_only,
    },
    Kind {
        name: "damaged file",
        promise: "came to the same bits, or said what to delete for them",
        cases: damage::cases,
    },
    Kind { name: "clock", promise: "did not matter", cases: clock::cases },
    Kind { name: "company", promise: "refused by name, or the same bits for all", cases: company::cases },
];

/// What was asked for.
struct Asked {
    extent: Extent,
    seed: u64,
    /// Words, one of which a kind's name has; all kinds without any.
    words: Vec<String>,
}

impl Asked {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self { extent: Extent { kills: 12, all: false }, seed: 1, words: Vec::new() };
        while let Some(argument) = arguments.next() {
            let mut number =
                || arguments.next().and_then(|n| n.parse().ok()).ok_or(format!("{argument}: want a number"));
            match argument.as_str() {
                "--kills" => asked.extent = Extent { kills: number()?, all: true },
                "--seed" => asked.seed = number()? as u64,
                // Flags of the usual harness, which `cargo test -- FLAGS` gives to every target.
                flag if flag.starts_with('-') => {}
                word => asked.words.push(word.to_lowercase()),
            }
        }
        Ok(asked)
    }

    fn wants(&self, kind: &Kind) -> bool {
        let name = kind.name.to_lowercase();
        self.words.is_empty() || self.words.iter().any(|word| name.contains(word.as_str()))
    }
}

fn main() -> ExitCode {
    let asked = match Asked::parse(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(problem) => {
            println!("{problem}; as in --kills 200 --seed 1, or the words of a kind");
            return ExitCode::from(2);
        }
    };
    let kinds: Vec<&Kind> = KINDS.iter().filter(|kind| asked.wants(kind)).collect();
    if kinds.is_empty() {
        return ExitCode::SUCCESS;
    }
    let began = Instant::now();
    let whole = Whole::new();
    println!("accidents with seed {}; a run without one takes {:.2?}", asked.seed, whole.took());
    let mut score = Vec::new();
    for kind in kinds {
        let mut draw = Draw::new(asked.seed, kind.name);
        score.push((kind, Tally::of((kind.cases)(&mut draw, asked.extent, &whole), &whole)));
    }
    println!();
    for (kind, tally) in &score {
        println!("{:30} {:3} of {:3} {}", kind.name, tally.held, tally.tried, kind.promise);
        tally.skipped.iter().for_each(|why| println!("{:30} SKIPPED: {why}", ""));
    }
    let sum = |of: fn(&Tally) -> usize| score.iter().map(|(_, tally)| of(tally)).sum::<usize>();
    let (held, tried) = (sum(|tally| tally.held), sum(|tally| tally.tried));
    println!("score: {held} of {tried} in {:.0?}", began.elapsed());
    ExitCode::from(u8::from(held != tried))
}

/// How the cases of a kind ended.
#[derive(Default)]
struct Tally {
    held: usize,
    tried: usize,
    skipped: Vec<String>,
}

impl Tally {
    /// Runs `cases`, as many at a time as there are cores, and prints how each ended.
    fn of(cases: Vec<Case>, whole: &Whole) -> Self {
        let (next, tally) = (AtomicUsize::new(0), Mutex::new(Self::default()));
        let work = || {
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                let ended = catch_unwind(AssertUnwindSafe(|| (case.run)(whole)));
                tally.lock().expect("no case holds it").add(&case.name, ended.ok());
            }
        };
        let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4));
        std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
        tally.into_inner().expect("no case holds it")
    }

    fn add(&mut self, name: &str, ended: Option<Held>) {
        if let Some(Held::Skipped(why)) = ended {
            if !self.skipped.iter().any(|known| known == why) {
                self.skipped.push(why.to_owned());
            }
            return;
        }
        self.tried += 1;
        match ended {
            Some(Held::Yes(what)) => {
                self.held += 1;
                println!("{name}: {what}");
            }
            _ => println!("FAILED {name}: see above"),
        }
    }
}

//! `qat bench`: models × threads × tests, and the memory bandwidth that decoding could use; or the steps of a recipe.
//!
//! Knows no arithmetic of its own beyond that of its table. Invariant: what was measured is shown even if a later model
//! turns out to be damaged; what can be seen to be wrong beforehand stops everything before the first clock starts.

mod row;
mod sustain;
mod training;

use std::{collections::BTreeMap, num::NonZero, path::Path, thread::available_parallelism};

use anyhow::{Context as _, bail};
use qat_infer::{
    FloatModel,
    bench::{Bandwidth, Setup, Test, Work, measure, measure_bandwidth},
    cpu::Model,
    energy::Meter,
    files::{CONFIG_FILE, MANIFEST_FILE, Manifest, PackedDir},
};

use qat_quant::kernels::Isa;

use crate::{Ending, cli, evaluate};
use row::Row;

pub use sustain::length;
pub use training::duration;

/// More threads than this are a slip of the finger.
const MOST_THREADS: usize = 1024;

/// Bandwidth by number of threads.
type Bandwidths = BTreeMap<NonZero<usize>, Bandwidth>;

/// Runs the command.
pub fn run(args: &cli::Bench) -> anyhow::Result<Ending> {
    if let Some(recipe) = &args.training.train {
        return training::run(recipe, args);
    }
    let mut tests = tests(args)?;
    if args.sustain.is_some() {
        tests.retain(|test| matches!(test.work, Work::Generation(_)));
    }
    let threads = threads(args)?;
    for dir in &args.dirs {
        check(dir, &tests)?;
    }
    let energy = Energy::open(args)?;
    if let Some(length) = args.sustain {
        return sustain::run(args, length, (&tests, &threads), &energy);
    }
    let generates = tests.iter().any(|test| matches!(test.work, Work::Generation(_)));
    let measured = threads.iter().filter(|_| generates);
    let mut memory: Bandwidths = measured.map(|n| (*n, measure_bandwidth(*n))).collect();
    let mut rows = Vec::new();
    let outcome = args
        .dirs
        .iter()
        .try_for_each(|dir| bench(dir, args, &threads, &tests, &energy, &mut |row| rows.push(row)));
    if rows.is_empty() {
        return outcome.map(|()| Ending::Done);
    }
    // Once more, in case something else had kept the memory busy the first time.
    memory.iter_mut().for_each(|(n, found)| *found = found.or_better(measure_bandwidth(*n)));
    rows.iter_mut().for_each(|row| row.compare(&memory));
    match args.format {
        cli::BenchFormat::Md => print!("{}", row::markdown(&rows, &memory)),
        cli::BenchFormat::Csv => print!("{}", row::csv(&rows)?),
        cli::BenchFormat::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
    }
    if let Some(path) = &args.json {
        evaluate::write_json(path, &rows)?;
    }
    outcome.map(|()| Ending::Done)
}

/// The counters of this machine, and what they count or why there are none.
struct Energy {
    meter: Option<Meter>,
    said: String,
}

impl Energy {
    fn open(args: &cli::Bench) -> anyhow::Result<Self> {
        let meter = match &args.powercap {
            Some(dir) => Ok(Meter::of_powercap(dir).context("--powercap")?),
            None => Meter::open(),
        };
        let said = meter.as_ref().map_or_else(|why| format!("not measured: {why}"), Meter::covers);
        Ok(Self { meter: meter.ok(), said })
    }
}

/// Every combination of what was asked for, prompts first.
fn tests(args: &cli::Bench) -> anyhow::Result<Vec<Test>> {
    let prompts = args.pp.iter().filter(|n| **n > 0).map(|n| Work::Prompt(*n));
    let generations = args.tg.iter().filter(|n| **n > 0).map(|n| Work::Generation(*n));
    let works: Vec<Work> = prompts.chain(generations).collect();
    let tests: Vec<Test> = args
        .depth
        .iter()
        .flat_map(|depth| works.iter().map(|work| Test { work: *work, depth: *depth }))
        .collect();
    if tests.is_empty() {
        bail!("nothing to measure: --pp and --tg are 0; want a number of tokens for one of them");
    }
    Ok(tests)
}

fn threads(args: &cli::Bench) -> anyhow::Result<Vec<NonZero<usize>>> {
    if let Some(n) = args.threads.iter().find(|n| n.get() > MOST_THREADS) {
        bail!("--threads {n}: want 1 to {MOST_THREADS}");
    }
    match args.threads.as_slice() {
        [] => Ok(vec![available_parallelism().context("--threads: say how many, the system doesn't")?]),
        chosen => Ok(chosen.to_vec()),
    }
}

/// What can be known of a model without reading its weights.
fn check(dir: &Path, tests: &[Test]) -> anyhow::Result<()> {
    crate::no_run(dir)?;
    let config = if PackedDir::is_at(dir) {
        Manifest::read(&dir.join(MANIFEST_FILE))?;
        qat_train::student::read_config(&dir.join(CONFIG_FILE))?
    } else {
        FloatModel::open(dir)?.config
    };
    for test in tests {
        test.check(config.max_position_embeddings).with_context(|| dir.display().to_string())?;
    }
    Ok(())
}

/// Runs all tests on the model in `dir`.
fn bench(
    dir: &Path,
    args: &cli::Bench,
    threads: &[NonZero<usize>],
    tests: &[Test],
    energy: &Energy,
    done: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let isa = Isa::active()?;
    let model = open(dir, args)?;
    for threads in threads {
        for test in tests {
            let setup = Setup { threads: *threads, kv: args.kv, repetitions: args.reps, seed: args.seed };
            let samples = measure(&model, *test, &setup, energy.meter.as_ref())?;
            let row = Row::new(&model, &setup, &samples, isa, &energy.said);
            eprintln!("{}: {test}, {threads} threads: {} tokens/s", dir.display(), row.rate());
            done(row);
        }
    }
    Ok(())
}

fn open(dir: &Path, args: &cli::Bench) -> anyhow::Result<Model> {
    let mut model = Model::open(dir)?;
    if let Some(chosen) = args.activations.chosen() {
        model.set_activations(chosen);
    }
    Ok(model)
}

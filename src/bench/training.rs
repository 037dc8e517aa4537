//! `qat bench --train`: tokens per second, memory and the expected time of a recipe, from a few of its steps.
//!
//! Knows no step; that is `qat_train::trainer::measure`. Invariant: a recipe that can't be trained is refused before the clock starts.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use qat_hub::Part;
use qat_infer::{bench::cpu_name, eval::peak_rss_bytes};
use qat_train::{
    device,
    ranks::Ranks,
    recipe::{self, Plan},
    trainer::{Measured, measure},
};
use serde::Serialize;

use crate::{Ending, cli, evaluate, hub, ranks, table, train};

/// Steps before the clock starts: kernels are compiled, memory is taken.
const WARM_UP: usize = 3;

/// The measurement. Sizes in bytes, times in seconds.
#[derive(Debug, Serialize)]
struct Row {
    qat_version: &'static str,
    recipe: String,
    device: String,
    cpu_info: String,
    /// Processes that train together; what follows is of the first where it is not of all.
    ranks: usize,
    threads: usize,
    parameters: usize,
    tokens_per_step: usize,
    tokens_per_second: f64,
    step_seconds: f64,
    update_seconds: f64,
    samples_seconds: Vec<f64>,
    /// Peak of the process.
    peak_rss_bytes: Option<u64>,
    /// Peak of what tensors took of the GPU's own memory.
    device_bytes: Option<u64>,
    /// The recipe's steps at this rate, without validation.
    recipe_seconds: f64,
    /// Of each step, the warm-up's first.
    losses: Vec<f64>,
}

impl Row {
    fn new(
        name: String,
        plan: &Plan,
        (opened, ranks): (&device::Opened, &Ranks),
        found: Measured,
    ) -> anyhow::Result<Self> {
        let step_seconds = found.step().as_secs_f64();
        Ok(Self {
            qat_version: env!("CARGO_PKG_VERSION"),
            recipe: name,
            device: opened.to_string(),
            cpu_info: cpu_name(),
            ranks: ranks.size(),
            threads: rayon::current_num_threads(),
            parameters: found.parameters,
            tokens_per_step: found.step_tokens,
            tokens_per_second: found.rate(),
            step_seconds,
            update_seconds: found.update().as_secs_f64(),
            samples_seconds: found.steps.iter().map(Duration::as_secs_f64).collect(),
            peak_rss_bytes: peak_rss_bytes(),
            device_bytes: opened.peak_memory()?,
            recipe_seconds: plan.recipe.train.steps as f64 * step_seconds,
            losses: found.losses,
        })
    }

    fn markdown(&self) -> String {
        let header = [
            "recipe",
            "device",
            "parameters",
            "tokens/step",
            "tokens/s",
            "ms/step",
            "of it optimizer",
            "peak memory",
            "on the GPU",
            "the whole recipe",
        ];
        let mut table = table::with_header(&header, &[0, 1]);
        let bytes = |n: Option<u64>| n.map_or("–".to_owned(), table::bytes);
        table.add_row([
            self.recipe.clone(),
            self.device.clone(),
            table::count(self.parameters as u64),
            table::count(self.tokens_per_step as u64),
            table::count(self.tokens_per_second.round() as u64),
            format!("{:.1}", 1e3 * self.step_seconds),
            format!("{:.1}", 1e3 * self.update_seconds),
            bytes(self.peak_rss_bytes),
            bytes(self.device_bytes),
            duration(self.recipe_seconds),
        ]);
        table.to_string()
    }
}

/// A time as people say it, to two digits or more.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Runs the command, alone or as one of several processes.
pub fn run(path: &Path, args: &cli::Bench) -> anyhow::Result<Ending> {
    ranks::together(&args.training.device, |ranks, opened| run_as((ranks, opened), path, args))
}

fn run_as(
    (ranks, opened): (&Ranks, &device::Opened),
    path: &Path,
    args: &cli::Bench,
) -> anyhow::Result<Ending> {
    let wanted = &args.training;
    if args.format == cli::BenchFormat::Csv {
        bail!("--format csv has the columns of llama-bench, which knows no training; want md or json");
    }
    let mut named = train::chosen(recipe::load(path, &wanted.sets)?, wanted.variant.as_slice())?;
    let [named] = named.as_mut_slice() else {
        let names: Vec<&str> = named.iter().filter_map(|n| n.variant.as_deref()).collect();
        bail!("{}: choose one with --variant: {}", path.display(), names.join(", "));
    };
    Plan::new(&named.recipe).with_context(|| path.display().to_string())?;
    let brought = hub::fetch(&mut named.recipe, || Ok(None), Part::Whole)?;
    let mut plan = Plan::new(&named.recipe)?;
    brought.put_into(&mut plan);
    let found = measure(&plan, (&opened.device, ranks), WARM_UP, wanted.steps.get())?;
    if !ranks.is_first() {
        return Ok(Ending::Done);
    }
    let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let name = named.variant.iter().fold(name, |name, variant| format!("{name}/{variant}"));
    let row = Row::new(name, &plan, (opened, ranks), found)?;
    match args.format {
        cli::BenchFormat::Json => println!("{}", serde_json::to_string_pretty(&row)?),
        _ => println!("{}", row.markdown()),
    }
    if let Some(json) = &args.json {
        evaluate::write_json(json, &row)?;
    }
    Ok(Ending::Done)
}

//! `qat train`: recipes become runs, runs become packed models, packed models become a table.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, bail};
use qat_hub::Part;
use qat_infer::{
    Chosen,
    cpu::Cpu,
    cpu::Model,
    eval::{Gate, Options, Report},
    export::Export,
    files::{MANIFEST_FILE, PROVENANCE_FILE, StagedDir},
};
use qat_train::{
    Error,
    checkpoint::Checkpoints,
    data::EvalText,
    device,
    export::{Shipment, check_targets},
    recipe::{self, EvalPlan, Named, Plan},
    trainer::{Job, Outcome, Start, train},
};

use crate::{
    Ending, cli, evaluate, export, hub,
    progress::Progress,
    table::{self, Row},
};

/// A checked plan with its name and place.
struct Run {
    name: String,
    out: PathBuf,
    plan: Plan,
}

/// Runs the command.
pub fn run(args: &cli::Train) -> anyhow::Result<Ending> {
    let (out, runs) = runs(args)?;
    let opened = args.device.parse::<device::Choice>()?.open()?;
    eprintln!("device: {opened}");
    let stop = stop_flag()?;
    let cache = crate::cache_dir();
    let start = match (args.resume, args.restart) {
        (true, _) => Start::Resume,
        (_, true) => Start::Restart,
        _ => Start::Fresh,
    };
    let mut comparison = Comparison::default();
    for run in &runs {
        let mut progress = Progress::new(&run.name);
        let job = Job { plan: &run.plan, out: &run.out, cache: &cache, device: opened.device.clone(), start };
        let outcome = train(&job, &mut |event| progress.show(event), &stop);
        progress.finish();
        match outcome {
            Ok(Outcome::Finished) => {}
            Err(Error::Interrupted) | Ok(Outcome::Stopped { step: 0 }) => {
                eprintln!("stopped before the first step; nothing to save");
                return Ok(Ending::Stopped);
            }
            Ok(Outcome::Stopped { step }) => {
                eprintln!("stopped after step {step}; saved. Continue with the same command and --resume");
                return Ok(Ending::Stopped);
            }
            Err(error) => return Err(error.into()),
        }
        finish(&job, run, &mut comparison)?;
        if stop.load(Ordering::SeqCst) {
            return Ok(Ending::Stopped);
        }
    }
    comparison.show(&out)
}

/// All runs of a recipe, checked before the first one begins.
fn runs(args: &cli::Train) -> anyhow::Result<(PathBuf, Vec<Run>)> {
    let stem = args.config.file_stem().and_then(|s| s.to_str()).unwrap_or("run");
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(stem));
    let mut runs = Vec::new();
    for mut named in chosen(recipe::load(&args.config, &args.sets)?, &args.variants)? {
        // Before anything is fetched for it.
        Plan::new(&named.recipe).with_context(|| args.config.display().to_string())?;
        let (name, out) = match named.variant {
            Some(name) => (name.clone(), out.join(&name)),
            None => (stem.to_owned(), out.clone()),
        };
        let before = || match args.resume {
            true => Ok(Checkpoints::of(&out).newest()?.0.map(|found| found.state.recipe)),
            false => Ok(None),
        };
        let brought = hub::fetch(&mut named.recipe, before, Part::Whole)?;
        let mut plan = Plan::new(&named.recipe)?;
        brought.put_into(&mut plan);
        runs.push(Run { name, out, plan });
    }
    check_endings(&runs)?;
    Ok((out, runs))
}

/// What comes after the training is found wrong before it: where exports go, gates, texts and references.
fn check_endings(runs: &[Run]) -> anyhow::Result<()> {
    let (mut targets, mut references) = (Vec::new(), Vec::new());
    for run in runs {
        check_targets(&run.plan).context("[export]")?;
        if let Some(plan) = &run.plan.export {
            let places = plan.places(&run.out).into_iter().map(|(_, out)| (out, PROVENANCE_FILE));
            for (place, marker) in places.chain([(plan.packed(&run.out), MANIFEST_FILE)]) {
                StagedDir::check(&place, marker).context("[export]")?;
                if targets.contains(&place) {
                    bail!(
                        "export.out = {}: {} would replace the export of another variant",
                        place.display(),
                        run.name
                    );
                }
                targets.push(place);
            }
        }
        if let Some(plan) = &run.plan.eval {
            evaluate::gates(&plan.require, plan.against.is_some()).context("eval.require")?;
            evaluate::text(&plan.data).context("eval.data")?;
            if let Some(reference) = plan.against.as_ref().filter(|dir| !references.contains(dir)) {
                Model::open(reference).context("eval.against")?;
                references.push(reference);
            }
        }
    }
    Ok(())
}

/// The variants that were asked for by name; all of them when none was.
pub fn chosen(all: Vec<Named>, wanted: &[String]) -> anyhow::Result<Vec<Named>> {
    let names: Vec<String> = all.iter().filter_map(|named| named.variant.clone()).collect();
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(name)) {
        bail!(
            "--variant {unknown}: the recipe has no such variant; it has {}",
            match names.as_slice() {
                [] => "none".to_owned(),
                names => names.join(", "),
            }
        );
    }
    let asked = |named: &Named| named.variant.as_ref().is_some_and(|name| wanted.contains(name));
    Ok(all.into_iter().filter(|named| wanted.is_empty() || asked(named)).collect())
}

/// A flag that Ctrl-C and SIGTERM raise; the second Ctrl-C ends the process at once.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step; again to stop at once");
    })?;
    Ok(stop)
}

/// Export and evaluation of a finished run, as its recipe asks.
fn finish(job: &Job, run: &Run, comparison: &mut Comparison) -> anyhow::Result<()> {
    let Some(plan) = &run.plan.export else { return Ok(()) };
    let (shipment, _) = Shipment::of_run(&run.out)?;
    let packed = plan.packed(&run.out);
    export::announce(&packed, &shipment.write(&packed)?);
    let report = run.plan.eval.as_ref().map(|eval| comparison.add(job, run, eval, &packed)).transpose()?;
    for (target, out) in plan.places(&run.out) {
        let job = Export { target, options: &plan.options, requantize: false, report: report.as_ref() };
        export::announce_files(target, &job.run(&packed, Export::stage(&out)?)?);
    }
    Ok(())
}

/// What the runs of a recipe scored, with what each gate said.
#[derive(Default)]
struct Comparison {
    rows: Vec<Row>,
    references: Vec<PathBuf>,
    failed: bool,
    floor: Option<f64>,
}

impl Comparison {
    fn add(&mut self, job: &Job, run: &Run, plan: &EvalPlan, packed: &Path) -> anyhow::Result<Report> {
        let gates: Vec<Gate> = evaluate::gates(&plan.require, plan.against.is_some())?;
        let text = evaluate::text(&plan.data)?;
        if let Some(reference) = &plan.against
            && !self.references.contains(reference)
        {
            let report = score(reference, &text, plan, None)?;
            self.floor = report.entropy_floor_nats;
            self.push(format!("{} (float)", reference.display()), report, Vec::new());
            self.references.push(reference.clone());
        }
        let mut untrained = Vec::new();
        for rounding in &plan.baselines {
            let out = run.out.join(format!("rounded-{rounding}"));
            Shipment::of_start(job, *rounding)?.write(&out)?;
            let report = score(&out, &text, plan, plan.against.as_deref())?;
            self.push(format!("{}: rounded, {rounding}", run.name), report.clone(), Vec::new());
            untrained.push(report);
        }
        let report = score(packed, &text, plan, plan.against.as_deref())?;
        evaluate::write_json(&run.out.join("report.json"), &report)?;
        for result in evaluate::check(&gates, &report)? {
            self.failed |= !result.passed;
        }
        self.push(format!("{}: trained", run.name), report.clone(), untrained);
        Ok(report)
    }

    fn push(&mut self, name: String, report: Report, untrained: Vec<Report>) {
        self.rows.push(Row { name, report, untrained });
    }

    fn show(&self, out: &Path) -> anyhow::Result<Ending> {
        if self.rows.is_empty() {
            return Ok(Ending::Done);
        }
        println!("\n{}", table::comparison(&self.rows));
        if let Some(floor) = self.floor {
            println!("true entropy of the text: {floor:.4} nats/token, perplexity {:.3}", floor.exp());
        }
        let rows: serde_json::Map<_, _> = self
            .rows
            .iter()
            .map(|r| Ok((r.name.clone(), serde_json::to_value(&r.report)?)))
            .collect::<anyhow::Result<_>>()?;
        evaluate::write_json(&out.join("comparison.json"), &rows)?;
        Ok(if self.failed { Ending::GateFailed } else { Ending::Done })
    }
}

fn score(dir: &Path, text: &EvalText, plan: &EvalPlan, against: Option<&Path>) -> anyhow::Result<Report> {
    evaluate::score(
        dir,
        &Chosen::Cpu(Cpu),
        text,
        against,
        Options { ctx: Some(plan.ctx), bos: plan.bos, kv: plan.kv, ..Options::default() },
    )
}

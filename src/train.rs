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
    eval::{Gate, Options, Report, peak_rss_bytes},
    export::Export,
    files::{MANIFEST_FILE, PROVENANCE_FILE, StagedDir},
};
use qat_train::{
    Error,
    checkpoint::Checkpoints,
    data::EvalText,
    device,
    export::{Changes, Shipment, check_targets},
    ranks::Ranks,
    recipe::{self, EvalPlan, Named, Plan},
    trainer::{Job, Outcome, Start, student_dir, train},
};

use crate::{
    Ending, cli, evaluate, export, hub,
    progress::{Look, Progress},
    ranks,
    report::{self, Kind, Leaving, Scores, Texts},
    table::{self, Row},
};

/// What is said when training is over and what follows it is not.
const STOPPED_BEHIND: &str =
    "stopped behind the last step; saved. The same command with --resume goes on with what is missing";

/// A checked plan with its name and place.
struct Run {
    name: String,
    out: PathBuf,
    plan: Plan,
}

/// Runs the command, alone or as one of several processes.
pub fn run(args: &cli::Train) -> anyhow::Result<Ending> {
    ranks::together(&args.device, |ranks, opened| run_as(ranks, opened, args))
}

fn run_as(ranks: &Ranks, opened: &device::Opened, args: &cli::Train) -> anyhow::Result<Ending> {
    // What the first has fetched the others find.
    let (out, runs) = ranks.first_then_others(|| runs(args).map_err(ranks::told))?;
    let together = if ranks.size() > 1 { format!(", {} ranks", ranks.size()) } else { String::new() };
    say(ranks, &format!("device: {opened}{together}"));
    let stop = stop_flag(ranks.is_first())?;
    let cache = crate::cache_dir();
    let start = match (args.resume, args.restart) {
        (true, _) => Start::Resume,
        (_, true) => Start::Restart,
        _ => Start::Fresh,
    };
    let mut comparison = Comparison::default();
    let look = if ranks.is_first() { Look::of(args) } else { Look::Nothing };
    for run in &runs {
        let mut progress = Progress::new(&run.name, look, &run.out, &stop)?;
        let device = opened.device.clone();
        let job = Job { plan: &run.plan, out: &run.out, cache: &cache, device, start, ranks: ranks.clone() };
        let outcome = train(&job, &mut |event| progress.show(event), &stop);
        progress.finish();
        match outcome {
            Ok(Outcome::Finished) => {
                if let Some(peak) = peak_rss_bytes().filter(|_| ranks.is_first()) {
                    eprintln!("memory of the process: at most {}", table::bytes(peak));
                }
            }
            Err(Error::Interrupted) | Ok(Outcome::Stopped { step: 0 }) => {
                say(ranks, "stopped before the first step; nothing to save (tokens made so far are kept)");
                return Ok(Ending::Stopped);
            }
            Ok(Outcome::Stopped { step }) => {
                leave(ranks, Leaving { out: &run.out, changes: None, texts: None, stop: &stop });
                let again = "Continue with the same command and --resume";
                say(ranks, &format!("stopped after step {step}; saved. {again}"));
                return Ok(Ending::Stopped);
            }
            Err(error) => {
                // How a run went that broke off is what one wants to see; one that didn't begin has left its folder as it was.
                if progress.has_begun() {
                    leave(ranks, Leaving { out: &run.out, changes: None, texts: None, stop: &stop });
                }
                return Err(error.into());
            }
        }
        let finished = ranks.on_first(|| match finish(&job, run, &mut comparison, &stop) {
            Err(error) if matches!(error.downcast_ref(), Some(Error::Interrupted)) => Ok(false),
            finished => finished.map(|()| true).map_err(ranks::told),
        })?;
        if ranks.any(finished == Some(false))? {
            say(ranks, STOPPED_BEHIND);
            return Ok(Ending::Stopped);
        }
    }
    if !ranks.is_first() {
        return Ok(Ending::Done);
    }
    if runs.len() > 1 {
        let folders: Vec<&Path> = runs.iter().map(|run| run.out.as_path()).collect();
        report::leave_comparison(&folders, &out);
    }
    comparison.show(&out)
}

/// Says `what`, once for all ranks.
fn say(ranks: &Ranks, what: &str) {
    if ranks.is_first() {
        eprintln!("{what}");
    }
}

/// Leaves the page of a run, once for all ranks.
fn leave(ranks: &Ranks, leaving: Leaving) {
    if ranks.is_first() {
        report::leave(leaving);
    }
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

/// A flag that Ctrl-C and SIGTERM raise, which is said where this process `speaks`; the second Ctrl-C ends the process at once.
pub fn stop_flag(speaks: bool) -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        if speaks {
            eprintln!("\nstopping after this step; again to stop at once");
        }
    })?;
    Ok(stop)
}

/// Export, evaluation and the page of a finished run, as its recipe asks.
fn finish(job: &Job, run: &Run, comparison: &mut Comparison, stop: &AtomicBool) -> anyhow::Result<()> {
    let Some(plan) = &run.plan.export else {
        let changes = told(Shipment::of_run(&run.out).and_then(|(shipment, _)| shipment.changes(&run.out)));
        report::leave(Leaving { out: &run.out, changes, texts: None, stop });
        return Ok(());
    };
    let (shipment, _) = Shipment::of_run(&run.out)?;
    let packed = plan.packed(&run.out);
    export::announce(&packed, &shipment.write_unless(&packed, stop)?);
    let changes = told(shipment.changes(&run.out));
    drop(shipment);
    let eval = run.plan.eval.as_ref();
    let scored = eval.map(|eval| comparison.add((job, stop), run, eval, &packed)).transpose()?;
    let start = student_dir(&run.out);
    let texts = scored.as_ref().zip(run.plan.eval.as_ref()).map(|((_, text), eval)| Texts {
        float: eval.against.as_deref().unwrap_or(&start),
        packed: &packed,
        text: &text.text,
    });
    report::leave(Leaving { out: &run.out, changes, texts, stop });
    go_on(stop)?;
    for (target, out) in plan.places(&run.out) {
        go_on(stop)?;
        let report = scored.as_ref().map(|(report, _)| report);
        let job = Export { target, options: &plan.options, requantize: false, report };
        export::announce_files(target, &job.run(&packed, Export::stage(&out)?)?);
    }
    Ok(())
}

/// Nothing, or [`Error::Interrupted`].
fn go_on(stop: &AtomicBool) -> qat_train::Result<()> {
    if stop.load(Ordering::SeqCst) { Err(Error::Interrupted) } else { Ok(()) }
}

/// What training did to the matrices, for the page of the run; a warning where that can't be told.
fn told(changes: qat_train::Result<Changes>) -> Option<Changes> {
    changes.inspect_err(|e| eprintln!("warning: left out of the report: {e}")).ok()
}

/// What the runs of a recipe scored, with what each gate said.
#[derive(Default)]
struct Comparison {
    rows: Vec<Row>,
    references: Vec<(PathBuf, Report)>,
    failed: bool,
    floor: Option<f64>,
}

impl Comparison {
    /// Scores what the run has written, and keeps the scores in its folder; gives its report, and the text that it is about.
    fn add(
        &mut self,
        (job, stop): (&Job, &AtomicBool),
        run: &Run,
        plan: &EvalPlan,
        packed: &Path,
    ) -> anyhow::Result<(Report, EvalText)> {
        let gates: Vec<Gate> = evaluate::gates(&plan.require, plan.against.is_some())?;
        let text = evaluate::text(&plan.data)?;
        let mut scores = Scores::default();
        if let Some(reference) = &plan.against {
            let name = format!("{} (float)", reference.display());
            let report = match self.references.iter().find(|(path, _)| path == reference) {
                Some((_, report)) => report.clone(),
                None => {
                    let report = score(reference, &text, (plan, stop), None)?;
                    self.floor = report.entropy_floor_nats;
                    self.push(name.clone(), report.clone(), Vec::new());
                    self.references.push((reference.clone(), report.clone()));
                    report
                }
            };
            scores.push(name, Kind::Reference, &report);
        }
        let mut untrained = Vec::new();
        for rounding in &plan.baselines {
            let out = run.out.join(format!("rounded-{rounding}"));
            Shipment::of_start(job, *rounding)?.write_unless(&out, stop)?;
            let report = score(&out, &text, (plan, stop), plan.against.as_deref())?;
            self.push(format!("{}: rounded, {rounding}", run.name), report.clone(), Vec::new());
            scores.push(format!("rounded, {rounding}"), Kind::Rounded, &report);
            untrained.push(report);
        }
        let report = score(packed, &text, (plan, stop), plan.against.as_deref())?;
        evaluate::write_json(&run.out.join("report.json"), &report)?;
        let results = evaluate::check(&gates, &report)?;
        self.failed |= results.iter().any(|result| !result.passed);
        scores.push("trained", Kind::Trained, &report);
        scores.judge(&results);
        scores.write(&run.out)?;
        self.push(format!("{}: trained", run.name), report.clone(), untrained);
        Ok((report, text))
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

/// Scores, window by window. Scoring writes nothing, so that the process can end in it.
fn score(
    dir: &Path,
    text: &EvalText,
    (plan, stop): (&EvalPlan, &AtomicBool),
    against: Option<&Path>,
) -> anyhow::Result<Report> {
    go_on(stop)?;
    let options = Options { ctx: Some(plan.ctx), bos: plan.bos, kv: plan.kv, ..Options::default() };
    evaluate::score_while(dir, &Chosen::Cpu(Cpu), text, against, options, || {
        if stop.load(Ordering::SeqCst) {
            eprintln!("{STOPPED_BEHIND}");
            std::process::exit(130);
        }
    })
}

//! `qat eval`: a model is scored, and gates decide the exit code.

use std::path::Path;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use qat_infer::{
    Choice, Chosen,
    eval::{Gate, GateResult, Options, Report, evaluate, tasks::TaskGate},
    files::write_file_atomic,
    with_runtime,
};
use qat_train::data::{Corpus, EvalText, Source};

use crate::tasks::{self, Asked};
use crate::{Ending, cli, deferral, table};

/// Runs the command.
pub fn run(args: &cli::Eval) -> anyhow::Result<Ending> {
    let chosen = args.device.parse::<Choice>()?.open()?;
    crate::no_run(&args.dir)?;
    if let Some(file) = &args.deferral.deferral {
        return deferral::run(args, file, &chosen);
    }
    let tasks = Asked::new(args)?;
    let of_text: Vec<String> =
        args.require.iter().filter(|text| !TaskGate::is_meant(text)).cloned().collect();
    let gates = gates(&of_text, args.against.is_some())?;
    if let (Some(gate), true) = (gates.first(), args.data.is_empty()) {
        bail!("--require {gate}: is about a text; name one with --data");
    }
    let report = if args.data.is_empty() { None } else { Some(score_text(args, &chosen)?) };
    let runs = tasks.as_ref().map(|tasks| tasks.run(args, &chosen)).transpose()?;
    if let Some(path) = &args.json {
        let mut all = runs.as_ref().map(|runs| tasks::json(runs, &chosen)).transpose()?.unwrap_or_default();
        if let Some(report) = &report {
            let tasks = std::mem::take(&mut all);
            all = serde_json::to_value(report)?.as_object().cloned().unwrap_or_default();
            all.extend(tasks);
        }
        write_json(path, &all)?;
    }
    let mut passed = true;
    if let Some(report) = &report {
        passed &= check(&gates, report)?.iter().all(|result| result.passed);
    }
    if let (Some(tasks), Some(runs)) = (&tasks, &runs) {
        passed &= tasks.check(runs)?;
    }
    Ok(if passed { Ending::Done } else { Ending::GateFailed })
}

/// Scores the model on the text of the command line, and prints the report.
fn score_text(args: &cli::Eval, chosen: &Chosen) -> anyhow::Result<Report> {
    let text = text(&args.data)?;
    let activations = args.activations.chosen();
    let options = Options { ctx: args.ctx, bos: args.bos, kv: args.kv, activations, ..Options::default() };
    let report = score(&args.dir, chosen, &text, args.against.as_deref(), options)?;
    println!("{}", table::report(&report));
    Ok(report)
}

/// Reads what is to be scored.
pub fn text(data: &[String]) -> anyhow::Result<EvalText> {
    let corpus = Corpus::new(Source::resolve(data, Path::new(""))?, None, None)?;
    Ok(corpus.read_text()?)
}

/// Parses gates before anything is measured.
pub fn gates(require: &[String], has_reference: bool) -> anyhow::Result<Vec<Gate>> {
    let mut gates = Vec::new();
    for expression in require {
        let gate: Gate = expression.parse().with_context(|| format!("--require {expression:?}"))?;
        if gate.needs_reference() && !has_reference {
            bail!("--require {expression:?}: compares with a reference; name one with --against DIR");
        }
        gates.push(gate);
    }
    Ok(gates)
}

/// Holds the gates against the report and says which hold.
pub fn check(gates: &[Gate], report: &Report) -> anyhow::Result<Vec<GateResult>> {
    let results = gates.iter().map(|gate| gate.check(report)).collect::<Result<Vec<_>, _>>()?;
    for result in &results {
        println!("{} {}: {:.6}", if result.passed { "pass" } else { "FAIL" }, result.gate, result.value);
    }
    Ok(results)
}

/// Scores the model in `dir`, with a bar on a terminal.
pub fn score(
    dir: &Path,
    chosen: &Chosen,
    text: &EvalText,
    against: Option<&Path>,
    options: Options,
) -> anyhow::Result<Report> {
    score_while(dir, chosen, text, against, options, || ())
}

/// [`score`], with `each` called for every window.
pub fn score_while(
    dir: &Path,
    chosen: &Chosen,
    text: &EvalText,
    against: Option<&Path>,
    mut options: Options,
    each: impl Fn(),
) -> anyhow::Result<Report> {
    options.source_nats = text.nats;
    let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} windows")?;
    let bar = ProgressBar::new(0).with_style(style).with_prefix(format!("scoring {}", dir.display()));
    let mut progress = |done, total| {
        each();
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let report = with_runtime!(chosen, runtime => {
        evaluate(runtime, dir, &text.text, against, &options, &mut progress)
    });
    bar.finish_and_clear();
    Ok(report?)
}

/// Writes a report as JSON, whole or not at all.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut json = serde_json::to_string_pretty(value)?;
    json.push('\n');
    Ok(write_file_atomic(path, json.as_bytes())?)
}

//! `qat eval --tasks`: multiple-choice and last-word tasks, as a table and as JSON.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};
use qat_infer::eval::tasks::{Run, Task, TaskGate, TaskOptions, evaluate_tasks};
use qat_infer::{Chosen, Runtime as _, files::write_file_atomic, with_runtime};
use serde_json::{Map, Value, json};

use crate::{cli, table};

/// How the numbers come about, for those who find them in a file.
const PROTOCOL: &str = "lm-evaluation-harness 0.4, no examples in front; log-likelihoods of choices after their contexts; acc: the \
    likeliest choice, acc_norm: the likeliest per character; standard errors of a sample";

/// What of the command line is about tasks, checked before anything is measured.
pub struct Asked {
    options: TaskOptions,
    gates: Vec<TaskGate>,
}

impl Asked {
    /// Checks the command line; none where no tasks are asked for.
    pub fn new(args: &cli::Eval) -> anyhow::Result<Option<Self>> {
        let meant = args.require.iter().filter(|text| TaskGate::is_meant(text));
        let gates: Vec<TaskGate> = meant
            .map(|text| text.parse().with_context(|| format!("--require {text:?}")))
            .collect::<anyhow::Result<_>>()?;
        let of = &args.tasks;
        let mut tasks = Vec::new();
        for name in &of.tasks {
            let task: Task = name.parse().context("--tasks")?;
            if tasks.contains(&task) {
                bail!("--tasks: {task} is named twice");
            }
            tasks.push(task);
        }
        for gate in &gates {
            if !tasks.contains(&gate.task()) {
                bail!("--require {gate}: the task {} is not among --tasks", gate.task());
            }
            if gate.needs_reference() && args.against.is_none() {
                bail!("--require {gate}: compares with a reference; name one with --against DIR");
            }
        }
        let Some(data) = of.task_data.clone().filter(|_| !tasks.is_empty()) else { return Ok(None) };
        let options = TaskOptions {
            tasks,
            data,
            limit: of.limit.map(std::num::NonZero::get),
            ctx: args.ctx,
            kv: args.kv,
            activations: args.activations.chosen(),
        };
        Ok(Some(Self { options, gates }))
    }

    /// Scores the model, and prints the table.
    pub fn run(&self, args: &cli::Eval, chosen: &Chosen) -> anyhow::Result<Vec<Run>> {
        let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} items, {eta} left")?;
        let bar = ProgressBar::new(0).with_style(style).with_prefix(format!("asking {}", args.dir.display()));
        let mut progress = |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        };
        let against = args.against.as_deref();
        let runs = with_runtime!(chosen, runtime => {
            evaluate_tasks(runtime, &args.dir, against, &self.options, &mut progress)
        });
        bar.finish_and_clear();
        let runs = runs?;
        println!("{}", results(&runs));
        for run in runs.iter().filter(|run| run.score.truncated > 0) {
            println!(
                "{}: {} contexts lost their beginning; the model's context is too short for them",
                run.task, run.score.truncated
            );
        }
        if let Some(path) = &args.tasks.items {
            write_items(path, &runs)?;
        }
        Ok(runs)
    }

    /// Holds the gates against the scores and says which hold.
    pub fn check(&self, runs: &[Run]) -> anyhow::Result<bool> {
        let mut all = true;
        for gate in &self.gates {
            let (value, passed) = gate.check(runs)?;
            println!("{} {gate}: {value:.6}", if passed { "pass" } else { "FAIL" });
            all &= passed;
        }
        Ok(all)
    }
}

/// The scores under the names of their tasks.
pub fn json(runs: &[Run], chosen: &Chosen) -> anyhow::Result<Map<String, Value>> {
    let [device, isa] = with_runtime!(chosen, runtime => runtime.describe())?;
    let scores = runs.iter().map(|run| Ok((run.task.to_string(), serde_json::to_value(run.score)?)));
    let scores: Map<String, Value> = scores.collect::<serde_json::Result<_>>()?;
    let entries = [
        ("device", json!(device)),
        ("isa", json!(isa)),
        ("tasks", scores.into()),
        ("tasks_protocol", json!(PROTOCOL)),
    ];
    Ok(entries.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())
}

/// An item a line, with what each model found of its choices.
fn write_items(path: &Path, runs: &[Run]) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for run in runs {
        for (index, item) in run.items.iter().enumerate() {
            let mut line = json!({"task": run.task.name(), "index": index});
            for (key, value) in serde_json::to_value(item)?.as_object().into_iter().flatten() {
                line[key] = value.clone();
            }
            if let Some(reference) = &run.reference {
                line["reference"] = serde_json::to_value(&reference[index])?;
            }
            writeln!(lines, "{line}")?;
        }
    }
    Ok(write_file_atomic(path, &lines)?)
}

/// A row for each task; beside a reference, what the model lost or won.
fn results(runs: &[Run]) -> Table {
    let compared = runs.iter().any(|run| run.score.versus.is_some());
    let mut header = vec!["task", "items", "acc", "acc_norm", "perplexity"];
    if compared {
        header.extend(["reference", "Δ acc", "Δ acc_norm", "Δ ln ppl", "same answer"]);
    }
    let mut table = table::with_header(&header, &[0]);
    let with_se = |value: Option<f64>, se: Option<f64>| match value.zip(se) {
        Some((value, se)) => format!("{value:.4} ± {se:.4}"),
        None => "–".to_owned(),
    };
    let signed = |value: Option<f64>, se: Option<f64>| match value.zip(se) {
        Some((value, se)) => format!("{value:+.4} ± {se:.4}"),
        None => "–".to_owned(),
    };
    for Run { task, score: s, .. } in runs {
        let mut row = vec![
            task.to_string(),
            table::count(s.items as u64),
            with_se(Some(s.acc), Some(s.acc_se)),
            with_se(s.acc_norm, s.acc_norm_se),
            with_se(s.perplexity, s.perplexity_se),
        ];
        if let Some(v) = s.versus {
            row.extend([
                format!("{:.4}", v.reference_acc_norm.unwrap_or(v.reference_acc)),
                signed(Some(v.delta_acc), Some(v.delta_acc_se)),
                signed(v.delta_acc_norm, v.delta_acc_norm_se),
                signed(v.delta_ln_ppl, v.delta_ln_ppl_se),
                format!("{:.1} %", 100.0 * v.same_answer),
            ]);
        }
        table.add_row(row);
    }
    table
}

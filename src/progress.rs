//! Progress of a run: a bar on a terminal, or the whole of it; plain lines elsewhere.

use std::{
    io::{IsTerminal as _, stderr, stdout},
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use qat_train::trainer::{Event, StepLog};

use crate::{cli, dashboard::Dashboard};

/// What a run is shown as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Lines, as in a log.
    Lines,
    /// A bar with lines above it.
    Bar,
    /// The whole terminal.
    Dashboard,
    /// Nothing: another rank shows it.
    Nothing,
}

impl Look {
    /// What was asked for, as far as it is possible here.
    pub fn of(args: &cli::Train) -> Self {
        if args.dashboard && stdout().is_terminal() {
            return Self::Dashboard;
        }
        if args.dashboard {
            eprintln!("--dashboard: standard output is no terminal; the run is shown in lines");
        }
        if args.plain || args.dashboard { Self::Lines } else { Self::of_stderr() }
    }

    /// A bar where it can be drawn.
    pub fn of_stderr() -> Self {
        if stderr().is_terminal() { Self::Bar } else { Self::Lines }
    }
}

/// What is said while another process makes what this one wants.
pub const WAITING: &str = "another qat is tokenizing this text; waiting for it";

/// Between two lines about a long job, where there is no bar.
const BETWEEN_LINES: Duration = Duration::from_secs(30);

/// A long job before the first step.
#[derive(Debug, Clone, Copy)]
struct Task {
    name: &'static str,
    /// When it began, and how much was done then.
    began: (Instant, u64),
    /// When it was last spoken of.
    said: Instant,
}

/// Shows what a run reports.
pub struct Progress {
    name: String,
    look: Look,
    dashboard: Option<Dashboard>,
    has_begun: bool,
    bar: Option<ProgressBar>,
    task: Option<Task>,
    steps: usize,
    tokens_per_step: usize,
}

impl Progress {
    /// For the run called `name` in the folder `out`, which ends when `stop` is raised.
    ///
    /// # Errors
    /// The terminal can't be drawn on.
    pub fn new(name: &str, look: Look, out: &Path, stop: &Arc<AtomicBool>) -> anyhow::Result<Self> {
        let dashboard = match look {
            Look::Dashboard => Some(Dashboard::open(name, out, stop.clone())?),
            Look::Lines | Look::Bar | Look::Nothing => None,
        };
        Ok(Self {
            name: name.to_owned(),
            look,
            dashboard,
            has_begun: false,
            bar: None,
            task: None,
            steps: 0,
            tokens_per_step: 1,
        })
    }

    /// Shows one event.
    pub fn show(&mut self, event: Event) {
        self.has_begun |= matches!(event, Event::Begin { .. });
        if let Some(dashboard) = &self.dashboard {
            dashboard.show(event);
            return;
        }
        match event {
            Event::Note(text) => self.line(&text),
            Event::Reading { done, total } => self.bytes("reading the text", done, total),
            Event::Waiting => self.waiting(),
            Event::Tokenizing { done, total } => self.bytes("tokenizing", done, total),
            Event::Teaching { done, total } => self.teaching(done, total),
            Event::Begin { from, steps, parameters, tokens, tokens_per_step } => {
                self.finish();
                (self.steps, self.tokens_per_step) = (steps, tokens_per_step);
                self.line(&format!(
                    "{} parameters, {} training tokens, {steps} steps of {} tokens{}",
                    HumanCount(parameters as u64),
                    HumanCount(tokens),
                    HumanCount(tokens_per_step as u64),
                    if from > 0 { format!(", continuing after step {from}") } else { String::new() }
                ));
                let style = "{prefix} {bar:24} {pos}/{len} {msg}";
                self.start_bar(steps as u64, style);
                self.bar.iter().for_each(|bar| bar.set_position(from as u64));
            }
            Event::Step(log) => self.step(&log),
            Event::Valid(log) => {
                let kl = log.valid_kl.map_or(String::new(), |kl| format!(", KL to the teacher {kl:.4}"));
                self.line(&format!(
                    "step {}: held out: {:.4} nats/token{kl}",
                    log.step, log.valid_cross_entropy
                ));
            }
            Event::Saved { step, path } => {
                if self.bar.is_none() {
                    self.line(&format!("step {step}: saved {}", path.display()));
                }
            }
        }
    }

    /// Whether training has begun.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Removes the bar, or gives the terminal back with what was said on it.
    pub fn finish(&mut self) {
        for line in self.dashboard.take().map(Dashboard::close).unwrap_or_default() {
            self.line(&line);
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn step(&mut self, log: &StepLog) {
        let terms: Vec<String> = log.terms.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let left = (self.steps - log.step) as f64 * self.tokens_per_step as f64 / log.tps.max(1.0);
        let eta = HumanDuration(Duration::from_secs_f64(left));
        let text =
            format!("loss {:.4} ({}) {:.0} tokens/s, {eta:#} left", log.loss, terms.join(", "), log.tps);
        match &self.bar {
            Some(bar) => {
                bar.set_position(log.step as u64);
                bar.set_message(text);
            }
            None => self.line(&format!("step {}/{}: {text}", log.step, self.steps)),
        }
    }

    /// Another process makes what this one wants.
    fn waiting(&mut self) {
        if self.begin(WAITING, 0) {
            self.line(WAITING);
        }
    }

    /// Whether the job `name` begins now, with `done` of it done.
    fn begin(&mut self, name: &'static str, done: u64) -> bool {
        if self.task.is_some_and(|task| task.name == name) {
            return false;
        }
        self.finish();
        let now = Instant::now();
        self.task = Some(Task { name, began: (now, done), said: now });
        true
    }

    /// A job that is counted in bytes.
    fn bytes(&mut self, name: &'static str, done: u64, total: u64) {
        if self.begin(name, done) {
            self.start_bar(
                total,
                "{prefix} {msg} {bar:24} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
            );
            if let Some(bar) = &self.bar {
                bar.set_message(name);
                bar.set_position(done);
                // What was done before is no measure of what is left.
                bar.reset_eta();
            }
        }
        match (&self.bar, &mut self.task) {
            (Some(bar), _) => bar.set_position(done),
            (None, Some(task)) if task.said.elapsed() >= BETWEEN_LINES => {
                task.said = Instant::now();
                let (since, before) = task.began;
                let speed = (done - before) as f64 / since.elapsed().as_secs_f64();
                let left = Duration::from_secs_f64((total.saturating_sub(done)) as f64 / speed.max(1.0));
                self.line(&format!(
                    "{name}: {} of {}, {}/s, {:#} left",
                    HumanBytes(done),
                    HumanBytes(total),
                    HumanBytes(speed as u64),
                    HumanDuration(left)
                ));
            }
            _ => {}
        }
    }

    fn teaching(&mut self, done: u64, total: u64) {
        // The bar before it was that of the tokens.
        if done == 0 {
            self.finish();
            self.start_bar(total, "{prefix} asking the teacher {bar:24} {pos}/{len} windows, {eta} left");
        }
        self.bar.iter().for_each(|bar| bar.set_position(done));
    }

    fn start_bar(&mut self, len: u64, style: &str) {
        if self.look != Look::Bar {
            return;
        }
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar = Some(ProgressBar::new(len).with_style(style).with_prefix(self.name.clone()));
    }

    fn line(&self, text: &str) {
        if self.look == Look::Nothing {
            return;
        }
        let text = format!("{}: {text}", self.name);
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}

//! Progress of a run: a bar on a terminal, or the whole of it; plain lines elsewhere.

use std::{
    io::{IsTerminal as _, stderr, stdout},
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
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
        if args.plain || args.dashboard || !stderr().is_terminal() { Self::Lines } else { Self::Bar }
    }
}

/// Shows what a run reports.
pub struct Progress {
    name: String,
    look: Look,
    dashboard: Option<Dashboard>,
    has_begun: bool,
    bar: Option<ProgressBar>,
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
            Event::Tokenizing { done, total } => self.tokenizing(done, total),
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

    fn tokenizing(&mut self, done: u64, total: u64) {
        if self.bar.is_none() {
            self.start_bar(total, "{prefix} tokenizing {bar:24} {bytes}/{total_bytes}");
        }
        self.bar.iter().for_each(|bar| bar.set_position(done));
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

//! What a run wrote into `log.jsonl`, as curves over its steps.
//!
//! Knows no picture. Lines that can't be read (the last one of a run that was killed is torn) are counted and passed over.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader, ErrorKind},
    path::Path,
};

use anyhow::Context as _;
use qat_train::trainer::{StepLog, ValidLog};
use serde::Deserialize;

use super::thin::Points;

/// Longest line that is read; those of a run are a few hundred bytes.
const LONGEST: usize = 1 << 16;

/// Curves of a run, each by its steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curves {
    /// Weighted loss, nats per token.
    pub loss: Points,
    /// Its terms.
    pub terms: BTreeMap<String, Points>,
    /// Cross entropy of held-out text.
    pub valid_cross_entropy: Points,
    /// KL to the teacher on held-out text.
    pub valid_kl: Points,
    /// Learning rate of the matrices.
    pub lr: Points,
    /// Share of the rounding.
    pub lambda: Points,
    /// Gradient norm before clipping.
    pub grad_norm: Points,
    /// Tokens per second.
    pub tps: Points,
    /// Share of codes that changed since the line before.
    pub changed: Points,
    /// Share of codes that came back.
    pub returned: Points,
    /// Share of the weights that are held at their code.
    pub frozen: Points,
    /// Steps done.
    pub step: usize,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Lines that couldn't be read.
    pub unreadable: usize,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Step(StepLog),
    Valid(ValidLog),
}

impl Curves {
    /// Those of the run in `run`; empty where it has no log yet.
    ///
    /// # Errors
    /// The log can't be read.
    pub fn read(run: &Path) -> anyhow::Result<Self> {
        let path = run.join("log.jsonl");
        let mut curves = Self::default();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(curves),
            Err(e) => return Err(e).context(path.display().to_string()),
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line.with_context(|| path.display().to_string())?;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let read = (line.len() <= LONGEST).then(|| serde_json::from_slice(&line).ok()).flatten();
            match read {
                Some(Line::Step(log)) => curves.add_step(&log),
                Some(Line::Valid(log)) => curves.add_valid(&log),
                None => curves.unreadable += 1,
            }
        }
        Ok(curves)
    }

    /// Adds a line of the log.
    pub fn add_step(&mut self, log: &StepLog) {
        let at = |value: f64| [log.step as f64, value];
        self.loss.push(at(log.loss));
        for (name, &value) in &log.terms {
            self.terms.entry(name.clone()).or_default().push(at(value));
        }
        self.lr.push(at(log.lr));
        self.lambda.push(at(f64::from(log.lambda)));
        self.grad_norm.push(at(log.grad_norm));
        self.tps.push(at(log.tps));
        if let Some(flips) = &log.flips {
            self.changed.push(at(flips.changed));
            self.returned.push(at(flips.returned));
        }
        self.frozen.extend(log.frozen.map(at));
        self.seconds += log.tokens.saturating_sub(self.tokens) as f64 / log.tps.max(1e-9);
        (self.step, self.tokens) = (log.step, log.tokens);
    }

    /// Adds a line of scores on held-out text.
    pub fn add_valid(&mut self, log: &ValidLog) {
        let at = |value: f64| [log.step as f64, value];
        self.valid_cross_entropy.push(at(log.valid_cross_entropy));
        self.valid_kl.extend(log.valid_kl.map(at));
    }

    /// Whether the run has left anything.
    pub fn is_empty(&self) -> bool {
        self.loss.is_empty() && self.valid_cross_entropy.is_empty()
    }

    /// Training and held-out curve of each quantity, by the name that people know it by; the weighted sum first, unless it is the one term.
    pub fn losses(&self) -> Vec<Quantity<'_>> {
        let held_out = |name: &str| match name {
            "cross_entropy" => Some(&self.valid_cross_entropy),
            "forward_kl" => Some(&self.valid_kl),
            _ => None,
        };
        let same = |points: &Points| {
            points.len() == self.loss.len() && points.iter().zip(&self.loss).all(|(a, b)| a == b)
        };
        let mut losses = Vec::new();
        if !self.loss.is_empty() && !(self.terms.len() == 1 && self.terms.values().all(same)) {
            losses.push(Quantity { name: "loss", training: Some(&self.loss), held_out: None });
        }
        for (name, points) in &self.terms {
            let held_out = held_out(name).filter(|points| !points.is_empty());
            losses.push(Quantity { name, training: Some(points), held_out });
        }
        for name in ["forward_kl", "cross_entropy"] {
            let untrained =
                held_out(name).filter(|points| !points.is_empty() && !self.terms.contains_key(name));
            losses.extend(untrained.map(|held_out| Quantity {
                name,
                training: None,
                held_out: Some(held_out),
            }));
        }
        losses
    }
}

/// A quantity that training lowers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantity<'a> {
    /// Its name in recipes and logs.
    pub name: &'a str,
    /// On the batches of the moment.
    pub training: Option<&'a Points>,
    /// On held-out windows.
    pub held_out: Option<&'a Points>,
}

impl Quantity<'_> {
    /// What people call it.
    pub fn title(&self) -> String {
        match self.name {
            "loss" => "Loss".to_owned(),
            "forward_kl" => "KL divergence from the teacher".to_owned(),
            "reverse_kl" => "Reverse KL divergence".to_owned(),
            "jsd" => "Jensen–Shannon divergence".to_owned(),
            "cross_entropy" => "Cross entropy of the text".to_owned(),
            other => format!("Loss term {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_becomes_curves_and_a_torn_line_is_counted() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let step = |n: usize| {
            format!(
                r#"{{"step":{n},"loss":0.5,"terms":{{"forward_kl":0.5}},"lr":0.1,"lambda":1.0,"grad_norm":1.0,"tokens":{},"tps":50.0}}"#,
                n * 100
            )
        };
        let valid = r#"{"step":20,"valid_cross_entropy":2.5,"valid_kl":0.25}"#;
        let log = format!("{}\n{}\n{valid}\n\n{{\"step\":30,\"lo", step(10), step(20));
        std::fs::write(dir.path().join("log.jsonl"), log).expect("written");
        let curves = Curves::read(dir.path()).expect("read");
        assert_eq!((curves.step, curves.tokens, curves.unreadable), (20, 2000, 1));
        assert!((curves.seconds - 40.0).abs() < 1e-9, "2000 tokens at 50 a second took {} s", curves.seconds);
        let names: Vec<_> =
            curves.losses().iter().map(|q| (q.name, q.training.is_some(), q.held_out.is_some())).collect();
        assert_eq!(names, [("forward_kl", true, true), ("cross_entropy", false, true)]);
        assert_eq!(curves.valid_kl, [[20.0, 0.25]]);
        assert!(Curves::read(&dir.path().join("none")).expect("no log is no error").is_empty());
    }
}

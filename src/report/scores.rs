//! What a run was scored with and against, kept in its folder as `scores.json`.
//!
//! Draws nothing. A run without the file (no `[eval]`, or one of before it was written) has what its `report.json` says.

use std::path::Path;

use anyhow::Context as _;
use qat_infer::{
    eval::{GateResult, Report},
    files::read_json,
};
use serde::{Deserialize, Serialize};

/// Name of the file.
const FILE: &str = "scores.json";

/// What a model of a comparison is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The float model that all others are measured against.
    Reference,
    /// The start of the run, rounded without training.
    Rounded,
    /// What the run made.
    Trained,
}

/// A model with what it scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// What it is called beside the others.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What it scored, without its windows.
    pub report: Report,
}

/// A gate with what the report said to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateLine {
    /// The condition.
    pub gate: String,
    /// The number it is about.
    pub value: f64,
    /// Whether the condition holds.
    pub passed: bool,
}

/// Everything that a run was scored with.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Scores {
    /// Models, the reference first, the trained one last.
    pub models: Vec<Scored>,
    /// Gates of the recipe.
    #[serde(default)]
    pub gates: Vec<GateLine>,
}

impl Scores {
    /// Adds a model.
    pub fn push(&mut self, name: impl Into<String>, kind: Kind, report: &Report) {
        let report = Report { per_window: Vec::new(), ..report.clone() };
        self.models.push(Scored { name: name.into(), kind, report });
    }

    /// Adds gates.
    pub fn judge(&mut self, results: &[GateResult]) {
        let line = |r: &GateResult| GateLine { gate: r.gate.to_string(), value: r.value, passed: r.passed };
        self.gates.extend(results.iter().map(line));
    }

    /// Keeps them in the folder of the run.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&self, run: &Path) -> anyhow::Result<()> {
        crate::evaluate::write_json(&run.join(FILE), self)
    }

    /// Those of the run in `run`; none where it was not scored.
    ///
    /// # Errors
    /// A file that is there can't be read.
    pub fn read(run: &Path) -> anyhow::Result<Self> {
        let path = run.join(FILE);
        if path.exists() {
            return read_json(&path).with_context(|| format!("{}: not the scores of a run", path.display()));
        }
        let mut scores = Self::default();
        let path = run.join("report.json");
        if path.exists() {
            let report = read_json(&path).with_context(|| format!("{}: not a report", path.display()))?;
            scores.push("trained", Kind::Trained, &report);
        }
        Ok(scores)
    }

    /// What the run made.
    pub fn trained(&self) -> Option<&Report> {
        self.models.iter().find(|model| model.kind == Kind::Trained).map(|model| &model.report)
    }

    /// What it is measured against.
    pub fn reference(&self) -> Option<&Report> {
        self.models.iter().find(|model| model.kind == Kind::Reference).map(|model| &model.report)
    }

    /// The start, rounded without training, in each way that was asked for.
    pub fn rounded(&self) -> impl Iterator<Item = &Report> {
        self.models.iter().filter(|model| model.kind == Kind::Rounded).map(|model| &model.report)
    }
}

//! Everything that the folder of a run knows.
//!
//! Draws nothing. Invariant: what is missing or can't be read is said in [`Run::troubles`] and left out; a folder that is no run is refused.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use qat_train::{
    checkpoint::Checkpoints,
    export::{Changes, Shipment, is_run},
    recipe::Recipe,
};

use super::{
    curves::Curves,
    samples::Samples,
    scores::{Kind, Scored, Scores},
};
use crate::table::Row;

/// A run.
#[derive(Debug, Default)]
pub struct Run {
    /// What it is called.
    pub name: String,
    /// Its log.
    pub curves: Curves,
    /// What it scored.
    pub scores: Scores,
    /// What it was asked to do, as its newest checkpoint says.
    pub recipe: Option<Recipe>,
    /// Steps that the newest checkpoint holds.
    pub saved: usize,
    /// Texts of the float model and the packed one.
    pub samples: Option<Samples>,
    /// What training did to its matrices.
    pub changes: Option<Changes>,
    /// What could not be read.
    pub troubles: Vec<String>,
}

impl Run {
    /// The run in `dir`, without what it did to its matrices.
    ///
    /// # Errors
    /// The folder is no run.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        if !holds_run(dir) {
            bail!("{}: no run of qat train is here", dir.display());
        }
        let mut run = Self { name: name(dir), ..Self::default() };
        run.curves = Curves::read(dir)?;
        match Checkpoints::of(dir).told() {
            Ok(Some(state)) => (run.saved, run.recipe) = (state.step, Some(state.recipe)),
            Ok(None) => {}
            Err(e) => run.troubles.push(e.to_string()),
        }
        run.scores = Scores::read(dir).unwrap_or_else(|e| {
            run.troubles.push(format!("{e:#}"));
            Scores::default()
        });
        run.samples = Samples::read(dir);
        Ok(run)
    }

    /// Adds what training did to its matrices, from its newest checkpoint.
    pub fn look_at_matrices(&mut self, dir: &Path) {
        if self.saved == 0 {
            return;
        }
        match Shipment::of_run(dir).and_then(|(shipment, _)| shipment.changes(dir)) {
            Ok(changes) => self.changes = Some(changes),
            Err(e) => self.troubles.push(e.to_string()),
        }
    }

    /// Steps that it was to take.
    pub fn steps(&self) -> Option<usize> {
        self.recipe.as_ref().map(|recipe| recipe.train.steps)
    }

    /// What it scored as rows of a comparison, each name but the reference's behind `prefix`.
    pub fn rows(&self, prefix: &str) -> Vec<(Kind, Row)> {
        let untrained: Vec<_> = self.scores.rounded().cloned().collect();
        let row = |model: &Scored| {
            let prefix = if model.kind == Kind::Reference { "" } else { prefix };
            let untrained = if model.kind == Kind::Trained { untrained.clone() } else { Vec::new() };
            let row =
                Row { name: format!("{prefix}{}", model.name), report: model.report.clone(), untrained };
            (model.kind, row)
        };
        self.scores.models.iter().map(row).collect()
    }
}

/// Whether `dir` is the folder of a run.
fn holds_run(dir: &Path) -> bool {
    is_run(dir) || dir.join("log.jsonl").is_file()
}

/// The last part of a path, whatever way it is written.
fn name(dir: &Path) -> String {
    let whole = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    whole.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The folders of runs that `paths` name: each a run, or a folder with the runs of variants in it.
///
/// # Errors
/// A path that is neither.
pub fn folders(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if holds_run(path) {
            found.push(path.clone());
            continue;
        }
        let listed = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
        let mut inside: Vec<PathBuf> =
            listed.filter_map(|entry| Some(entry.ok()?.path())).filter(|inside| holds_run(inside)).collect();
        inside.sort();
        if inside.is_empty() {
            bail!(
                "{}: no run of qat train is here: want a folder that qat train has written (its --out), or one with such \
                 folders in it",
                path.display()
            );
        }
        found.extend(inside);
    }
    Ok(found)
}

//! Checkpoints: all or nothing, and enough in them to continue to the same bits.
//!
//! A checkpoint is a folder `step-00000100` with `model.safetensors` (latent variables, or codes and scales), `optimizer.safetensors` (both
//! moments) and `state.json` (step, recipe, data cursor, checksums). Batches and schedules are pure functions of seed
//! and step, so no generator state is lost. A folder appears under its name only when it is whole and on disk; one that is
//! damaged afterwards is passed over for the one before it.

mod seal;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use qat_infer::files::StagedDir;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Result,
    data::Cursor,
    optim::Optimizer,
    recipe::Recipe,
    student::{Student, Variable},
};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Version of the layout that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// What a checkpoint knows beside its tensors.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of the layout.
    pub qat: u32,
    /// Steps done.
    pub step: usize,
    /// The recipe, as it ran.
    pub recipe: Recipe,
    /// The next micro-batch, and of which tokens: another text or tokenizer would continue with other batches.
    pub cursor: Cursor,
    /// Loss at the start, which divergence is measured from; none before the first step.
    pub start_loss: Option<f64>,
    /// SHA-256 of the tensor files.
    pub sha256: BTreeMap<String, String>,
}

/// A checkpoint that was found whole.
#[derive(Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// What it knows.
    pub state: State,
}

/// The checkpoints of one run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    /// Those of the run in `out`.
    pub fn of(out: &Path) -> Self {
        Self { dir: out.join("checkpoints") }
    }

    /// Writes a checkpoint with the optimizer's `moments`, then removes all but the `keep` newest; returns its folder.
    ///
    /// # Errors
    /// The disk is full or can't be written; checkpoints written before are untouched then.
    pub fn save(
        &self,
        mut state: State,
        student: &Student,
        moments: BTreeMap<String, Tensor>,
        keep: usize,
    ) -> Result<PathBuf> {
        fs::create_dir_all(&self.dir).map_err(|e| Error::io("cannot create", &self.dir, e))?;
        let target = self.dir.join(folder(state.step));
        let staged = StagedDir::create(&target, STATE)?;
        let model: HashMap<String, Tensor> =
            student.kept().iter().map(|v| (v.name.clone(), v.var.as_tensor().clone())).collect();
        let moments: HashMap<String, Tensor> = moments.into_iter().collect();
        for (file, tensors) in [(MODEL, &model), (OPTIMIZER, &moments)] {
            let path = staged.path().join(file);
            candle_core::safetensors::save(tensors, &path).map_err(|e| {
                Error::file(&path, format!("cannot be written: {e}; earlier checkpoints are untouched"))
            })?;
            state.sha256.insert(file.to_owned(), digest(&path)?);
        }
        let path = staged.path().join(STATE);
        let json = serde_json::to_string_pretty(&state).map_err(|e| Error::file(&path, e.to_string()))?;
        fs::write(&path, seal::sealed(&json)).map_err(|e| Error::io("cannot write", &path, e))?;
        staged.commit()?;
        self.keep_newest(keep)?;
        Ok(target)
    }

    /// Removes all but the `keep` newest, and what killed writers have left.
    ///
    /// # Errors
    /// A folder can't be removed.
    pub fn keep_newest(&self, keep: usize) -> Result<()> {
        for old in self.list()?.iter().rev().skip(keep) {
            remove(old)?;
        }
        for partial in self.entries()? {
            let name = partial.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(".step-") && name.ends_with(".partial") {
                remove(&partial)?;
            }
        }
        Ok(())
    }

    /// Deletes those that a run which goes on from `from` has no use for: all of them when it begins anew, else the newer
    /// ones, which are damaged.
    ///
    /// # Errors
    /// A folder can't be removed.
    pub fn discard_beyond(&self, from: Option<&Checkpoint>) -> Result<()> {
        let path = from.map(|checkpoint| checkpoint.path.as_path());
        for beyond in self.list()?.iter().filter(|found| path.is_none_or(|path| found.as_path() > path)) {
            remove(beyond)?;
        }
        Ok(())
    }

    /// The newest checkpoint that is whole, and the damaged ones that were passed over, each with what is wrong.
    ///
    /// # Errors
    /// The folder can't be listed.
    pub fn newest(&self) -> Result<(Option<Checkpoint>, Vec<String>)> {
        let mut damaged = Vec::new();
        for path in self.list()?.into_iter().rev() {
            match read_state(&path) {
                Ok(state) => return Ok((Some(Checkpoint { path, state }), damaged)),
                Err(e) => damaged.push(e.to_string()),
            }
        }
        Ok((None, damaged))
    }

    /// What the newest checkpoint says of itself; its tensors are not looked at.
    ///
    /// # Errors
    /// The folder can't be listed, or the checkpoint says nothing that can be read.
    pub fn told(&self) -> Result<Option<State>> {
        let Some(newest) = self.list()?.pop() else { return Ok(None) };
        parse_state(&newest.join(STATE)).map(Some)
    }

    /// Folders of checkpoints, oldest first.
    fn list(&self) -> Result<Vec<PathBuf>> {
        let mut found = self.entries()?;
        found.retain(|path| {
            let step = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("step-"));
            step.is_some_and(|s| s.len() == 8 && s.bytes().all(|b| b.is_ascii_digit()))
        });
        found.sort();
        Ok(found)
    }

    /// All that lies in the folder, if there is one.
    fn entries(&self) -> Result<Vec<PathBuf>> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        let listed = |e| Error::io("cannot list", &self.dir, e);
        let entries = fs::read_dir(&self.dir).map_err(listed)?;
        entries.map(|entry| Ok(entry.map_err(listed)?.path())).collect()
    }
}

impl Checkpoint {
    /// Puts the student and the optimizer, which had taken `taken` steps, back as they were.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn restore(&self, student: &Student, optimizer: &mut Optimizer, taken: usize) -> Result<()> {
        self.restore_variables(student.kept())?;
        let moments = self.tensors(OPTIMIZER)?;
        optimizer.restore(|name, like| take(&self.path, &moments, name, like), taken)
    }

    /// Puts the variables alone back: for export.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn restore_variables(&self, variables: &[Variable]) -> Result<()> {
        let model = self.tensors(MODEL)?;
        for variable in variables {
            variable.var.set(&take(&self.path, &model, &variable.name, variable.var.as_tensor())?)?;
        }
        Ok(())
    }

    fn tensors(&self, file: &str) -> Result<HashMap<String, Tensor>> {
        let path = self.path.join(file);
        candle_core::safetensors::load(&path, &Device::Cpu)
            .map_err(|e| Error::file(&path, format!("not a readable checkpoint: {e}")))
    }
}

fn take(dir: &Path, tensors: &HashMap<String, Tensor>, name: &str, like: &Tensor) -> Result<Tensor> {
    let tensor = tensors.get(name).ok_or_else(|| {
        Error::file(dir, format!("{name} is missing; the checkpoint is of another model or recipe"))
    })?;
    if tensor.shape() != like.shape() || tensor.dtype() != DType::F32 {
        let (want, found) = (like.shape(), tensor.shape());
        return Err(Error::file(
            dir,
            format!("{name}: want F32 {want:?}, found {:?} {found:?}", tensor.dtype()),
        ));
    }
    Ok(tensor.to_device(like.device())?)
}

fn remove(checkpoint: &Path) -> Result<()> {
    fs::remove_dir_all(checkpoint).map_err(|e| Error::io("cannot remove an old checkpoint", checkpoint, e))
}

fn folder(step: usize) -> String {
    format!("step-{step:08}")
}

/// SHA-256 of a file that may be larger than the memory that is free.
fn digest(path: &Path) -> Result<String> {
    let failed = |e| Error::io("cannot read", path, e);
    let mut file = fs::File::open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(failed)? {
            0 => break,
            len => hasher.update(&piece[..len]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn parse_state(path: &Path) -> Result<State> {
    let text = fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
    let (json, is_whole) = seal::opened(&String::from_utf8_lossy(&text));
    let state: State = serde_json::from_str(&json)
        .map_err(|e| Error::file(path, format!("not a checkpoint's state: {e}")))?;
    if state.qat != VERSION {
        return Err(Error::file(path, format!("layout version {}, this qat reads {VERSION}", state.qat)));
    }
    if !is_whole {
        return Err(Error::file(path, "its checksum differs from its content: the file is damaged"));
    }
    Ok(state)
}

/// What the checkpoint in `dir` says of itself, when its files are those that it says.
fn read_state(dir: &Path) -> Result<State> {
    let state = parse_state(&dir.join(STATE))?;
    for (file, wanted) in &state.sha256 {
        let path = dir.join(file);
        if digest(&path)? != *wanted {
            return Err(Error::file(&path, "checksum differs from state.json: the file is damaged"));
        }
    }
    Ok(state)
}

/// Keys that don't change the weights a run ends with, and so may differ when it is resumed.
const FREE: [&str; 8] = [
    "export",
    "eval",
    "train.checkpoint_layers",
    "train.log_every",
    "train.valid_every",
    "train.valid_windows",
    "train.checkpoint_every",
    "train.keep_checkpoints",
];

/// Checks that `now` continues the run that `then` began.
///
/// # Errors
/// The first key whose value differs, with both values.
pub fn same_recipe(then: &Recipe, now: &Recipe, out: &Path) -> Result<()> {
    let (then, now) = (then.keys()?, now.keys()?);
    let free = |key: &str| FREE.iter().any(|f| key == *f || key.starts_with(&format!("{f}.")));
    let changed = then.keys().chain(now.keys()).find(|key| !free(key) && then.get(*key) != now.get(*key));
    let Some(key) = changed else { return Ok(()) };
    let shown = |keys: &BTreeMap<String, Value>| keys.get(key).map_or("not set".to_owned(), Value::to_string);
    Err(Error::Config(format!(
        "--resume: {key} is {} now, but the run in {} began with {}; restore it, or train into another --out",
        shown(&now),
        out.display(),
        shown(&then)
    )))
}

#[cfg(test)]
mod tests;

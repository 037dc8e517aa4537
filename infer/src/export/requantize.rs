//! Rounding again, for a target that lacks the trained grid: only when asked for, and never without saying what it cost.
//!
//! Knows no target but what it can hold. Invariant: matrices that fit are copied to the bit; what the others lost is measured on
//! the weights, and on the predictions of both packed models over a text that the first one writes itself.

use std::fmt;
use std::path::Path;

use qat_quant::{Format, ScaleRule, Scales, pack};

use super::{Source, Target};
use crate::cpu::{Cpu, Model};
use crate::eval::{Versus, compare};
use crate::files::{PackedWriter, Storage};
use crate::generate::{Sampling, generate};
use crate::model::Param;
use crate::{Error, Result, Runtime as _};

/// Tokens of the text over which predictions are compared.
const TOKENS: usize = 256;

/// What rounding again changed, and what it cost.
#[derive(Debug)]
pub struct Requantized {
    /// Each matrix that was rounded again.
    pub changes: Vec<Change>,
    /// How far the predictions moved.
    pub versus: Versus,
}

/// A matrix that was rounded again.
#[derive(Debug)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// What it was trained in.
    pub from: Storage,
    /// What it is now.
    pub to: Format,
    /// ‖new − trained‖ / ‖trained‖.
    pub error: f64,
}

impl fmt::Display for Requantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worst = self.changes.iter().max_by(|a, b| a.error.total_cmp(&b.error));
        let mut kinds: Vec<String> = self.changes.iter().map(|c| format!("{} → {}", c.from, c.to)).collect();
        kinds.sort();
        kinds.dedup();
        write!(f, "{}", kinds.join(", "))?;
        if let Some(worst) = worst {
            write!(f, "; largest relative error {:.5} ({})", worst.error, worst.name)?;
        }
        let Versus { kl, same_top1, .. } = self.versus;
        write!(
            f,
            "; KL(trained ‖ rounded again) {:.5} ± {:.5} nats per token, same most probable token {:.1} %, over {TOKENS} tokens that the \
             trained model wrote (seed 0)",
            kl.mean,
            kl.se,
            100.0 * same_top1
        )
    }
}

/// Writes `source` to the packed directory `out` with every matrix that `target` can't hold rounded to a format that it can.
///
/// # Errors
/// No format of the target fits a matrix, or the disk is full.
pub(super) fn requantize(source: &Source, target: Target, out: &Path) -> Result<Vec<Change>> {
    let origin = source.dir.manifest.source.clone();
    let mut writer = PackedWriter::create(out, &source.config.to_json(), &source.companions()?, origin)?;
    let mut changes = Vec::new();
    for param in source.params() {
        let tensor = source.tensor(&param)?;
        if !target.holds(&param, tensor.storage) {
            let (from, values) = (tensor.storage, tensor.values()?);
            let to = nearest(&param, from, target)?;
            let (rows, cols) = (param.shape[0], param.shape[1]);
            let scales = Scales::choose(to, ScaleRule::Mse, &values, rows, cols);
            let packed = pack(&param.name, to, &values, rows, cols, &scales)?;
            let error = relative_error(&values, &packed.as_ref().decode());
            writer.packed(&param.name, packed.as_ref(), tensor.activations)?;
            changes.push(Change { name: param.name, from, to, error });
            continue;
        }
        match (tensor.packed()?, tensor.storage) {
            (Some(packed), _) => writer.packed(&param.name, packed, tensor.activations)?,
            (None, Storage::Float(float)) => {
                writer.float(&param.name, float, &param.shape, &tensor.values()?)?
            }
            (None, Storage::Packed(_)) => {
                return Err(Error::tensor(&param.name, "is packed and has no blocks"));
            }
        }
    }
    writer.finish()?;
    Ok(changes)
}

/// The format of `target` with at least as many levels as the trained one and the fewest bits; where none has as many, the one
/// with the most levels.
fn nearest(param: &Param, from: Storage, target: Target) -> Result<Format> {
    let levels = |format: Format| {
        let (lo, hi) = format.levels();
        hi - lo
    };
    let wanted = match from {
        Storage::Packed(format) => levels(format),
        Storage::Float(_) => i32::MAX,
    };
    let &[rows, cols] = param.shape.as_slice() else {
        return Err(Error::tensor(&param.name, format!("{target} can't hold it, and it is no matrix")));
    };
    let formats = target.formats(param);
    let bits = |format: &Format| format.bits_per_weight(rows, cols);
    let enough = formats.iter().copied().filter(|f| levels(*f) >= wanted);
    let cheapest = enough.min_by(|a, b| bits(a).total_cmp(&bits(b)));
    let finest = || formats.iter().copied().max_by_key(|f| levels(*f));
    cheapest.or_else(finest).ok_or_else(|| {
        let problem = format!("{target} has no format for rows of {cols} weights; keep the tensor in float");
        Error::tensor(&param.name, problem)
    })
}

fn relative_error(trained: &[f32], now: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let lost = squares(&mut trained.iter().zip(now).map(|(a, b)| f64::from(a - b)));
    let norm = squares(&mut trained.iter().map(|v| f64::from(*v)));
    if norm == 0.0 { 0.0 } else { lost / norm }
}

/// How far the predictions of the packed model in `now` are from those of the one in `trained`.
pub(super) fn measure(trained: &Path, now: &Path) -> Result<Versus> {
    let (trained, now) = (Model::open(trained)?, Model::open(now)?);
    let config = &trained.decoder.config;
    let tokens = TOKENS.min(config.max_position_embeddings);
    let mut reference = Cpu.sequence(&trained.decoder, tokens, Cpu.exact_kv())?;
    let first = config.bos_token_id.or(config.eos_token_ids.first().copied()).unwrap_or(0);
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };
    let mut ids = vec![first];
    let go_on = &mut |id| {
        ids.push(id);
        std::ops::ControlFlow::Continue(())
    };
    generate(&mut *reference, &[first], tokens - 1, &[], &sampling, go_on)?;
    let mut rounded = Cpu.sequence(&now.decoder, tokens, Cpu.exact_kv())?;
    compare(&mut *rounded, &mut *reference, &ids)
}

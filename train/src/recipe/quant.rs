//! The `[quant]` table, checked: which matrix has which format, where its grid starts, and what of it is learned.

use std::{fmt, str::FromStr};

use qat_infer::{
    cpu::KvType,
    files::Activations,
    model::{Param, Part, Role},
};
use qat_quant::{Format, ScaleRule};

use super::{OptimPlan, Rules, Schedule, plan::fail, raw};
use crate::{
    Error, Result,
    ops::{Gradient, MOST_TURNS},
    schedule,
};

/// How a cache will keep keys and values; none: unrounded.
///
/// # Errors
/// No such type.
pub(super) fn kv(spelling: &str) -> Result<Option<KvType>> {
    match spelling {
        "float" => Ok(None),
        "f16" | "int8" | "int4" => spelling.parse().map(Some).map_err(Error::from),
        other => fail("quant.kv", other, "float, f16, int8 or int4"),
    }
}

/// How a float model is rounded without training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Each weight to the nearest code, on grids chosen by a rule.
    Rule(ScaleRule),
    /// By GPTQ, on grids of least squared error; a matrix whose inputs aren't known (an embedding table) by `mse`.
    Gptq,
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => rule.fmt(f),
            Self::Gptq => f.write_str("gptq"),
        }
    }
}

impl FromStr for Rounding {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if s == "gptq" {
            return Ok(Self::Gptq);
        }
        s.parse().map(Self::Rule).map_err(|e: qat_quant::Error| Error::Config(format!("{e}, and \"gptq\"")))
    }
}

/// How rounding comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warmup {
    /// First step with rounding; before it the student is float.
    pub begin: usize,
    /// Steps over which it is blended in; 0: at once.
    pub steps: usize,
    /// Along half a cosine instead of a line.
    pub cosine: bool,
}

impl Warmup {
    /// What the table asks for, in a run of `steps` steps.
    ///
    /// # Errors
    /// The first value that is not one of its key, or keys that don't go together.
    pub(super) fn new(quant: &raw::Quant, optim: &OptimPlan, steps: usize) -> Result<Self> {
        let begin = match quant.begin.as_str() {
            "start" => 0,
            "decay" if !matches!(optim.schedule, Schedule::Wsd { .. }) => {
                return fail(
                    "quant.begin",
                    "decay",
                    "start; only optim.schedule = \"wsd\" has a decay to begin with",
                );
            }
            "decay" if quant.learn == "scales" || quant.scales == "gptq" => {
                let problem = "want start with quant.learn = \"scales\" and with quant.scales = \"gptq\", which begin with codes";
                return Err(Error::Config(format!("quant.begin = \"decay\": {problem}")));
            }
            "decay" => schedule::decay_start(optim, steps),
            other => return fail("quant.begin", other, "start or decay"),
        };
        let cosine = match quant.warmup.as_str() {
            "linear" => false,
            "cosine" => true,
            other => return fail("quant.warmup", other, "linear or cosine"),
        };
        Ok(Self { begin, steps: quant.warmup_steps, cosine })
    }
}

/// Formats to choose from for each matrix, and the bits that the choice may use.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix {
    /// At least two, each once.
    pub candidates: Vec<Format>,
    /// Bits per weight of the whole model.
    pub target_bpw: f64,
    /// Whether the table of embeddings (and so a tied head) is among what they are for.
    pub embeddings: bool,
    /// Whether an untied head is.
    pub head: bool,
}

/// In the place of a format: one of `quant.candidates`.
const CANDIDATES: &str = "candidates";

impl Mix {
    /// What the table asks for, if it asks for a choice.
    ///
    /// # Errors
    /// A candidate that is no format or listed twice, or one key without the other.
    pub(super) fn new(quant: &raw::Quant) -> Result<Option<Self>> {
        let [embeddings, head] = [&quant.embeddings, &quant.head].map(|format| format == CANDIDATES);
        let target_bpw = match (quant.target_bpw, quant.candidates.len()) {
            (None, 0) if embeddings || head => {
                let key = if embeddings { "quant.embeddings" } else { "quant.head" };
                return fail(key, CANDIDATES, "quant.candidates and quant.target_bpw beside it, or a format");
            }
            (None, 0) => return Ok(None),
            (Some(target), 2..) if target.is_finite() && target > 0.0 => target,
            (Some(target), 2..) => return fail("quant.target_bpw", target, "a finite number above 0"),
            (None, _) => return fail("quant.candidates", &quant.candidates, "quant.target_bpw beside it"),
            (Some(_), _) => {
                return fail(
                    "quant.candidates",
                    &quant.candidates,
                    "at least two formats for quant.target_bpw",
                );
            }
        };
        let mut candidates = Vec::new();
        for spelling in &quant.candidates {
            let format = spelling.parse().map_err(|e| Error::Config(format!("quant.candidates: {e}")))?;
            if candidates.contains(&format) {
                return Err(Error::Config(format!("quant.candidates: {spelling:?} is listed twice")));
            }
            candidates.push(format);
        }
        Ok(Some(Self { candidates, target_bpw, embeddings, head }))
    }

    /// Whether the candidates are for `param`: a matrix of a role that asks for them, which no override names.
    pub fn is_for(&self, param: &Param, rules: &Rules) -> bool {
        let role = match param.role {
            Role::Projection => true,
            Role::Embedding => self.embeddings,
            Role::Head => self.head,
            Role::Norm | Role::Bias | Role::Conv => false,
        };
        role && !rules.is_overridden(param)
    }

    /// `rules` with `format` for every matrix that the candidates are for.
    pub fn with(&self, rules: Rules, format: Format) -> Rules {
        let rules = rules.with_weights(format);
        let rules = if self.embeddings { rules.with_embeddings(format) } else { rules };
        if self.head { rules.with_head(format) } else { rules }
    }
}

/// What is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learn {
    /// Weights and norms, and scales where the gradient reaches them.
    All,
    /// Scales and biases of the grids; codes and all else stay as they start.
    Scales,
}

/// How a student is quantized.
#[derive(Debug, Clone)]
pub struct Quantization {
    /// Format of each matrix.
    pub rules: Rules,
    /// How scales are chosen, or start.
    pub start: Rounding,
    /// How gradients pass the rounding.
    pub gradient: Gradient,
    /// Whether the levels of an affine grid are held evenly around zero (SEQ): its bias follows its scale and is not learned.
    pub even: bool,
    /// What is learned.
    pub learn: Learn,
    /// Inputs of quantized projections.
    pub activations: Activations,
    /// How keys and values are kept, where that is rounded.
    pub kv: Option<KvType>,
    /// Times that a weight's code turns back before it is held, where any is.
    pub freeze_after: Option<u32>,
}

impl Quantization {
    /// What the table asks for.
    ///
    /// # Errors
    /// The first value that is not one of its key, or keys that don't go together.
    pub(super) fn new(quant: &raw::Quant) -> Result<Self> {
        let (gradient, even) = match quant.gradient.as_str() {
            "ste" => (Gradient::Ste, false),
            "clipped-ste" => (Gradient::ClippedSte, false),
            "lsq" => (Gradient::Lsq, false),
            "seq" => (Gradient::Lsq, true),
            other => return fail("quant.gradient", other, "ste, clipped-ste, lsq or seq"),
        };
        if !(quant.noise > 0.0 && quant.noise <= 1.0) {
            return fail("quant.noise", quant.noise, "a share above 0 and at most 1");
        }
        let learn = match quant.learn.as_str() {
            "all" => Learn::All,
            "scales" => Learn::Scales,
            other => return fail("quant.learn", other, "all or scales"),
        };
        let start = rounding("quant.scales", &quant.scales)?;
        // Until the choice is made, as the projections.
        let settled = |format| if format == CANDIDATES { &quant.weights } else { format };
        let together = |holds: bool, key: &str, value: &str, why: &str| match holds {
            true => Ok(()),
            false => Err(Error::Config(format!(
                "{key} = {value:?} and quant.gradient = {:?}: {why}",
                quant.gradient
            ))),
        };
        let kept = gradient == Gradient::Lsq;
        let why = "scales that are chosen anew in each step keep nothing of it; use lsq or seq";
        together(kept || start != Rounding::Gptq, "quant.scales", &quant.scales, why)?;
        together(kept || learn == Learn::All, "quant.learn", &quant.learn, why)?;
        let why = "its grids start at least squared error; use mse, seq or gptq";
        together(!even || start != Rounding::Rule(ScaleRule::Absmax), "quant.scales", &quant.scales, why)?;
        if learn == Learn::Scales && (quant.warmup_steps > 0 || quant.noise < 1.0) {
            let problem = "there are no weights but the codes; leave quant.warmup_steps and quant.noise out";
            return Err(Error::Config(format!("quant.learn = \"scales\": {problem}")));
        }
        Ok(Self {
            rules: Rules::new(
                &quant.weights,
                settled(&quant.embeddings),
                settled(&quant.head),
                &quant.overrides,
            )?,
            start,
            gradient,
            even,
            learn,
            activations: match quant.activations.as_str() {
                "float" => Activations::Float,
                "int8-token" => Activations::Int8Token,
                other => return fail("quant.activations", other, "float or int8-token"),
            },
            kv: kv(&quant.kv)?,
            freeze_after: quant.freeze_after.map(|turns| freeze_after(quant, turns)).transpose()?,
        })
    }

    /// How what the matrix `param` makes is kept, if it makes keys or values.
    pub fn cache_of(&self, param: &Param) -> Option<KvType> {
        let is_kept = matches!(param.part(), Some((_, Part::K | Part::V)));
        self.kv.filter(|_| param.role == Role::Projection && is_kept)
    }

    /// The same formats with `start` for the weights as they are: rounding without training.
    pub fn untrained(rules: Rules, start: Rounding, activations: Activations) -> Self {
        let (gradient, learn) = (Gradient::Lsq, Learn::All);
        Self { rules, start, gradient, even: false, learn, activations, kv: None, freeze_after: None }
    }

    /// The rule of grids that are chosen from the weights alone.
    pub fn rule(&self) -> ScaleRule {
        match self.start {
            _ if self.even => ScaleRule::Seq,
            Rounding::Rule(rule) => rule,
            Rounding::Gptq => ScaleRule::Mse,
        }
    }
}

/// `quant.freeze_after` and what it goes with.
fn freeze_after(quant: &raw::Quant, turns: u32) -> Result<u32> {
    let refused = |why: &str| Err(Error::Config(format!("quant.freeze_after = {turns}: {why}")));
    match (quant.gradient.as_str(), quant.learn.as_str()) {
        _ if !(1..=MOST_TURNS).contains(&turns) => {
            fail("quant.freeze_after", turns, &format!("a number of turns from 1 to {MOST_TURNS}"))
        }
        (_, "scales") => refused("with quant.learn = \"scales\" all codes stay as they are; leave it out"),
        ("lsq" | "seq", _) => Ok(turns),
        (gradient, _) => refused(&format!(
            "with quant.gradient = {gradient:?} the scales are chosen anew in each step, and no code could be held; use lsq or seq"
        )),
    }
}

/// The rounding that `key` spells.
pub(super) fn rounding(key: &str, spelling: &str) -> Result<Rounding> {
    spelling.parse().map_err(|e| Error::Config(format!("{key} = {spelling:?}: {e}")))
}

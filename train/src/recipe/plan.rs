//! What will run: the recipe with every choice made and every value in range. Nothing below asks again.

use std::path::{Path, PathBuf};

use qat_infer::{
    cpu::KvType,
    export::{self, Target},
};
use qat_quant::kernels::FloatType;

use super::{
    DataPlan, Learn, Mix, Quantization, Recipe, Rounding, Warmup,
    quant::rounding,
    raw,
    teaching::{self, CachePlan, LossPlan, OnPolicyPlan, TeacherPlan},
};
use crate::{Error, Result, precision::Precision};

/// Where the student's weights come from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A Hugging Face directory.
    Pretrained(PathBuf),
    /// Random weights in the shape of a `config.json`, with a tokenizer.
    Scratch {
        /// The `config.json`.
        config: PathBuf,
        /// The `tokenizer.json`.
        tokenizer: PathBuf,
    },
}

/// Shape of the learning rate over the run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// Half a cosine from the peak to the end.
    Cosine,
    /// Stable, then a linear decay over this share of the steps.
    Wsd {
        /// Share of the steps spent decaying.
        decay_share: f64,
    },
    /// The peak throughout.
    Constant,
}

/// Muon's part of the optimizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MuonPlan {
    /// Peak learning rate.
    pub lr: f64,
    /// Share of the momentum that a step keeps.
    pub momentum: f64,
}

/// One layer after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlocksPlan {
    /// Steps at the end that train the scales of all layers.
    pub scale_steps: usize,
}

/// The optimizer, its learning rates and their schedule.
#[derive(Debug, Clone)]
pub struct OptimPlan {
    /// Moves the matrices inside the layers, where it is there; AdamW moves the rest.
    pub muon: Option<MuonPlan>,
    /// Peak learning rate of matrices.
    pub lr: f64,
    /// Peak learning rate of scales and biases of the grid, relative to the scale.
    pub scale_lr: f64,
    /// Peak learning rate of norms and bias vectors.
    pub norm_lr: f64,
    /// β₁ and β₂.
    pub betas: [f64; 2],
    /// ε.
    pub eps: f64,
    /// Decoupled decay of matrices.
    pub weight_decay: f64,
    /// Largest gradient norm, if any.
    pub clip: Option<f64>,
    /// Shape over time.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Learning rate at the end as a share of the peak.
    pub final_lr: f64,
}

/// Export after training: always the packed directory, which is what is scored, and from it the files of other runtimes.
#[derive(Debug, Clone)]
pub struct ExportPlan {
    /// Whose files are written beside the packed ones.
    pub targets: Vec<Target>,
    /// What was chosen about them.
    pub options: export::Options,
    /// Where; without it folders of the run.
    out: Option<PathBuf>,
    /// Whether there is one format, whose directory `out` then is.
    is_one: bool,
}

/// Name of the packed format, and of its folder.
const PACKED: &str = "qat";

impl ExportPlan {
    /// The packed directory of the run in `run`.
    pub fn packed(&self, run: &Path) -> PathBuf {
        match &self.out {
            Some(out) if self.is_one && self.targets.is_empty() => out.clone(),
            Some(out) if !self.is_one => out.join(PACKED),
            _ => run.join(PACKED),
        }
    }

    /// The directories of the targets for the run in `run`.
    pub fn places(&self, run: &Path) -> Vec<(Target, PathBuf)> {
        let place = |target: &Target| match &self.out {
            Some(out) if self.is_one => out.clone(),
            out => out.as_deref().unwrap_or(run).join(target.to_string()),
        };
        self.targets.iter().map(|target| (*target, place(target))).collect()
    }
}

/// Evaluation after export.
#[derive(Debug, Clone)]
pub struct EvalPlan {
    /// Text to score, as listed.
    pub data: Vec<String>,
    /// Window in tokens.
    pub ctx: usize,
    /// Reference model.
    pub against: Option<PathBuf>,
    /// Put the model's beginning-of-sequence token in front of each window.
    pub bos: bool,
    /// Roundings of the untrained baselines.
    pub baselines: Vec<Rounding>,
    /// How keys and values are kept; none: as they are.
    pub kv: Option<KvType>,
    /// Gates, as written.
    pub require: Vec<String>,
}

/// A recipe in which every choice is made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The recipe it came from: kept with checkpoints, compared when resuming.
    pub recipe: Recipe,
    /// Where the student's weights come from.
    pub origin: Origin,
    /// The teacher.
    pub teacher: TeacherPlan,
    /// Where its predictions are kept, if they are.
    pub cache: Option<CachePlan>,
    /// What is trained on.
    pub data: DataPlan,
    /// Windows that the student writes, if any.
    pub on_policy: Option<OnPolicyPlan>,
    /// How the student is quantized; where there is a `mix`, but for the formats that it chooses.
    pub quantization: Quantization,
    /// Formats that are chosen when the run begins.
    pub mix: Option<Mix>,
    /// How rounding comes in.
    pub warmup: Warmup,
    /// Layers are trained one after the other, if they are.
    pub blocks: Option<BlocksPlan>,
    /// What a training step computes in.
    pub precision: Precision,
    /// Loss terms.
    pub loss: LossPlan,
    /// Optimizer.
    pub optim: OptimPlan,
    /// Export after training.
    pub export: Option<ExportPlan>,
    /// Evaluation after export.
    pub eval: Option<EvalPlan>,
}

impl Plan {
    /// Checks `recipe` as a whole.
    ///
    /// # Errors
    /// The first value out of range, with its key, or keys that don't go together.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let r = recipe;
        check_ranges(r)?;
        let quantization = Quantization::new(&r.quant)?;
        let teacher = teaching::teacher(r)?;
        if quantization.learn == Learn::Scales && teacher == TeacherPlan::Latent {
            let problem = "quant.learn = \"scales\" keeps no float weights; name the directory of a model";
            return Err(Error::Config(format!("teacher.model = \"latent\": {problem}")));
        }
        let loss = teaching::loss(&r.loss, &teacher)?;
        let optim = optim(&r.optim)?;
        Ok(Self {
            origin: origin(&r.student)?,
            cache: teaching::cache(r, &teacher, &loss)?,
            data: DataPlan::new(r)?,
            on_policy: teaching::on_policy(r, &loss)?,
            loss,
            teacher,
            mix: Mix::new(&r.quant)?,
            warmup: Warmup::new(&r.quant, &optim, r.train.steps)?,
            blocks: blocks(r, &quantization)?,
            quantization,
            precision: r.train.precision.parse()?,
            optim,
            export: r.export.as_ref().map(export).transpose()?,
            eval: r.eval.as_ref().map(|e| eval(e, r)).transpose()?,
            recipe: r.clone(),
        })
    }
}

/// `train.mode` and what it goes with.
fn blocks(r: &Recipe, quantization: &Quantization) -> Result<Option<BlocksPlan>> {
    let scale_steps = r.train.scale_steps;
    match r.train.mode.as_str() {
        "whole" if scale_steps > 0 => fail("train.scale_steps", scale_steps, "train.mode = \"blocks\" beside it"),
        "whole" => Ok(None),
        "blocks" if scale_steps >= r.train.steps => {
            fail("train.scale_steps", scale_steps, "less than train.steps, which count these and those of the layers")
        }
        "blocks" if scale_steps > 0 && !quantization.gradient.learns_scales() => {
            fail("train.scale_steps", scale_steps, "learned scales (quant.gradient = \"lsq\" or \"seq\")")
        }
        "blocks" if quantization.learn == Learn::Scales => {
            fail("quant.learn", "scales", "all with train.mode = \"blocks\"; train.scale_steps train scales alone at the end")
        }
        "blocks" if r.quant.warmup_steps > 0 || r.quant.begin != "start" => Err(Error::Config(
            "train.mode = \"blocks\": layers are trained behind rounded ones; leave quant.warmup_steps and quant.begin out".into(),
        )),
        "blocks" => Ok(Some(BlocksPlan { scale_steps })),
        other => fail("train.mode", other, "whole or blocks"),
    }
}

pub(super) fn fail<T>(key: &str, value: impl std::fmt::Debug, want: &str) -> Result<T> {
    Err(Error::Config(format!("{key} = {value:?}: want {want}")))
}

pub(super) fn at_least(key: &str, value: usize, least: usize) -> Result<()> {
    if value < least { fail(key, value, &format!("at least {least}")) } else { Ok(()) }
}

pub(super) fn positive(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(Error::Config(format!("{key} = {value}: want a finite number above 0")))
    }
}

pub(super) fn not_negative(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        Ok(())
    } else {
        Err(Error::Config(format!("{key} = {value}: want a finite number, 0 or more")))
    }
}

fn check_ranges(r: &Recipe) -> Result<()> {
    at_least("train.steps", r.train.steps, 1)?;
    at_least("train.batch", r.train.batch, 1)?;
    at_least("train.accumulate", r.train.accumulate, 1)?;
    at_least("train.log_every", r.train.log_every, 1)?;
    at_least("train.valid_windows", r.train.valid_windows, 1)?;
    at_least("train.keep_checkpoints", r.train.keep_checkpoints, 1)?;
    at_least("data.ctx", r.data.ctx, 2)?;
    at_least("quant.calibration_windows", r.quant.calibration_windows, 1)?;
    positive("train.divergence", r.train.divergence)?;
    if !(r.data.held_out > 0.0 && r.data.held_out <= 0.5) {
        return fail("data.held_out", r.data.held_out, "more than 0 and at most 0.5");
    }
    not_empty("data.train", &r.data.train)?;
    for (key, size) in [
        ("student.layers", r.student.layers),
        ("student.hidden_size", r.student.hidden_size),
        ("student.intermediate_size", r.student.intermediate_size),
        ("student.pad_intermediate", r.student.pad_intermediate),
    ] {
        if size == Some(0) {
            return fail(key, 0, "at least 1");
        }
    }
    Ok(())
}

fn not_empty(key: &str, list: &[String]) -> Result<()> {
    if list.is_empty() { fail(key, list, "at least one entry") } else { Ok(()) }
}

fn origin(student: &raw::Student) -> Result<Origin> {
    match (&student.from, &student.scratch) {
        (Some(from), None) => Ok(Origin::Pretrained(from.into())),
        (None, Some(s)) => {
            Ok(Origin::Scratch { config: (&s.config).into(), tokenizer: (&s.tokenizer).into() })
        }
        (None, None) => {
            Err(Error::Config("[student]: want `from` (a model directory) or [student.scratch]".into()))
        }
        (Some(_), Some(_)) => {
            Err(Error::Config("[student]: `from` and [student.scratch] exclude each other".into()))
        }
    }
}

fn optim(o: &raw::Optim) -> Result<OptimPlan> {
    positive("optim.lr", o.lr)?;
    positive("optim.muon_lr", o.muon_lr)?;
    if !(0.0..1.0).contains(&o.momentum) {
        return fail("optim.momentum", o.momentum, "a number from 0 to below 1");
    }
    let muon = match o.kind.as_str() {
        "adamw" => None,
        "muon" => Some(MuonPlan { lr: o.muon_lr, momentum: o.momentum }),
        other => return fail("optim.kind", other, "adamw or muon"),
    };
    not_negative("optim.scale_lr", o.scale_lr)?;
    let norm_lr = o.norm_lr.unwrap_or(o.lr);
    not_negative("optim.norm_lr", norm_lr)?;
    for beta in o.betas {
        if !(0.0..1.0).contains(&beta) {
            return fail("optim.betas", o.betas, "two numbers from 0 to below 1");
        }
    }
    positive("optim.eps", o.eps)?;
    not_negative("optim.weight_decay", o.weight_decay)?;
    not_negative("optim.clip", o.clip)?;
    if !(0.0..=1.0).contains(&o.final_lr) {
        return fail("optim.final_lr", o.final_lr, "a share from 0 to 1");
    }
    if !(o.decay_share > 0.0 && o.decay_share <= 1.0) {
        return fail("optim.decay_share", o.decay_share, "a share above 0 and at most 1");
    }
    let schedule = match o.schedule.as_str() {
        "cosine" => Schedule::Cosine,
        "wsd" => Schedule::Wsd { decay_share: o.decay_share },
        "constant" => Schedule::Constant,
        other => return fail("optim.schedule", other, "cosine, wsd or constant"),
    };
    Ok(OptimPlan {
        muon,
        lr: o.lr,
        scale_lr: o.scale_lr,
        norm_lr,
        betas: o.betas,
        eps: o.eps,
        weight_decay: o.weight_decay,
        clip: (o.clip > 0.0).then_some(o.clip),
        schedule,
        warmup_steps: o.warmup_steps,
        final_lr: o.final_lr,
    })
}

fn export(e: &raw::Export) -> Result<ExportPlan> {
    let formats = e.format.all();
    not_empty("export.format", formats)?;
    let mut targets = Vec::new();
    for format in formats.iter().filter(|format| *format != PACKED) {
        let target = format.parse().map_err(|e| Error::Config(format!("export.format: {e}")))?;
        if targets.contains(&target) {
            return Err(Error::Config(format!("export.format: {format:?} is listed twice")));
        }
        targets.push(target);
    }
    let dtype = e.dtype.as_deref().map(float_type).transpose()?;
    let options = export::Options { dtype, ..Default::default() };
    Ok(ExportPlan { targets, options, out: e.out.as_ref().map(PathBuf::from), is_one: formats.len() == 1 })
}

fn float_type(name: &str) -> Result<FloatType> {
    name.parse().map_err(|e| Error::Config(format!("export.dtype: {e}")))
}

fn eval(e: &raw::Eval, r: &Recipe) -> Result<EvalPlan> {
    if r.export.is_none() {
        return Err(Error::Config(
            "[eval] scores the exported model: add [export] with format = \"qat\"".into(),
        ));
    }
    let ctx = e.ctx.unwrap_or(r.data.ctx);
    at_least("eval.ctx", ctx, 2)?;
    not_empty("eval.data", &e.data)?;
    Ok(EvalPlan {
        data: e.data.clone(),
        ctx,
        bos: e.bos,
        against: e.against.as_ref().map(PathBuf::from),
        baselines: e.baselines.iter().map(|b| rounding("eval.baselines", b)).collect::<Result<_>>()?,
        kv: super::quant::kv(&r.quant.kv)?,
        require: e.require.clone(),
    })
}

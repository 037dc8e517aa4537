//! From latent variables to a directory that ships: each tensor encoded once, by the codec that it was trained with.
//!
//! Knows no bytes of files (`qat_infer::files` writes them) and prints nothing. A trained run and the untrained rounding of
//! a float model take the same way: both are a [`Student`], one restored from a checkpoint, one fresh from its directory.

mod changes;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::Device;
use qat_infer::{
    FloatModel,
    files::{
        CONFIG_FILE, Manifest, PROVENANCE_FILE, PackedWriter, Storage, check_written, companions, read_json,
    },
    model::params,
};
use qat_quant::kernels::FloatType;
use serde_json::{Value, json};

pub use self::changes::{Change, Changes, FormatSpread, Histogram, ModuleSpread};
use crate::{
    Error, Result,
    checkpoint::Checkpoints,
    recipe::{Origin, Plan, Quantization, Rounding},
    student::{Floats, Shipped, Student, gptq, prune, read_config},
    trainer::{self, Job, mixed, student_dir},
};

/// A student with the files that travel along, ready to be written in some format.
#[derive(Debug)]
pub struct Shipment {
    student: Student,
    companions: Vec<PathBuf>,
    /// The model that the companions belong to, if they may have been made of it.
    _origin: Option<FloatModel>,
    /// Where it came from, for the manifest.
    source: Value,
}

/// Whether `dir` holds a run of `qat train`.
pub fn is_run(dir: &Path) -> bool {
    student_dir(dir).join(CONFIG_FILE).is_file()
}

/// Refuses, before anything is trained, a recipe whose `[export]` can't hold what its `[quant]` trains.
///
/// # Errors
/// Names the first tensor, and the formats that fit; the config of the student can't be read.
pub fn check_targets(plan: &Plan) -> Result<()> {
    let Some(export) = plan.export.as_ref().filter(|export| !export.targets.is_empty()) else {
        return Ok(());
    };
    let config = match &plan.origin {
        Origin::Pretrained(path) => FloatModel::open(path)?.config,
        Origin::Scratch { config, .. } => read_config(config)?,
    };
    export.targets.iter().try_for_each(|target| target.knows(&config))?;
    let rules = &plan.quantization.rules;
    let possible = match &plan.mix {
        None => vec![rules.clone()],
        Some(mix) => mix.candidates.iter().map(|&format| mix.with(rules.clone(), format)).collect(),
    };
    for (target, rules) in export.targets.iter().flat_map(|t| possible.iter().map(move |rules| (t, rules))) {
        target.check(params(&config).into_iter().map(|param| {
            let storage = rules.choose(&param).map_or(Storage::Float(FloatType::F32), Storage::Packed);
            (param, storage)
        }))?;
    }
    Ok(())
}

impl Shipment {
    /// The newest whole checkpoint of the run in `dir`; also says which checkpoints are damaged.
    ///
    /// # Errors
    /// No checkpoint, or one that doesn't hold what its recipe asks for.
    pub fn of_run(dir: &Path) -> Result<(Self, Vec<String>)> {
        let (found, damaged) = Checkpoints::of(dir).newest()?;
        let checkpoint = found.ok_or_else(|| {
            Error::file(
                dir,
                "holds no whole checkpoint yet; let qat train reach its first one, or --resume it",
            )
        })?;
        let plan = Plan::new(&checkpoint.state.recipe)?;
        let origin = student_dir(dir);
        // Its weights are not needed here.
        check_written(&origin, |name| !name.ends_with(".safetensors")).map_err(|e| {
            Error::Data(format!("{e}; qat train with --resume writes what the run started from again"))
        })?;
        let config = read_config(&origin.join(CONFIG_FILE))?;
        let student = Student::new(&Floats::zeros(config), mixed::settled(&plan, dir)?, &Device::Cpu)?;
        checkpoint.restore_variables(student.kept())?;
        let recipe =
            serde_json::to_value(&checkpoint.state.recipe).map_err(|e| Error::Config(e.to_string()))?;
        let base = read_json::<Value>(&origin.join(PROVENANCE_FILE))
            .map_or(Value::Null, |told| told["source"]["base"].clone());
        let source =
            json!({"method": "trained", "step": checkpoint.state.step, "base": base, "recipe": recipe});
        Ok((Self { student, companions: companions(&origin)?, _origin: None, source }, damaged))
    }

    /// The float model at `dir`, a directory or a GGUF file, rounded without training.
    ///
    /// # Errors
    /// A directory that is no model, or a format that can't hold one of its tensors.
    pub fn of_model(dir: &Path, quantization: Quantization, pad_intermediate: Option<usize>) -> Result<Self> {
        let model = FloatModel::open(dir)?;
        let floats = padded(Floats::read_latent(&model)?, pad_intermediate)?;
        Self::rounded(model, &floats, quantization)
    }

    /// The weights that the run of `job` started from, rounded without training: what its training is measured against.
    ///
    /// # Errors
    /// The start was not kept, or can't be read; for GPTQ also the text that the run trained on.
    pub fn of_start(job: &Job, rounding: Rounding) -> Result<Self> {
        let Quantization { rules, activations, .. } = mixed::settled(job.plan, job.out)?;
        let quantization = Quantization::untrained(rules, rounding, activations);
        let model = FloatModel::open(&student_dir(job.out))?;
        let floats = Floats::read(&model)?;
        match rounding {
            Rounding::Rule(_) => Self::rounded(model, &floats, quantization),
            Rounding::Gptq => Self::calibrated(model, &floats, quantization, job),
        }
    }

    /// The float model at `dir`, rounded by GPTQ: what the run of `job` would start from.
    ///
    /// # Errors
    /// A directory that is no model, a format that can't hold one of its tensors, text that can't be read or is too short.
    pub fn by_gptq(dir: &Path, quantization: Quantization, job: &Job) -> Result<Self> {
        let model = FloatModel::open(dir)?;
        let floats = padded(Floats::read(&model)?, job.plan.recipe.student.pad_intermediate)?;
        Self::calibrated(model, &floats, quantization, job)
    }

    fn calibrated(model: FloatModel, floats: &Floats, quantization: Quantization, job: &Job) -> Result<Self> {
        let shipment = Self::rounded(model, floats, quantization.clone())?;
        let text = trainer::calibration(job)?;
        shipment.student.start_from(&gptq::round(floats, &quantization, &text, &job.device)?)?;
        Ok(shipment)
    }

    fn rounded(model: FloatModel, floats: &Floats, quantization: Quantization) -> Result<Self> {
        // It travels along, and must be the model's.
        model.tokenizer()?;
        let scales = quantization.start.to_string();
        let source = json!({"method": "rounded", "scales": scales, "base": model.base()?});
        let student = Student::new(floats, quantization, &Device::Cpu)?;
        Ok(Self { student, companions: model.companions()?, _origin: Some(model), source })
    }

    /// Writes the packed directory `out`, reads it back, and only then puts it in place.
    ///
    /// # Errors
    /// `out` is not ours to replace or can't be written, the disk is full, or it reads back differently.
    pub fn write(&self, out: &Path) -> Result<Manifest> {
        self.write_unless(out, &AtomicBool::new(false))
    }

    /// [`Self::write`], unless `stop` is raised before it is done.
    ///
    /// # Errors
    /// Those of [`Self::write`], and [`Error::Interrupted`].
    pub fn write_unless(&self, out: &Path, stop: &AtomicBool) -> Result<Manifest> {
        let config = self.student.config.to_json();
        let mut writer = PackedWriter::create(out, &config, &self.companions, self.source.clone())?;
        for param in params(&self.student.config) {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            match self.student.ship(&param)? {
                Shipped::Packed(packed) => {
                    writer.packed(&param.name, packed.as_ref(), self.student.activations(&param))?;
                }
                Shipped::Float(values) => writer.float(&param.name, FloatType::F32, &param.shape, &values)?,
            }
        }
        Ok(writer.finish()?)
    }
}

fn padded(floats: Floats, multiple: Option<usize>) -> Result<Floats> {
    match multiple {
        Some(multiple) => prune::pad_intermediate(&floats, multiple),
        None => Ok(floats),
    }
}

#[cfg(test)]
mod tests;

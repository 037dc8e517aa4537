//! Everything between a plan and the first step: models read and fitted to each other, text tokenized, state restored.
//!
//! Invariant: when it returns, nothing that the user can have got wrong is left to be found out in the loop.

use std::{
    ops::{ControlFlow, Range},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::Device;
use qat_infer::{
    FloatModel,
    files::{
        Base, HfWriter, PROVENANCE_FILE, TOKENIZER_FILE, check_written, companions, load_tokenizer,
        read_json, same_tokens,
    },
    model::{Config, params},
};
use qat_quant::kernels::FloatType;

use super::{
    Event, Job, Log, calibration, conversations,
    learner::{Learner, step_tokens},
    lock::RunLock,
    mixed,
    on_policy::Author,
    teacher::Teacher,
};
use crate::{
    Error, Result,
    checkpoint::{Checkpoint, Checkpoints, same_recipe},
    data::{self, Batch, Batches, Corpus, Source, Tokenization, Tokens},
    ranks::Ranks,
    recipe::{Origin, Plan, Rounding, TeacherPlan},
    student::{Floats, gptq, prune, read_config},
};

/// What to do about a run that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Refuse.
    Fresh,
    /// Continue from its newest whole checkpoint, or begin where there is none.
    Resume,
    /// Delete its checkpoints and begin anew.
    Restart,
}

/// Windows on which channels and neurons are measured before width pruning, and formats before one is chosen.
pub(super) const PROBE_WINDOWS: usize = 16;

/// A run, ready for its next step.
pub(super) struct Prepared {
    pub learner: Learner,
    pub batches: Batches,
    /// Those rows of each that are this rank's.
    pub rows: Range<usize>,
    /// Who writes a part of them, if anybody does.
    pub author: Option<Author>,
    /// Held-out windows that this rank scores.
    pub valid: Vec<Batch>,
    pub checkpoints: Checkpoints,
    /// The first rank's alone.
    pub log: Option<Log>,
    /// Loss of the first step of the part of the course, once it is known.
    pub start_loss: Option<f64>,
    /// Steps done.
    pub step: usize,
    /// Step of the newest checkpoint on disk.
    pub saved: Option<usize>,
    /// Steps in a row with a loss above the limit.
    pub steps_above: usize,
    /// Held by the first rank while the run lives: nobody else may write here.
    _lock: Option<RunLock>,
}

impl Prepared {
    pub fn new(job: &Job, report: &mut dyn FnMut(Event), stop: &AtomicBool) -> Result<Self> {
        let (plan, ranks) = (job.plan, &job.ranks);
        plan.precision.check(&job.device)?;
        let rows = ranks.divide("train.batch", plan.recipe.train.batch)?;
        let lock = ranks.on_first(|| RunLock::take(job.out))?;
        let checkpoints = Checkpoints::of(job.out);
        let found = ranks.from_first(|| find_checkpoint(job, &checkpoints, report))?;
        let source = Beginning::open(&plan.origin, plan.recipe.seed)?;
        let (train, valid) = tokens(job, source.words(), report, stop)?;
        let teacher_floats = teacher_floats(plan, &source)?;
        let ctx = plan.recipe.data.ctx;
        let (batches, all) = training_batches(train, plan)?;
        let valid = valid_batches(valid, plan, ranks)?;
        let floats = prune_student(&source.floats, plan, windows(&batches, ctx), &job.device)?;
        let of_teacher = teacher_floats.as_ref().unwrap_or(&source.floats);
        let teacher = match &plan.cache {
            Some(cache) => Teacher::cached((job, cache), of_teacher, (&batches, all), &valid, report, stop)?,
            None => Teacher::new(plan, of_teacher, &job.device)?,
        };
        let chosen = match &found {
            None => ranks.from_first(|| calibration::choose_formats(job, &floats, &batches, report))?,
            Some(_) => None,
        };
        let quantization = match &chosen {
            Some(chosen) => chosen.applied(&plan.quantization)?,
            None => mixed::settled(plan, job.out)?,
        };
        let mut learner = Learner::new(plan, &floats, quantization.clone(), teacher, (&job.device, ranks))?;
        // What balances terms is measured at the start, also by a run that goes on from elsewhere.
        let balances = plan.loss.features.as_ref().is_some_and(|features| features.balance);
        if quantization.start == Rounding::Gptq && (found.is_none() || balances) {
            ranks.on_first(|| {
                let text = calibration::text(plan, &batches);
                report(Event::Note(format!("GPTQ on {} windows of the training text", text.windows.len())));
                learner.student.start_from(&gptq::round(&floats, &quantization, &text, &job.device)?)
            })?;
        }
        ranks.align(learner.student.kept())?;
        learner
            .look_inside(plan, &batches.rows(0, rows.clone()))?
            .into_iter()
            .for_each(|said| report(Event::Note(said)));
        let (mut step, mut start_loss) = (0, None);
        if let Some(checkpoint) = &found {
            learner.restore(plan, checkpoint)?;
            (step, start_loss) = (checkpoint.state.step, checkpoint.state.start_loss);
            batches.resume(&checkpoint.state.cursor)?;
        }
        // Damaged ones, and with --restart all; nothing of the earlier run goes before all that the new one needs is there.
        let log = ranks.on_first(|| {
            checkpoints.discard_beyond(found.as_ref())?;
            checkpoints.keep_newest(plan.recipe.train.keep_checkpoints)?;
            match &found {
                Some(_) => mend_start(job.out, &floats, &source, report)?,
                None => {
                    write_start(job.out, &floats, &source)?;
                    chosen.iter().try_for_each(|chosen| chosen.write(job.out))?;
                }
            }
            Log::open(job.out, step)
        })?;
        report(Event::Begin {
            from: step,
            steps: plan.recipe.train.steps,
            parameters: learner.student.variables().iter().map(|v| v.var.elem_count()).sum(),
            tokens: batches.windows_per_epoch() * ctx as u64,
            tokens_per_step: step_tokens(plan),
        });
        Ok(Self {
            valid,
            log,
            saved: found.map(|c| c.state.step),
            steps_above: 0,
            _lock: lock,
            author: Author::new(plan, job.out, (ranks, rows.clone())),
            rows,
            learner,
            batches,
            checkpoints,
            start_loss,
            step,
        })
    }
}

/// The checkpoint to go on from. Nothing is deleted here: the recipe may still turn out to be one that can't run.
fn find_checkpoint(
    job: &Job,
    checkpoints: &Checkpoints,
    report: &mut dyn FnMut(Event),
) -> Result<Option<Checkpoint>> {
    if job.start == Start::Restart {
        return Ok(None);
    }
    let (found, damaged) = checkpoints.newest()?;
    let refused = |what: String| {
        let problem =
            format!("{what}; --restart deletes its checkpoints and begins anew, --out DIR goes elsewhere");
        Err(Error::file(job.out, problem))
    };
    match (&found, job.start) {
        (None, _) if !damaged.is_empty() => {
            return refused(format!("holds no checkpoint that is whole ({})", damaged.join("; ")));
        }
        (Some(checkpoint), Start::Fresh) => {
            let steps = checkpoint.state.step;
            return refused(format!("holds a run of {steps} steps already; --resume continues it"));
        }
        (Some(checkpoint), _) => same_recipe(&checkpoint.state.recipe, &job.plan.recipe, job.out)?,
        (None, _) => {}
    }
    for problem in damaged {
        report(Event::Note(format!("passed over a damaged checkpoint: {problem}")));
    }
    Ok(found)
}

/// Where the student comes from: weights, tokenizer, and the files that travel along.
pub(super) struct Beginning {
    pub floats: Floats,
    tokenizer: PathBuf,
    companions: Vec<PathBuf>,
    /// The pretrained model, from which the files above may have been made, and what it says of itself.
    pretrained: Option<(PathBuf, FloatModel)>,
    base: Option<Base>,
}

impl Beginning {
    /// Reads the weights, or draws them with `seed`.
    ///
    /// # Errors
    /// A model that can't be read, a tokenizer of another name.
    pub fn open(origin: &Origin, seed: u64) -> Result<Self> {
        match origin {
            Origin::Pretrained(path) => {
                let model = FloatModel::open(path)?;
                Ok(Self {
                    floats: Floats::read_latent(&model)?,
                    tokenizer: model.tokenizer_path(),
                    companions: model.companions()?,
                    base: Some(model.base()?),
                    pretrained: Some((path.clone(), model)),
                })
            }
            Origin::Scratch { config, tokenizer } => {
                if !tokenizer.ends_with(TOKENIZER_FILE) {
                    let problem = format!("student.scratch.tokenizer: want a file called {TOKENIZER_FILE}");
                    return Err(Error::file(tokenizer, problem));
                }
                let folder = tokenizer.parent().unwrap_or(Path::new("."));
                let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                Ok(Self {
                    floats: Floats::random(read_config(config)?, seed),
                    tokenizer: tokenizer.clone(),
                    companions: companions(folder)?,
                    pretrained: None,
                    base: None,
                })
            }
        }
    }
}

impl Beginning {
    /// Whose words the text is cut into: the shape of the model, and its tokenizer.
    pub fn words(&self) -> (&Config, &Path) {
        (&self.floats.config, &self.tokenizer)
    }
}

/// The weights of a teacher that is not the student's own beginning; checks that both speak the same tokens.
pub(super) fn teacher_floats(plan: &Plan, source: &Beginning) -> Result<Option<Floats>> {
    let TeacherPlan::Model(path) = &plan.teacher else { return Ok(None) };
    if source.pretrained.as_ref().is_some_and(|(own, _)| own == path) {
        return Ok(None);
    }
    let teacher = FloatModel::open(path)?;
    let config = &teacher.config;
    let ours = source.floats.config.vocab_size;
    if config.vocab_size != ours {
        let problem = format!(
            "the teacher's vocab_size is {}, the student's {ours}; distilling needs one vocabulary",
            config.vocab_size
        );
        return Err(Error::file(path, problem));
    }
    if !same_tokens(&teacher.tokenizer()?, &load_tokenizer(&source.tokenizer, ours)?)? {
        let problem =
            format!("the teacher's tokenizer differs from the student's ({})", source.tokenizer.display());
        return Err(Error::file(path, problem));
    }
    fits("data.ctx", plan.recipe.data.ctx, config, "the teacher")?;
    Floats::read(&teacher).map(Some)
}

fn fits(key: &str, ctx: usize, config: &Config, whose: &str) -> Result<()> {
    let longest = config.max_position_embeddings;
    if ctx <= longest {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{key} = {ctx} is longer than the context of {whose} (max_position_embeddings {longest})"
    )))
}

/// Windows of the training text in the order of the run, and how many there are in all.
pub(super) fn training_batches(train: Tokens, plan: &Plan) -> Result<(Batches, u64)> {
    let settings = &plan.recipe.train;
    let batches = Batches::new(train, plan.recipe.data.ctx, settings.batch, plan.recipe.seed)?;
    let all = batches.windows_per_epoch();
    Ok(match plan.cache {
        Some(_) => {
            let micro_batches = settings.steps.saturating_mul(settings.accumulate);
            (batches.fixed(micro_batches.saturating_mul(settings.batch) as u64), all)
        }
        None => (batches, all),
    })
}

/// The inputs of the training's windows of `ctx` tokens, in its order.
pub(super) fn windows(batches: &Batches, ctx: usize) -> impl Iterator<Item = Vec<u32>> {
    (0..).flat_map(move |step| batches.at(step).inputs.chunks(ctx).map(<[u32]>::to_vec).collect::<Vec<_>>())
}

/// Training part and validation part.
pub(super) fn tokens(
    job: &Job,
    (config, tokenizer): (&Config, &Path),
    report: &mut dyn FnMut(Event),
    stop: &AtomicBool,
) -> Result<(Tokens, Tokens)> {
    let settings = &job.plan.recipe.data;
    fits("data.ctx", settings.ctx, config, "the model")?;
    if let Some(eval) = &job.plan.eval {
        fits("eval.ctx", eval.ctx, config, "the model")?;
    }
    let special = |wanted: bool, key: &str, id: Option<u32>| match (wanted, id) {
        (false, _) => Ok(None),
        (true, Some(id)) => Ok(Some(id)),
        (true, None) => {
            Err(Error::Config(format!("data.{key} = true: the model's config.json names no {key}_token_id")))
        }
    };
    let bos = special(settings.bos, "bos", config.bos_token_id)?;
    let named = config.eos_token_ids.first().copied();
    let eos = special(settings.eos.unwrap_or(named.is_some()), "eos", named)?;
    let mut tokenize = |list: &[String]| -> Result<Tokens> {
        if let Some(chat) = &job.plan.data.chat {
            let model = conversations::Model { config, tokenizer, bos, eos };
            return conversations::windows(job, (chat, list), model, report, stop);
        }
        let sources = Source::resolve(list, Path::new(""))?;
        let corpus = Corpus::new(sources, Some(&settings.field), settings.separator.as_deref())?;
        let vocab_size = config.vocab_size;
        let how = Tokenization { corpus: &corpus, tokenizer, vocab_size, bos, eos };
        let (tokens, origin) = how.tokens_on(&job.ranks, job.cache, &mut |progress| {
            report(progress.into());
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        report_origin(&origin, report);
        Ok(tokens)
    };
    let listed = &job.plan.data;
    let all = tokenize(&listed.train)?;
    if listed.valid.is_empty() {
        return all.split(settings.held_out, settings.ctx + 1);
    }
    Ok((all, tokenize(&listed.valid)?))
}

/// What is worth knowing of where a token file came from.
pub(super) fn report_origin(origin: &data::Origin, report: &mut dyn FnMut(Event)) {
    match origin {
        data::Origin::Remade { reason } => {
            report(Event::Note(format!("a token file was damaged and is made anew: {reason}")));
        }
        data::Origin::Continued { text_bytes } => report(Event::Note(format!(
            "went on tokenizing behind the first {text_bytes} bytes, which an earlier run has left"
        ))),
        data::Origin::Reused | data::Origin::Made => {}
    }
}

/// The held-out windows that every validation scores on this rank, in micro-batches, always the same.
fn valid_batches(valid: Tokens, plan: &Plan, ranks: &Ranks) -> Result<Vec<Batch>> {
    let rows = plan.recipe.train.batch / ranks.size();
    let batches = Batches::new(valid, plan.recipe.data.ctx, rows, 0)
        .map_err(|e| Error::Data(format!("validation: {e}")))?;
    let windows = plan.recipe.train.valid_windows.min(batches.windows_per_epoch() as usize);
    let batch = |step: usize| batches.rows(step as u64, 0..rows.min(windows - step * rows));
    Ok((ranks.rank()..windows.div_ceil(rows)).step_by(ranks.size()).map(batch).collect())
}

/// Depth first, then width by activations on the first of `windows`, then padding.
pub(super) fn prune_student(
    floats: &Floats,
    plan: &Plan,
    windows: impl Iterator<Item = Vec<u32>>,
    device: &Device,
) -> Result<Floats> {
    let wanted = &plan.recipe.student;
    let mut floats = floats.clone();
    if let Some(kept) = wanted.layers {
        floats = prune::layers(&floats, kept)?;
    }
    if wanted.hidden_size.is_some() || wanted.intermediate_size.is_some() {
        let windows: Vec<Vec<u32>> = windows.take(PROBE_WINDOWS).collect();
        let importance = prune::Importance::measure(&floats, &windows, device)?;
        if let Some(kept) = wanted.intermediate_size {
            floats = prune::neurons(&floats, kept, &importance)?;
        }
        if let Some(kept) = wanted.hidden_size {
            floats = prune::channels(&floats, kept, &importance)?;
        }
    }
    if let Some(multiple) = wanted.pad_intermediate {
        floats = prune::pad_intermediate(&floats, multiple)?;
    }
    Ok(floats)
}

/// Folder in a run with the float model that the student started from, so that the run can be exported, and what training
/// won can be measured, without its origin.
pub fn student_dir(out: &Path) -> PathBuf {
    out.join("student")
}

/// What the student's directory says of itself.
fn told(beginning: &Beginning) -> serde_json::Value {
    serde_json::json!({"method": "start of a run", "base": beginning.base})
}

/// Writes the start of a run again when what is there is not what was written.
fn mend_start(
    out: &Path,
    floats: &Floats,
    beginning: &Beginning,
    report: &mut dyn FnMut(Event),
) -> Result<()> {
    let target = student_dir(out);
    let path = target.join(PROVENANCE_FILE);
    let whole = check_written(&target, |_| true).and_then(|()| read_json::<serde_json::Value>(&path));
    let is_written = |found: &serde_json::Value| {
        let wanted = serde_json::json!({"qat": 1, "source": told(beginning), "sha256": found["sha256"]});
        std::fs::read(&path).is_ok_and(|text| text == format!("{wanted:#}\n").as_bytes())
    };
    let problem = match whole {
        Ok(found) if is_written(&found) => return Ok(()),
        Ok(_) => format!("{}: not what was written, or of another start", path.display()),
        Err(e) => e.to_string(),
    };
    report(Event::Note(format!("what the run started from is damaged and is written again: {problem}")));
    if target.exists() {
        std::fs::remove_dir_all(&target).map_err(|e| Error::io("cannot remove", &target, e))?;
    }
    write_start(out, floats, beginning)
}

fn write_start(out: &Path, floats: &Floats, beginning: &Beginning) -> Result<()> {
    let (target, source) = (student_dir(out), told(beginning));
    let mut writer =
        HfWriter::create(&target, &floats.config.to_json(), &beginning.companions, FloatType::F32, &source)?;
    for param in params(&floats.config) {
        writer.add_param(&floats.config, &param, floats.values(&param.name)?)?;
    }
    Ok(writer.finish()?)
}

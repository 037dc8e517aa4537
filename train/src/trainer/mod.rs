//! The loop: batches in, gradients through the quantizer, checkpoints out.
//!
//! Prints nothing and knows no command line: it reports [`Event`]s and obeys a stop flag. Invariants: a step depends on
//! the seed, the step number and the weights alone, so that a run that was stopped ends with the same bits as one that was
//! not; whatever goes wrong, the last good checkpoint stays.

mod allocate;
mod blocks;
mod calibration;
mod conversations;
mod course;
mod event;
mod flips;
mod gradients;
mod inside;
mod learner;
mod lock;
mod look;
mod measure;
pub mod mixed;
mod objective;
mod on_policy;
mod prepare;
mod probe;
mod teacher;
#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use candle_core::Device;

pub use calibration::calibration;
pub use event::{Event, Log, StepLog, ValidLog};
pub use flips::FlipLog;
pub use look::{Look, look};
pub use measure::{Measured, measure};
pub use prepare::{Start, student_dir};
pub use probe::probe;

use self::{
    course::Part,
    flips::Flips,
    learner::{Learner, step_tokens},
    objective::{Sums, every_variable_learns},
    prepare::Prepared,
};
use crate::{
    Error, Result,
    checkpoint::{State, VERSION},
    ranks::Ranks,
    recipe::Plan,
    schedule,
    student::Variable,
};

/// One run: a plan, a place and a device.
#[derive(Debug)]
pub struct Job<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// Folder of the run.
    pub out: &'a Path,
    /// Folder of token files, shared between runs.
    pub cache: &'a Path,
    /// Where tensors live.
    pub device: Device,
    /// What to do about a run that is there already.
    pub start: Start,
    /// Who trains it together.
    pub ranks: Ranks,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The stop flag was raised; a checkpoint holds the steps done.
    Stopped {
        /// Steps done.
        step: usize,
    },
}

/// Trains until the plan's last step, or until `stop` is raised on any rank; then saves and returns. Files are written by the first rank alone.
///
/// # Errors
/// Bad input of any kind before the first step; after it, a loss that is not finite or diverges, a full disk, and what another rank ends
/// with. The last checkpoint is whole in every case.
pub fn train(job: &Job, report: &mut dyn FnMut(Event), stop: &AtomicBool) -> Result<Outcome> {
    let mut run = Prepared::new(job, report, stop)?;
    let settings = &job.plan.recipe.train;
    let mut interval = Interval::begin(run.step);
    let mut flips = Flips::default();
    observe(job, &run, &mut flips)?;
    while run.step < settings.steps {
        if job.ranks.any(stop.load(Ordering::Relaxed))? {
            save(job, &mut run, report)?;
            return Ok(Outcome::Stopped { step: run.step });
        }
        let (sums, norm) = take_step(job, &mut run)?;
        interval.sums.add(&sums);
        let last = run.step == settings.steps;
        let part = run.learner.part(job.plan, run.step - 1);
        if run.step == part.first + part.steps || run.step % settings.log_every == 0 {
            let mut line = interval.close(job.plan, &part, run.step, norm);
            line.flips = observe(job, &run, &mut flips)?;
            line.frozen = run.learner.student.held()?;
            job.ranks.on_first(|| run.log.iter_mut().try_for_each(|log| log.add(&line)))?;
            report(Event::Step(line));
        }
        if last || (settings.valid_every > 0 && run.step % settings.valid_every == 0) {
            validate(job, &mut run, report)?;
            interval.began = Instant::now();
        }
        let due = settings.checkpoint_every > 0 && run.step % settings.checkpoint_every == 0;
        // While the loss is too high nothing is saved, so that no good checkpoint is pushed out.
        if last || (due && run.steps_above == 0) {
            save(job, &mut run, report)?;
        }
    }
    Ok(Outcome::Finished)
}

/// One optimizer step: gradients of `accumulate` micro-batches, then the optimizer.
fn take_step(job: &Job, run: &mut Prepared) -> Result<(Sums, f64)> {
    let plan = job.plan;
    let settings = &plan.recipe.train;
    let batches = match &mut run.author {
        Some(author) => {
            run.learner.keep_up_grids(plan, run.step)?;
            author.batches(&run.learner.student, &run.batches, run.step)?
        }
        None => {
            let first = run.step * settings.accumulate;
            (first..first + settings.accumulate)
                .map(|at| run.batches.rows(at as u64, run.rows.clone()))
                .collect()
        }
    };
    let (sums, gradients) = run.learner.gradients(plan, run.step, batches.into_iter())?;
    let loss = sums.loss / sums.tokens as f64;
    let begins = run.step == run.learner.part(plan, run.step).first;
    if begins || run.step == plan.warmup.begin {
        let rounded = run.step >= plan.warmup.begin;
        let optimizer = &run.learner.optimizer;
        let silent = optimizer.silent(&gradients)?;
        every_variable_learns(&run.learner.student, optimizer.variables(), &silent, rounded)?;
    }
    if begins {
        (run.start_loss, run.steps_above) = (Some(loss), 0);
    }
    run.check_loss(loss, plan)?;
    let norm = run.learner.update(plan, run.step, &gradients)?;
    if !norm.is_finite() {
        return Err(run.broken(run.step + 1, &format!("the gradient's norm is {norm}")));
    }
    run.step += 1;
    Ok((sums, norm))
}

/// Which codes have changed since the line before, where that is asked for and there are codes.
fn observe(job: &Job, run: &Prepared, flips: &mut Flips) -> Result<Option<FlipLog>> {
    let asked = job.plan.recipe.quant.log_flips && run.step >= job.plan.warmup.begin;
    if asked && job.ranks.is_first() { flips.observe(&run.learner.student) } else { Ok(None) }
}

fn validate(job: &Job, run: &mut Prepared, report: &mut dyn FnMut(Event)) -> Result<()> {
    run.learner.keep_up_grids(job.plan, run.step)?;
    let objective = run.learner.objective(job.plan);
    let (valid_cross_entropy, valid_kl) =
        objective.validate(&run.learner.student, run.valid.iter(), &job.ranks)?;
    let line = ValidLog { step: run.step, valid_cross_entropy, valid_kl };
    job.ranks.on_first(|| run.log.iter_mut().try_for_each(|log| log.add(&line)))?;
    report(Event::Valid(line));
    Ok(())
}

fn save(job: &Job, run: &mut Prepared, report: &mut dyn FnMut(Event)) -> Result<()> {
    if run.step == 0 || run.saved == Some(run.step) {
        return Ok(());
    }
    run.learner.keep_up_grids(job.plan, run.step)?;
    // Weights that overflowed in this very step would be noticed by the loss of the next.
    if let Some(name) = first_not_finite(run.learner.student.variables())? {
        return Err(run.broken(run.step, &format!("{name} is no longer finite")));
    }
    let state = State {
        qat: VERSION,
        step: run.step,
        recipe: job.plan.recipe.clone(),
        cursor: run.batches.cursor((run.step * job.plan.recipe.train.accumulate) as u64),
        start_loss: run.start_loss,
        sha256: Default::default(),
    };
    let keep = job.plan.recipe.train.keep_checkpoints;
    let Learner { student, optimizer, .. } = &run.learner;
    let moments = optimizer.state()?;
    let path = job.ranks.on_first(|| run.checkpoints.save(state, student, moments, keep))?;
    run.saved = Some(run.step);
    path.into_iter().for_each(|path| report(Event::Saved { step: run.step, path }));
    Ok(())
}

/// Name of the first variable that holds a NaN or an infinity.
fn first_not_finite(variables: &[Variable]) -> Result<Option<&str>> {
    for variable in variables {
        // 0·x is 0 for every finite x, and NaN for the rest.
        if (variable.var.as_tensor() * 0.0)?.sum_all()?.to_scalar::<f32>()? != 0.0 {
            return Ok(Some(&variable.name));
        }
    }
    Ok(None)
}

/// Sums since the last line of the log.
struct Interval {
    first_step: usize,
    began: Instant,
    sums: Sums,
}

impl Interval {
    fn begin(step: usize) -> Self {
        Self { first_step: step, began: Instant::now(), sums: Sums::default() }
    }

    /// The line for the steps so far; a new interval begins.
    fn close(&mut self, plan: &Plan, part: &Part, step: usize, grad_norm: f64) -> StepLog {
        let done = std::mem::replace(self, Self::begin(step));
        let tokens = ((step - done.first_step) * step_tokens(plan)) as f64;
        let learned = done.sums.tokens as f64;
        StepLog {
            step,
            loss: done.sums.loss / learned,
            terms: done.sums.terms.into_iter().map(|(name, sum)| (name, sum / learned)).collect(),
            lr: plan.optim.lr * part.rate(plan, step - 1),
            lambda: schedule::rounding(&plan.warmup, step - 1).unwrap_or(0.0),
            grad_norm,
            flips: None,
            frozen: None,
            tokens: (step * step_tokens(plan)) as u64,
            tps: tokens / done.began.elapsed().as_secs_f64().max(1e-9),
        }
    }
}

impl Prepared {
    /// A loss that can't be followed ends the run before it can spoil the weights.
    fn check_loss(&mut self, loss: f64, plan: &Plan) -> Result<()> {
        if !loss.is_finite() {
            return Err(self.broken(self.step + 1, &format!("the loss is {loss}")));
        }
        let limit = self.start_loss.unwrap_or(loss) + plan.recipe.train.divergence;
        self.steps_above = if loss > limit { self.steps_above + 1 } else { 0 };
        if self.steps_above < 10 {
            return Ok(());
        }
        Err(self.broken(
            self.step + 1,
            &format!("the loss {loss:.3} has been above {limit:.3} (start + train.divergence) for ten steps"),
        ))
    }

    /// The end of a run in its step `step`, counted from 1.
    fn broken(&self, step: usize, what: &str) -> Error {
        let kept = match self.saved {
            Some(step) => format!("the checkpoint of step {step} is kept"),
            None => "no checkpoint was written yet".to_owned(),
        };
        Error::Data(format!(
            "step {step}: {what}; {kept}; lower optim.lr or optim.scale_lr, or lengthen optim.warmup_steps"
        ))
    }
}

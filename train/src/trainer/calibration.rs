//! Which text a run's matrices are measured on before it begins: the windows that its training sees first.
//!
//! Knows neither what is measured nor how. Invariant: a function of the recipe and its data alone, so that a baseline made after the
//! run is measured on the text that the run's own start was.

use std::sync::atomic::AtomicBool;

use super::{
    Event, Job, mixed,
    prepare::{Beginning, PROBE_WINDOWS, tokens, training_batches, windows},
};
use crate::{
    Result,
    data::Batches,
    recipe::Plan,
    student::{Floats, gptq::Calibration},
};

/// The text on which GPTQ measures the inputs of each matrix, for the run of `job`.
///
/// # Errors
/// The text or the student's origin can't be read.
pub fn calibration(job: &Job) -> Result<Calibration> {
    let source = Beginning::open(&job.plan.origin, job.plan.recipe.seed)?;
    let (train, _) = tokens(job, source.words(), &mut |_| {}, &AtomicBool::new(false))?;
    Ok(text(job.plan, &training_batches(train, job.plan)?.0))
}

/// The same from batches that are there.
pub(super) fn text(plan: &Plan, batches: &Batches) -> Calibration {
    let all = usize::try_from(batches.windows_per_epoch()).unwrap_or(usize::MAX);
    first(plan, batches, plan.recipe.quant.calibration_windows.min(all))
}

/// The formats that are chosen by what they cost, where the plan asks for it.
///
/// # Errors
/// A target that no choice meets; the device is out of memory.
pub(super) fn choose_formats(
    job: &Job,
    floats: &Floats,
    batches: &Batches,
    report: &mut dyn FnMut(Event),
) -> Result<Option<mixed::Chosen>> {
    let Some(mix) = &job.plan.mix else { return Ok(None) };
    let also = match (mix.embeddings, mix.head) {
        (false, false) => "",
        (true, false) => " and the embeddings",
        (false, true) => " and the head",
        (true, true) => ", the embeddings and the head",
    };
    report(Event::Note(format!("measuring {} formats for each projection{also}", mix.candidates.len())));
    let text = first(job.plan, batches, PROBE_WINDOWS);
    let chosen = mixed::choose(floats, &job.plan.quantization, mix, &text, &job.device)?;
    report(Event::Note(chosen.summary()));
    Ok(Some(chosen))
}

fn first(plan: &Plan, batches: &Batches, count: usize) -> Calibration {
    let windows = windows(batches, plan.recipe.data.ctx).take(count).collect();
    Calibration { windows, batch: plan.recipe.train.batch }
}

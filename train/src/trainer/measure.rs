//! How fast a recipe trains on this machine: its own steps, on random tokens.
//!
//! Reads no text, writes no file and prints nothing. Invariant: what is timed is what [`super::train`] does in a step; tokens are
//! a function of the seed and the vocabulary alone, simple enough to be made by any other program that is measured beside it.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use candle_core::Device;

use super::{
    learner::{Learner, step_tokens},
    prepare::{Beginning, prune_student, teacher_floats},
    teacher::Teacher,
};
use crate::{Result, data::Batch, ranks::Ranks, recipe::Plan};

/// What a few steps took.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Parameters of the student, learned scales among them.
    pub parameters: usize,
    /// Tokens of a step.
    pub step_tokens: usize,
    /// What each step after the warm-up took.
    pub steps: Vec<Duration>,
    /// What the optimizer took in a few more, in which the device was waited for before it and behind it.
    pub updates: Vec<Duration>,
    /// Loss of each step, the warm-up's first, in nats a token.
    pub losses: Vec<f64>,
}

/// Steps that only the optimizer's time is taken of.
const APART: usize = 3;

impl Measured {
    /// Median time of a step.
    pub fn step(&self) -> Duration {
        median(&self.steps)
    }

    /// Median time of the optimizer in a step.
    pub fn update(&self) -> Duration {
        median(&self.updates)
    }

    /// Tokens per second at the median step.
    pub fn rate(&self) -> f64 {
        self.step_tokens as f64 / self.step().as_secs_f64().max(1e-9)
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Takes `warm_up` steps of `plan` on `device` as one of `ranks`, then times `steps` more.
///
/// # Errors
/// A model that can't be read or doesn't fit the formats; a device out of memory; another rank has failed.
pub fn measure(
    plan: &Plan,
    (device, ranks): (&Device, &Ranks),
    warm_up: usize,
    steps: usize,
) -> Result<Measured> {
    plan.precision.check(device)?;
    let beginning = Beginning::open(&plan.origin, plan.recipe.seed)?;
    let teacher = teacher_floats(plan, &beginning)?;
    let settings = &plan.recipe;
    let (ctx, all) = (settings.data.ctx, settings.train.batch);
    let rows = ranks.divide("train.batch", all)?;
    let vocab = beginning.floats.config.vocab_size;
    let mut tokens = RandomTokens::new(settings.seed, vocab);
    let windows = std::iter::repeat_with(|| tokens.batch(1, ctx).inputs);
    let floats = prune_student(&beginning.floats, plan, windows, device)?;
    // At hand also where the recipe has a cache: random tokens are in none.
    let at_hand = Teacher::new(plan, teacher.as_ref().unwrap_or(&beginning.floats), device)?;
    let mut learner = Learner::new(plan, &floats, plan.quantization.clone(), at_hand, (device, ranks))?;
    drop((floats, teacher, beginning));
    // With tokens of its own: those of the steps are the same in every recipe.
    let others = RandomTokens::new(settings.seed + 1, vocab).rows((all, rows.clone()), ctx);
    learner.look_inside(plan, &others)?;
    let mut measured = Measured {
        parameters: learner.student.variables().iter().map(|v| v.var.elem_count()).sum(),
        step_tokens: step_tokens(plan),
        steps: Vec::new(),
        updates: Vec::new(),
        losses: Vec::new(),
    };
    let mut batches =
        || (0..settings.train.accumulate).map(|_| tokens.rows((all, rows.clone()), ctx)).collect::<Vec<_>>();
    // Made before the clock starts: as in a run, a step is begun while a GPU is still busy with the end of the one before.
    let prepared: Vec<Vec<Batch>> = (0..warm_up + steps).map(|_| batches()).collect();
    let mut began = Instant::now();
    for (step, batches) in prepared.into_iter().enumerate() {
        if step == warm_up {
            device.synchronize()?;
            began = Instant::now();
        }
        let (sums, of_variables) = learner.gradients(plan, step, batches.into_iter())?;
        learner.update(plan, step, &of_variables)?;
        if step + 1 == warm_up + steps {
            device.synchronize()?;
        }
        if step >= warm_up {
            let now = Instant::now();
            measured.steps.push(now - std::mem::replace(&mut began, now));
        }
        measured.losses.push(sums.loss / measured.step_tokens as f64);
    }
    for step in warm_up + steps..warm_up + steps + APART {
        measured.updates.push(take(&mut learner, plan, step, batches(), device)?.update);
    }
    Ok(measured)
}

/// What a step took.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepTime {
    /// Forward and backward pass of all micro-batches.
    pub gradients: Duration,
    /// The optimizer.
    pub update: Duration,
}

/// Takes step `step` on `batches`, waiting for the device in between; says what it took.
pub(super) fn take(
    learner: &mut Learner,
    plan: &Plan,
    step: usize,
    batches: Vec<Batch>,
    device: &Device,
) -> Result<StepTime> {
    let began = Instant::now();
    let (_, of_variables) = learner.gradients(plan, step, batches.into_iter())?;
    device.synchronize()?;
    let gradients = began.elapsed();
    learner.update(plan, step, &of_variables)?;
    device.synchronize()?;
    Ok(StepTime { gradients, update: began.elapsed() - gradients })
}

/// Token ids without a pattern: the upper bits of Knuth's linear congruential generator (MMIX).
pub(super) struct RandomTokens {
    state: u64,
    vocab: u64,
}

impl RandomTokens {
    pub fn new(seed: u64, vocab: usize) -> Self {
        Self { state: seed, vocab: vocab as u64 }
    }

    fn next(&mut self) -> u32 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.state >> 33) % self.vocab) as u32
    }

    /// `rows` windows of `context + 1` tokens.
    pub fn batch(&mut self, rows: usize, context: usize) -> Batch {
        self.rows((rows, 0..rows), context)
    }

    /// The windows `rows` of a batch of `all`.
    fn rows(&mut self, (all, rows): (usize, Range<usize>), context: usize) -> Batch {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for row in 0..all {
            let window: Vec<u32> = (0..=context).map(|_| self.next()).collect();
            if rows.contains(&row) {
                inputs.extend(&window[..context]);
                targets.extend(&window[1..]);
            }
        }
        Batch { inputs, targets, rows: rows.len(), context, windows: Vec::new(), packed: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_tokens_are_those_that_another_program_would_make() {
        // 6364136223846793005 + 1442695040888963407 = 7806831264735756412, whose upper 31 bits are 908834774.
        let mut tokens = RandomTokens::new(1, 1000);
        assert_eq!(tokens.next(), 774);
        let batch = tokens.batch(2, 3);
        assert_eq!((batch.inputs.len(), batch.targets.len(), batch.rows, batch.context), (6, 6, 2, 3));
        assert_eq!(batch.inputs[1..3], batch.targets[..2]);
        assert_eq!(batch.inputs[4..6], batch.targets[3..5]);
    }

    #[test]
    fn the_middle_of_the_steps_counts() {
        let times = |ms: [u64; 3]| ms.map(Duration::from_millis).to_vec();
        let (steps, updates) = (times([10, 2, 100]), times([2, 1, 1]));
        let measured = Measured { parameters: 1, step_tokens: 20, steps, updates, losses: vec![] };
        assert_eq!(
            (measured.step(), measured.update()),
            (Duration::from_millis(10), Duration::from_millis(1))
        );
        assert!((measured.rate() - 2000.0).abs() < 1e-9);
    }
}

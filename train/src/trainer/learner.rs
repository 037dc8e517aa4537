//! What a step needs of a run: the student, whom it learns from, and the optimizer that moves it.
//!
//! Knows no files, no log and no clock. Invariant: gradients and update are functions of the plan, the step's number, its
//! batches and what the step before left.

use candle_core::{Device, Tensor};
use qat_infer::model::Ropes;

use super::{
    blocks::{Block, of_layer},
    course::{self, Part, Target},
    gradients::StepGradients,
    inside::{Inside, length},
    objective::{Objective, Sums, Unread},
    teacher::Teacher,
};
use crate::{
    Result,
    checkpoint::Checkpoint,
    data::Batch,
    device::set_tf32,
    exec::RopeTable,
    ops::gpu::Reader,
    optim::{Optimizer, of_grid},
    ranks::Ranks,
    recipe::{Plan, Quantization},
    schedule,
    student::{Draw, Floats, Moment, Student, Variable},
};

/// A student between two steps.
pub(super) struct Learner {
    pub student: Student,
    teacher: Teacher,
    rope: RopeTable,
    inside: Option<Inside>,
    /// The float model of the start, where layers are compared with its.
    start: Option<Floats>,
    part: Part,
    ranks: Ranks,
    reader: Reader,
    /// Of the variables that the part moves.
    pub optimizer: Optimizer,
}

impl Learner {
    /// The student that starts from `floats`, quantized so, before `teacher`, on one of `ranks`.
    ///
    /// # Errors
    /// A format that can't hold a tensor; a device out of memory.
    pub fn new(
        plan: &Plan,
        floats: &Floats,
        quantization: Quantization,
        teacher: Teacher,
        (device, ranks): (&Device, &Ranks),
    ) -> Result<Self> {
        set_tf32(plan.recipe.train.tf32);
        let ctx = plan.recipe.data.ctx;
        let student = Student::new(floats, quantization, device)?;
        let rope = RopeTable::new(&Ropes::new(&student.config), ctx, device)?;
        course::check(plan, student.config.layers)?;
        let part = Part::at(plan, student.config.layers, 0);
        let optimizer = Optimizer::new(plan.optim.clone(), &moved(&student, part.target), ranks)?;
        let start = plan.blocks.map(|_| floats.clone());
        let (ranks, reader) = (ranks.clone(), Reader::new(device)?);
        Ok(Self { student, teacher, rope, inside: None, start, part, ranks, reader, optimizer })
    }

    /// The part of the course that `step` belongs to.
    pub fn part(&self, plan: &Plan, step: usize) -> Part {
        Part::at(plan, self.student.config.layers, step)
    }

    /// Makes ready for `step`: with a new part begins a new optimizer.
    fn turn_to(&mut self, plan: &Plan, step: usize) -> Result<()> {
        let part = self.part(plan, step);
        if part != self.part {
            let moved = moved(&self.student, part.target);
            self.optimizer = Optimizer::new(plan.optim.clone(), &moved, &self.ranks)?;
            self.part = part;
        }
        Ok(())
    }

    /// Goes on where `checkpoint` was written.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn restore(&mut self, plan: &Plan, checkpoint: &Checkpoint) -> Result<()> {
        let done = checkpoint.state.step;
        self.turn_to(plan, done.saturating_sub(1))?;
        checkpoint.restore(&self.student, &mut self.optimizer, done - self.part.first)
    }

    /// Adds the terms on what happens inside, where the plan has any: before anything is learned, because their factors may follow from
    /// the gradients at the start of a batch of which `batch` are this rank's rows. Says what these are.
    ///
    /// # Errors
    /// A layer that the student doesn't have; gradients that can't be compared.
    pub fn look_inside(&mut self, plan: &Plan, batch: &Batch) -> Result<Option<String>> {
        let Some(features) = &plan.loss.features else { return Ok(None) };
        self.inside = Some(Inside::new(features, &self.student, &self.teacher)?);
        if !features.balance {
            return Ok(None);
        }
        let length_of = |index| {
            let moment = Moment { precision: plan.precision, ..Moment::full() };
            let parts = self.objective(plan).parts(&self.student, batch, Some(moment))?;
            length(parts.gradients_of(index)?, &self.student, &self.ranks)
        };
        let terms = self.inside.as_ref().map_or(0, |inside| inside.weights().len());
        let whole = length_of(None)?;
        let lengths = (0..terms).map(|index| length_of(Some(index))).collect::<Result<Vec<_>>>()?;
        self.inside.as_mut().map(|inside| inside.balance(whole, &lengths)).transpose()
    }

    /// What is lowered, and measured on held-out windows.
    pub fn objective<'a>(&'a self, plan: &'a Plan) -> Objective<'a> {
        Objective {
            plan: &plan.loss,
            teacher: &self.teacher,
            rope: &self.rope,
            inside: self.inside.as_ref(),
            recompute: plan.recipe.train.checkpoint_layers,
            precision: plan.precision,
            reader: &self.reader,
        }
    }

    /// Until rounding begins, what would ship are the weights of the moment on grids of the moment; it begins with such grids.
    ///
    /// # Errors
    /// A device out of memory.
    pub fn keep_up_grids(&self, plan: &Plan, step: usize) -> Result<()> {
        let begin = plan.warmup.begin;
        if begin > 0 && step <= begin { self.student.choose_grids() } else { Ok(()) }
    }

    /// Sums of the losses over the micro-batches of step `step`, counted from 0, of all ranks, of which `batches` are this one's rows; and
    /// the gradient of what it moves.
    ///
    /// # Errors
    /// A variable that receives no gradient, by name; a device out of memory; another rank has failed.
    pub fn gradients(
        &mut self,
        plan: &Plan,
        step: usize,
        batches: impl Iterator<Item = Batch>,
    ) -> Result<(Sums, Vec<Tensor>)> {
        self.turn_to(plan, step)?;
        if step == plan.warmup.begin {
            self.keep_up_grids(plan, step)?;
        }
        let moment = moment(plan, step);
        let (mut sums, mut gradients) = (Sums::default(), StepGradients::new(&self.optimizer));
        let batches: Vec<Batch> = batches.collect();
        let tokens = self.learned(&batches)?;
        let last = batches.len().saturating_sub(1);
        let mut unread: Option<Unread> = None;
        for (at, batch) in batches.into_iter().enumerate() {
            if let Some(before) = unread.take() {
                sums.add(&before.read()?);
            }
            gradients.begin(at == last);
            unread = Some(match (self.part.target, &self.start) {
                (Target::Layer(index), Some(start)) => {
                    let (student, rope, precision) = (&self.student, &self.rope, plan.precision);
                    let block = Block { student, start, rope, index, precision, reader: &self.reader };
                    block.accumulate(&batch, moment, tokens, &mut gradients)?
                }
                _ => {
                    self.objective(plan).accumulate(&self.student, &batch, moment, tokens, &mut gradients)?
                }
            });
        }
        let gradients = gradients.finish()?;
        // Read last, so that a GPU has all of the step to do meanwhile.
        if let Some(unread) = unread {
            sums.add(&unread.read()?);
        }
        sums.tokens = tokens;
        Ok((sums.over(&self.ranks)?, gradients))
    }

    /// Tokens that are learned in a step of which `batches` are this rank's.
    fn learned(&self, batches: &[Batch]) -> Result<usize> {
        let own: usize = batches.iter().map(Batch::learned).sum();
        // Of conversations only answers are; of text as much on every rank.
        let differs = batches.iter().any(|batch| batch.packed.is_some());
        Ok(if differs { self.ranks.sum(&[own as f64])?[0] as usize } else { own * self.ranks.size() })
    }

    /// Moves the variables, but for weights that are held; returns the norm of the gradient of weights and norms before clipping.
    ///
    /// # Errors
    /// A device out of memory.
    pub fn update(&mut self, plan: &Plan, step: usize, gradients: &[Tensor]) -> Result<f64> {
        let part = self.part(plan, step);
        let norm = self.optimizer.step(gradients, part.rate(plan, step))?;
        // Where only a share of the rounding is blended in, a code says little of its weight.
        if schedule::rounding(&plan.warmup, step) == Some(1.0) {
            let layer = if let Target::Layer(layer) = part.target { Some(layer) } else { None };
            self.student.follow(layer)?;
        }
        Ok(norm)
    }
}

/// The variables that steps with this target move.
fn moved(student: &Student, target: Target) -> Vec<Variable> {
    let all = student.variables();
    match target {
        Target::Whole => all.to_vec(),
        Target::Layer(index) => of_layer(all, index).cloned().collect(),
        Target::Scales => all.iter().filter(|variable| of_grid(variable.kind)).cloned().collect(),
    }
}

/// How the student is rounded in step `step`; none: it is float.
fn moment(plan: &Plan, step: usize) -> Option<Moment> {
    let share = plan.recipe.quant.noise;
    let draw = Draw { seed: plan.recipe.seed, step, share };
    let lambda = schedule::rounding(&plan.warmup, step)?;
    Some(Moment { lambda, noise: (share < 1.0).then_some(draw), precision: plan.precision })
}

/// Tokens of an optimizer step.
pub(super) fn step_tokens(plan: &Plan) -> usize {
    plan.recipe.train.batch * plan.recipe.train.accumulate * plan.recipe.data.ctx
}

//! What a step needs of a run: the student, whom it learns from, and the optimizer that moves it.
//!
//! Knows no files, no log and no clock. Invariant: gradients and update are functions of the plan, the step's number, its
//! batches and what the step before left.

use candle_core::{Device, Tensor};
use qat_infer::model::Rope;

use super::{
    inside::Inside,
    objective::{Objective, Sums},
    teacher::Teacher,
};
use crate::{
    Result,
    data::Batch,
    device::set_tf32,
    exec::RopeTable,
    optim::Optimizer,
    recipe::{Plan, Quantization},
    schedule,
    student::{Draw, Floats, Moment, Student},
};

/// A student between two steps.
pub(super) struct Learner {
    pub student: Student,
    teacher: Teacher,
    rope: RopeTable,
    inside: Option<Inside>,
    pub optimizer: Optimizer,
}

impl Learner {
    /// The student that starts from `floats`, quantized so, before `teacher`.
    ///
    /// # Errors
    /// A format that can't hold a tensor; a device out of memory.
    pub fn new(
        plan: &Plan,
        floats: &Floats,
        quantization: Quantization,
        teacher: Teacher,
        device: &Device,
    ) -> Result<Self> {
        set_tf32(plan.recipe.train.tf32);
        let ctx = plan.recipe.data.ctx;
        let student = Student::new(floats, quantization, device)?;
        let rope = RopeTable::new(&Rope::new(&student.config), ctx, device)?;
        let optimizer = Optimizer::new(plan.optim.clone(), student.variables())?;
        Ok(Self { student, teacher, rope, inside: None, optimizer })
    }

    /// Adds the terms on what happens inside, where the plan has any: before anything is learned, because their factors may follow from
    /// the gradients of `batch` at the start. Says what these are.
    ///
    /// # Errors
    /// A layer that the student doesn't have; gradients that can't be compared.
    pub fn look_inside(&mut self, plan: &Plan, batch: &Batch) -> Result<Option<String>> {
        let Some(features) = &plan.loss.features else { return Ok(None) };
        self.inside = Some(Inside::new(features, &self.student, &self.teacher)?);
        if !features.balance {
            return Ok(None);
        }
        let parts = self.objective(plan).parts(&self.student, batch, Some(Moment::full()))?;
        self.inside.as_mut().map(|inside| inside.balance(&parts, &self.student)).transpose()
    }

    /// What is lowered, and measured on held-out windows.
    pub fn objective<'a>(&'a self, plan: &'a Plan) -> Objective<'a> {
        Objective {
            plan: &plan.loss,
            teacher: &self.teacher,
            rope: &self.rope,
            ctx: plan.recipe.data.ctx,
            inside: self.inside.as_ref(),
            recompute: plan.recipe.train.checkpoint_layers,
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

    /// Sums of the losses over the micro-batches of step `step`, counted from 0, and the gradient of each variable.
    ///
    /// # Errors
    /// A variable that receives no gradient, by name; a device out of memory.
    pub fn gradients(
        &self,
        plan: &Plan,
        step: usize,
        batches: impl Iterator<Item = Batch>,
    ) -> Result<(Sums, Vec<Tensor>)> {
        if step == plan.warmup.begin {
            self.keep_up_grids(plan, step)?;
        }
        let moment = moment(plan, step);
        let (mut sums, mut gradients) = (Sums::default(), Vec::new());
        for batch in batches {
            let objective = self.objective(plan);
            let tokens = step_tokens(plan);
            sums.add(&objective.accumulate(&self.student, &batch, moment, tokens, &mut gradients)?);
        }
        Ok((sums, gradients))
    }

    /// Moves the variables; returns the norm of the gradient of weights and norms before clipping.
    ///
    /// # Errors
    /// A device out of memory.
    pub fn update(&mut self, plan: &Plan, step: usize, gradients: &[Tensor]) -> Result<f64> {
        let rate = schedule::learning_rate(&plan.optim, step, plan.recipe.train.steps);
        self.optimizer.step(self.student.variables(), gradients, rate)
    }
}

/// How the student is rounded in step `step`; none: it is float.
fn moment(plan: &Plan, step: usize) -> Option<Moment> {
    let share = plan.recipe.quant.noise;
    let draw = Draw { seed: plan.recipe.seed, step, share };
    let lambda = schedule::rounding(&plan.warmup, step)?;
    Some(Moment { lambda, noise: (share < 1.0).then_some(draw) })
}

/// Tokens of an optimizer step.
pub(super) fn step_tokens(plan: &Plan) -> usize {
    plan.recipe.train.batch * plan.recipe.train.accumulate * plan.recipe.data.ctx
}

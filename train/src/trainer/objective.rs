//! The weighted sum of the loss terms and its gradient, one micro-batch at a time.
//!
//! Losses are sums over tokens; the one division, by the tokens of the whole step, is here.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::teacher::{Teacher, head, logits};
use crate::{
    Error, Result,
    data::Batch,
    exec::RopeTable,
    loss::{self, Divergence, Head, Term},
    recipe::LossPlan,
    student::{Moment, Student, Variable},
};

/// Sums of the terms over the tokens seen, by name.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    /// The weighted loss.
    pub loss: f64,
    /// Unweighted terms.
    pub terms: BTreeMap<String, f64>,
}

impl Sums {
    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        for (name, value) in &other.terms {
            *self.terms.entry(name.clone()).or_default() += value;
        }
    }
}

/// Name of a divergence, as the recipe spells its weight.
fn name(kind: Divergence) -> &'static str {
    match kind {
        Divergence::ForwardKl => "forward_kl",
        Divergence::ReverseKl => "reverse_kl",
        Divergence::Jsd { .. } => "jsd",
    }
}

/// What a step is asked to lower.
#[derive(Debug)]
pub struct Objective<'a> {
    /// Weights of the terms.
    pub plan: &'a LossPlan,
    /// Whose predictions are the target.
    pub teacher: &'a Teacher,
    /// The student's angles.
    pub rope: &'a RopeTable,
    /// Window.
    pub ctx: usize,
}

impl Objective<'_> {
    /// Rounds the student as `moment` says (not at all where there is none) and adds the gradient of one micro-batch to `gradients` (empty before the first of a step) and returns the sums.
    ///
    /// # Errors
    /// A variable that receives no gradient, by name; a device out of memory.
    pub fn accumulate(
        &self,
        student: &Student,
        batch: &Batch,
        moment: Option<Moment>,
        step_tokens: usize,
        gradients: &mut Vec<Tensor>,
    ) -> Result<Sums> {
        let head = head(&student.decoder_at(moment)?, self.rope, &batch.inputs, self.ctx)?;
        let (loss, sums) = self.loss(student, &head, batch)?;
        drop(head);
        let mut store = (loss / step_tokens as f64)?.backward()?;
        for (index, variable) in student.variables().iter().enumerate() {
            let gradient = match store.remove(variable.var.as_tensor()) {
                Some(gradient) => gradient.detach(),
                // Without rounding, grids take no part.
                None if moment.is_none() && variable.kind.of_grid() => variable.var.zeros_like()?,
                None => return Err(no_gradient(variable)),
            };
            match gradients.get_mut(index) {
                Some(sum) => *sum = (&*sum + gradient)?,
                None => gradients.push(gradient),
            }
        }
        Ok(sums)
    }

    fn loss(&self, student: &Student, head: &Head, batch: &Batch) -> Result<(Tensor, Sums)> {
        let logits = head.logits()?;
        let mut terms = Vec::new();
        let mut sums = Sums::default();
        let mut add = |name: &str, weight: f64, term: Term| -> Result<()> {
            let nats = term.sum()?;
            sums.terms.insert(name.to_owned(), nats);
            sums.loss += weight * nats;
            terms.push((weight, term));
            Ok(())
        };
        if self.plan.cross_entropy > 0.0 {
            let term = loss::cross_entropy(&logits, &batch.targets)?;
            add("cross_entropy", self.plan.cross_entropy, term)?;
        }
        if !self.plan.divergences.is_empty() {
            let teacher = self.teacher.logits(student, self.rope, &batch.inputs, self.ctx)?;
            let teacher = teacher.ok_or_else(|| Error::Config("a divergence needs a [teacher]".into()))?;
            for &(kind, weight) in &self.plan.divergences {
                let term = loss::divergence(&logits, &teacher, self.plan.temperature as f32, kind)?;
                add(name(kind), weight, term)?;
            }
        }
        let total = head.loss(logits, terms)?;
        let total = total.ok_or_else(|| Error::Config("[loss]: every weight is 0".into()))?;
        Ok((total, sums))
    }

    /// Cross entropy and, where there is a teacher, KL(teacher ‖ student) of held-out windows, on the grid that would ship.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn validate<'b>(
        &self,
        student: &Student,
        batches: impl Iterator<Item = &'b Batch>,
    ) -> Result<(f64, Option<f64>)> {
        let decoder = student.decoder(Some(1.0))?;
        let (mut cross_entropy, mut kl, mut tokens) = (0.0, None, 0usize);
        for batch in batches {
            let ours = logits(&decoder, self.rope, &batch.inputs, self.ctx)?.detach();
            cross_entropy += loss::cross_entropy(&ours, &batch.targets)?.sum()?;
            if let Some(theirs) = self.teacher.logits(student, self.rope, &batch.inputs, self.ctx)? {
                let term = loss::divergence(&ours, &theirs, 1.0, Divergence::ForwardKl)?;
                *kl.get_or_insert(0.0) += term.sum()?;
            }
            tokens += batch.targets.len();
        }
        let per_token = |sum: f64| sum / tokens.max(1) as f64;
        Ok((per_token(cross_entropy), kl.map(per_token)))
    }
}

fn no_gradient(variable: &Variable) -> Error {
    Error::Config(format!(
        "{}: receives no gradient; it would never be trained, so the run is refused",
        variable.name
    ))
}

/// Refuses a first step in which a variable's gradient is zero throughout: something on its way cuts or rounds it off. Unless the
/// student is `rounded`, grids have none.
///
/// # Errors
/// The first such variable, by name; or that nothing at all has a gradient.
pub fn every_variable_learns(variables: &[Variable], gradients: &[Tensor], rounded: bool) -> Result<()> {
    let mut silent = Vec::new();
    let mut awaited = 0;
    for (variable, gradient) in variables.iter().zip(gradients).filter(|(v, _)| rounded || !v.kind.of_grid())
    {
        awaited += 1;
        if gradient.abs()?.sum_all()?.to_scalar::<f32>()? == 0.0 {
            silent.push(variable);
        }
    }
    match silent.first() {
        None => Ok(()),
        Some(_) if silent.len() == awaited => Err(Error::Config(
            "no variable has a gradient in the first step: student and teacher agree already, so there is nothing to learn \
             (a float student with its own float teacher needs loss.cross_entropy)"
                .into(),
        )),
        Some(variable) => Err(no_gradient(variable)),
    }
}

//! The weighted sum of the loss terms and its gradient, one micro-batch at a time.
//!
//! Losses are sums over tokens; the one division, by the tokens of the whole step, is here.

use std::{borrow::Cow, collections::BTreeMap};

use candle_core::Tensor;

use super::{
    gradients::StepGradients,
    inside::{Found, Inside},
    teacher::{Pass, Predictions, Teacher, forward_batch},
};
use crate::{
    Error, Result,
    data::{Batch, Packed},
    exec::RopeTable,
    loss::{Answers, Divergence, Head, Losses, Term},
    ops::{
        gpu::{Later, Reader},
        tape::{Gradients, Tape, silent},
    },
    optim::of_grid,
    precision::Precision,
    ranks::Ranks,
    recipe::LossPlan,
    student::{Moment, Student, Variable},
};

/// Sums of the terms over the tokens seen, by name.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    /// The weighted loss.
    pub loss: f64,
    /// Tokens that were learned.
    pub tokens: usize,
    /// Unweighted terms.
    pub terms: BTreeMap<String, f64>,
}

impl Sums {
    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.tokens += other.tokens;
        for (name, value) in &other.terms {
            *self.terms.entry(name.clone()).or_default() += value;
        }
    }

    /// These sums of all ranks together; the tokens are those of all already.
    ///
    /// # Errors
    /// Another rank has failed.
    pub fn over(mut self, ranks: &Ranks) -> Result<Self> {
        let own: Vec<f64> = std::iter::once(self.loss).chain(self.terms.values().copied()).collect();
        let mut sums = ranks.sum(&own)?.into_iter();
        let loss = std::iter::once(&mut self.loss);
        loss.chain(self.terms.values_mut()).zip(&mut sums).for_each(|(own, sum)| *own = sum);
        Ok(self)
    }
}

/// The sums of a micro-batch, which a GPU may not have made yet.
pub struct Unread {
    /// Names of the terms, and their weights in the loss.
    pub terms: Vec<(&'static str, f64)>,
    /// Their sums.
    pub values: Later,
}

impl Unread {
    /// Waits for them.
    ///
    /// # Errors
    /// The device failed.
    pub fn read(self) -> Result<Sums> {
        let mut sums = Sums::default();
        for ((name, weight), nats) in self.terms.into_iter().zip(self.values.read()?) {
            let nats = f64::from(nats);
            sums.loss += weight * nats;
            sums.terms.insert(name.to_owned(), nats);
        }
        Ok(sums)
    }
}

/// Name of a term, as the recipe spells its weight.
fn name(term: Term) -> &'static str {
    match term {
        Term::CrossEntropy => "cross_entropy",
        Term::Divergence(Divergence::ForwardKl) => "forward_kl",
        Term::Divergence(Divergence::ReverseKl) => "reverse_kl",
        Term::Divergence(Divergence::Jsd { .. }) => "jsd",
        Term::Divergence(Divergence::SkewKl { .. }) => "skew_kl",
        Term::Divergence(Divergence::SkewReverseKl { .. }) => "skew_reverse_kl",
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
    /// Terms on what happens inside.
    pub inside: Option<&'a Inside>,
    /// Whether the backward pass computes the insides of layers again.
    pub recompute: bool,
    /// Who reads the sums.
    pub reader: &'a Reader,
    /// What training computes in; validation computes in f32.
    pub precision: Precision,
}

/// The terms of a batch, and the way back to the student's variables.
pub struct Parts {
    /// Σ weight·sum over the terms on predictions.
    total: Tensor,
    /// The sum of each.
    sums: Tensor,
    /// Terms on what happens inside.
    inside: Vec<Found>,
    tape: Tape,
}

impl Parts {
    /// The gradients of the term number `index` among those on what happens inside, or of the sum of those on predictions.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn gradients_of(self, index: Option<usize>) -> Result<Gradients> {
        let inside = index.and_then(|index| self.inside.get(index)).map(|(_, _, sum)| sum);
        Ok(self.tape.gradients(&[(inside.unwrap_or(&self.total), 1.0)])?)
    }

    /// The gradients of the sum of all terms, each told as it comes.
    #[cfg(test)]
    pub(crate) fn gradients_told(
        self,
        variables: &[Variable],
        tell: &mut dyn FnMut(candle_core::TensorId, Tensor) -> candle_core::Result<()>,
    ) -> Result<()> {
        let within = self.inside.iter().map(|(_, factor, sum)| (sum, *factor));
        let all: Vec<_> = std::iter::once((&self.total, 1.0)).chain(within).collect();
        let wanted = variables.iter().map(|variable| variable.var.as_tensor().id()).collect();
        self.tape.gradients_told(&all, &wanted, tell)?;
        Ok(())
    }
}

impl Objective<'_> {
    /// Adds the gradient of one micro-batch to `gradients` and returns the sums. The student is rounded as `moment` says, not at all
    /// where there is none.
    ///
    /// # Errors
    /// A variable that receives no gradient, by name; a device out of memory; a rank that can't be reached.
    pub fn accumulate(
        &self,
        student: &Student,
        batch: &Batch,
        moment: Option<Moment>,
        step_tokens: usize,
        gradients: &mut StepGradients,
    ) -> Result<Unread> {
        let Parts { total, sums, inside, tape } = self.parts(student, batch, moment)?;
        let predicted = self.terms().into_iter().map(|(term, weight)| (name(term), weight));
        let terms = predicted.chain(inside.iter().map(|(name, factor, _)| (*name, *factor))).collect();
        let mut values = vec![sums];
        for (_, _, sum) in &inside {
            values.push(sum.reshape(1)?);
        }
        let values = self.reader.later(Tensor::cat(&values, 0)?)?;
        let share = 1.0 / step_tokens as f64;
        let within = inside.iter().map(|(_, factor, sum)| (sum, factor * share));
        let all = std::iter::once((&total, share)).chain(within).collect::<Vec<_>>();
        let (mut found, taken) = gradients.walk_back(tape, &all)?;
        for variable in student.variables() {
            let of = variable.var.as_tensor();
            let gradient = match found.take(of) {
                Some(gradient) => gradient,
                None if taken.contains(&of.id()) => continue,
                // Without rounding, grids take no part.
                None if moment.is_none() && of_grid(variable.kind) => variable.var.zeros_like()?,
                None => return Err(no_gradient(variable)),
            };
            gradients.add(of.id(), gradient)?;
        }
        Ok(Unread { terms, values })
    }

    /// The terms of a batch.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn parts(&self, student: &Student, batch: &Batch, moment: Option<Moment>) -> Result<Parts> {
        let targets = Targets::of(batch);
        // The teacher first: nothing of the student's is in memory meanwhile.
        let teacher = targets.of_teacher(silent(|| self.predictions(student, batch))?)?;
        let tap = self.inside.map(|inside| inside.layer);
        let pass = Pass { precision: self.precision, tap, again: self.recompute };
        let (made, tape) = Tape::of(|| -> Result<_> {
            let decoder = student.decoder_at(moment)?;
            let (head, features) = forward_batch(&decoder, self.rope, batch, pass)?;
            let losses =
                targets.of_student(head)?.losses(&self.terms(), &self.answers(&targets, &teacher))?;
            let inside = match (self.inside, features, teacher.features()) {
                (Some(inside), Some(ours), Some(theirs)) => inside.terms(&ours, theirs, batch.rows)?,
                _ => Vec::new(),
            };
            Ok((losses, inside))
        });
        let (Losses { total, sums }, inside) = made?;
        Ok(Parts { total, sums, inside, tape })
    }

    fn terms(&self) -> Vec<(Term, f64)> {
        let text = (self.plan.cross_entropy > 0.0).then_some((Term::CrossEntropy, self.plan.cross_entropy));
        let divergences =
            self.plan.divergences.iter().map(|&(kind, weight)| (Term::Divergence(kind), weight));
        text.into_iter().chain(divergences).collect()
    }

    fn predictions(&self, student: &Student, batch: &Batch) -> Result<Predictions> {
        if self.plan.divergences.is_empty() && self.inside.is_none() {
            return Ok(Predictions::None);
        }
        let tap = self.inside.map(|inside| inside.of_teacher);
        let pass = Pass { precision: self.precision, tap, again: false };
        self.teacher.predictions(student, self.rope, batch, pass)
    }

    fn answers<'b>(&self, targets: &'b Targets, teacher: &'b Predictions) -> Answers<'b> {
        let temperature = self.plan.temperature as f32;
        Answers { text: &targets.text, teacher: teacher.reference(), temperature }
    }

    /// Cross entropy and, where there is a teacher, KL(teacher ‖ student) of the held-out windows of all `ranks`, of which this one scores
    /// `batches`, on the grid that would ship. Of a teacher with a cache, the KL over its most probable tokens and the rest, which is never more
    /// than over all.
    ///
    /// # Errors
    /// The device is out of memory; another rank has failed.
    pub fn validate<'b>(
        &self,
        student: &Student,
        batches: impl Iterator<Item = &'b Batch>,
        ranks: &Ranks,
    ) -> Result<(f64, Option<f64>)> {
        let decoder = silent(|| student.decoder(Some(1.0)))?;
        let (mut scores, mut tokens) = ([0.0; 2], 0usize);
        let terms = [Term::CrossEntropy, Term::Divergence(Divergence::ForwardKl)];
        let terms = if matches!(self.teacher, Teacher::None) { &terms[..1] } else { &terms };
        for (index, batch) in batches.enumerate() {
            let targets = Targets::of(batch);
            let theirs = silent(|| self.teacher.valid_predictions(student, self.rope, (index, batch)))?;
            let theirs = targets.of_teacher(theirs)?;
            let (ours, _) = silent(|| forward_batch(&decoder, self.rope, batch, Pass::default()))?;
            let answers = Answers { temperature: 1.0, ..self.answers(&targets, &theirs) };
            let sums = silent(|| targets.of_student(ours))?.scores(terms, &answers)?.to_vec1::<f32>()?;
            scores.iter_mut().zip(sums).for_each(|(score, sum)| *score += f64::from(sum));
            tokens += targets.text.len();
        }
        let sums = ranks.sum(&[scores[0], scores[1], tokens as f64])?;
        let (scores, tokens) = (&sums[..2], sums[2]);
        let per_token = |sum: f64| sum / tokens.max(1.0);
        Ok((per_token(scores[0]), (terms.len() > 1).then(|| per_token(scores[1]))))
    }
}

/// The targets of a batch that are learned.
struct Targets<'a> {
    /// Their ids.
    text: Cow<'a, [u32]>,
    /// Their rows, where they are not all.
    rows: Option<&'a [u32]>,
}

impl<'a> Targets<'a> {
    fn of(batch: &'a Batch) -> Self {
        match &batch.packed {
            None => Self { text: Cow::Borrowed(&batch.targets), rows: None },
            Some(Packed { learned, .. }) => {
                let text = learned.iter().map(|row| batch.targets[*row as usize]).collect();
                Self { text: Cow::Owned(text), rows: Some(learned) }
            }
        }
    }

    fn of_student(&self, head: Head) -> Result<Head> {
        Ok(match self.rows {
            Some(rows) => head.only(rows)?,
            None => head,
        })
    }

    fn of_teacher(&self, predictions: Predictions) -> Result<Predictions> {
        match self.rows {
            Some(rows) => silent(|| predictions.only(rows)),
            None => Ok(predictions),
        }
    }
}

fn no_gradient(variable: &Variable) -> Error {
    Error::Config(format!(
        "{}: receives no gradient; it would never be trained, so the run is refused",
        variable.name
    ))
}

/// Refuses a first step in which a variable's gradient is zero throughout, as `is_zero` says: something on its way cuts or rounds it off. Unless the
/// student is `rounded`, grids have none; nor have those whose matrix begins on them, until it has moved.
///
/// # Errors
/// The first such variable, by name; or that nothing at all has a gradient.
pub fn every_variable_learns(
    student: &Student,
    variables: &[Variable],
    is_zero: &[bool],
    rounded: bool,
) -> Result<()> {
    let mut silent = Vec::new();
    let mut awaited = 0;
    for (variable, is_zero) in variables.iter().zip(is_zero).filter(|(v, _)| rounded || !of_grid(v.kind)) {
        if *is_zero && of_grid(variable.kind) && student.begins_on_grid(variable)? {
            continue;
        }
        awaited += 1;
        if *is_zero {
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

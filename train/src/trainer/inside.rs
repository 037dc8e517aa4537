//! Terms on what happens inside: which layers are compared, in how many heads, and with which weights.
//!
//! Knows no step. Invariant: all of it is decided before the first step, from the weights that a run starts with, so that a resumed run
//! has the same.

use candle_core::{DType, Tensor};
use qat_infer::model::Config;

use super::teacher::Teacher;
use crate::{
    Error, Result,
    loss::{self, Features},
    ops::{self, tape::Gradients},
    ranks::Ranks,
    recipe::FeaturePlan,
    student::{Kind, Student},
};

/// Terms that compare one layer of the student with one of the teacher.
#[derive(Debug, Clone)]
pub struct Inside {
    /// The student's layer.
    pub layer: usize,
    /// The teacher's.
    pub of_teacher: usize,
    /// Heads in which queries are compared, and keys and values.
    heads: [usize; 2],
    /// Factor of the distance of hidden states.
    hidden: f64,
    /// Factor of the divergence of relations.
    relations: f64,
}

/// A term's name, factor, and sum over the tokens in the graph.
pub type Found = (&'static str, f64, Tensor);

impl Inside {
    /// What `plan` asks for, with its weights as factors.
    ///
    /// # Errors
    /// A layer that the student doesn't have; a teacher without layers.
    pub fn new(plan: &FeaturePlan, student: &Student, teacher: &Teacher) -> Result<Self> {
        let ours = &student.config;
        let Some(theirs) = teacher.config(student) else {
            return Err(Error::Config("loss.hidden and loss.relations need a [teacher] at hand".into()));
        };
        let [of_student, of_teacher] = [ours, theirs].map(attending);
        let layer = plan.layer.or(of_student.last().copied()).unwrap_or(0);
        if layer >= ours.layers {
            let problem =
                format!("loss.layer = {layer}: want less than the student's {} layers", ours.layers);
            return Err(Error::Config(problem));
        }
        let place = of_student.iter().position(|attends| *attends == layer);
        let place = place.filter(|_| !of_teacher.is_empty()).ok_or_else(|| {
            let problem = format!(
                "loss.layer = {layer}: want one that attends, in student and teacher: {of_student:?}"
            );
            Error::Config(problem)
        })?;
        Ok(Self {
            layer,
            of_teacher: of_teacher[counterpart(place, of_student.len(), of_teacher.len())],
            heads: [common(ours.heads, theirs.heads), common(ours.kv_heads, theirs.kv_heads)],
            hidden: plan.hidden,
            relations: plan.relations,
        })
    }

    /// The terms of a batch of `windows`, in f32 whatever the features are.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn terms(&self, student: &Features, teacher: &Features, windows: usize) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        if self.hidden > 0.0 {
            let [ours, theirs] = [wide(&student.hidden)?, wide(&teacher.hidden)?];
            found.push(("hidden", self.hidden, loss::hidden(&ours, &theirs, windows)?));
        }
        if self.relations > 0.0 {
            let [of_queries, others] = self.heads;
            let mut sum: Option<Tensor> = None;
            let pairs = student.attention.iter().zip(&teacher.attention);
            for ((ours, theirs), heads) in pairs.zip([of_queries, others, others]) {
                let [ours, theirs] = [wide(ours)?, wide(theirs)?];
                let one = ops::multiply(&loss::relations(&ours, &theirs, windows, heads)?, 1.0 / 3.0)?;
                sum = Some(match sum {
                    Some(sum) => ops::add(&sum, &one)?,
                    None => one,
                });
            }
            found.extend(sum.map(|sum| ("relations", self.relations, sum)));
        }
        Ok(found)
    }

    /// The terms by name, with their weights, in the order of [`Self::terms`].
    pub fn weights(&self) -> Vec<(&'static str, f64)> {
        let all = [("hidden", self.hidden), ("relations", self.relations)];
        all.into_iter().filter(|(_, weight)| *weight > 0.0).collect()
    }

    /// Makes factors of weights that are shares of the gradient: each term's is as long as weight · that of the terms on
    /// predictions, over the matrices of the layers, which is `whole`; `lengths` are those of the terms. Says what the factors are.
    ///
    /// # Errors
    /// A term without a gradient: student and teacher agree already.
    pub fn balance(&mut self, whole: f64, lengths: &[f64]) -> Result<String> {
        let mut said = Vec::new();
        for ((name, weight), length) in self.weights().into_iter().zip(lengths) {
            let factor = weight * whole / length;
            if !(factor > 0.0 && factor.is_finite()) {
                return Err(Error::Config(format!(
                    "loss.{name} = {weight}: student and teacher agree at the start, so that gradients can't be compared; set \
                     loss.balance = false"
                )));
            }
            *(if name == "hidden" { &mut self.hidden } else { &mut self.relations }) = factor;
            said.push(format!("loss.{name} = {weight} is a factor of {factor:.4}"));
        }
        Ok(format!("{} (gradients in proportion at the start)", said.join(", ")))
    }
}

fn wide(x: &Tensor) -> Result<Tensor> {
    Ok(ops::cast(x, DType::F32)?)
}

/// The layers that attend, which have queries, keys and values.
fn attending(config: &Config) -> Vec<usize> {
    (0..config.layers).filter(|layer| config.taps(*layer).is_none()).collect()
}

/// The layer of `theirs` at the same share of the depth as `layer` of `ours`, the last for the last.
fn counterpart(layer: usize, ours: usize, theirs: usize) -> usize {
    (((layer + 1) * theirs + ours / 2) / ours).max(1) - 1
}

/// The greatest common divisor: the finest cut into heads that both widths allow.
fn common(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common(b, a % b) }
}

/// Length of the gradient by the matrices of the layers, summed over `ranks`.
pub fn length(mut gradients: Gradients, student: &Student, ranks: &Ranks) -> Result<f64> {
    let mut squares = 0.0;
    for variable in student.variables().iter().filter(|variable| variable.kind == Kind::Weight) {
        if let Some(gradient) = gradients.take(variable.var.as_tensor()) {
            let part = ranks.part_of_sum(&gradient)?;
            squares += f64::from(part.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
    }
    Ok(ranks.sum(&[squares])?[0].sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_at_the_same_share_of_the_depth_are_compared() {
        for (ours, theirs, want) in [(4, 4, [0, 1, 2, 3]), (4, 8, [1, 3, 5, 7]), (4, 2, [0, 0, 1, 1])] {
            let found = [0, 1, 2, 3].map(|layer| counterpart(layer, ours, theirs));
            assert_eq!(found, want, "{ours} of {theirs}");
        }
        assert_eq!([common(9, 3), common(4, 6), common(5, 1), common(7, 3)], [3, 2, 1, 1]);
    }
}

//! Block-wise reconstruction (EfficientQAT's Block-AP, arXiv 2407.11062): a layer alone learns to give, behind rounded layers, what the
//! float model has at that place.
//!
//! Both streams are made anew in each step, layer by layer, instead of being kept for a whole set of texts: a step needs the memory of
//! one layer, and depends on seed, step and weights alone. Knows no schedule.

use candle_core::{DType, Tensor};
use qat_infer::model::{Layer, Ropes};

use super::{gradients::StepGradients, objective::Unread};
use crate::{
    Error, Result,
    data::Batch,
    exec::{Matrix, RopeTable, TrainExec},
    loss,
    ops::{cast, embedding, gpu::Reader, tape::Tape},
    precision::Precision,
    student::{Floats, Moment, Student, Variable},
};

/// One layer of a student and the float model that it started from.
pub(super) struct Block<'a> {
    pub student: &'a Student,
    pub start: &'a Floats,
    pub rope: &'a RopeTable,
    /// Which layer.
    pub index: usize,
    /// What the student computes in; what should be there is made in f32.
    pub precision: Precision,
    /// Who reads the distance.
    pub reader: &'a Reader,
}

impl Block<'_> {
    /// Adds the gradients of the layer's variables to `gradients`, and returns the squared distance behind the layer, relative to the mean
    /// square of what should be there, summed over tokens.
    ///
    /// # Errors
    /// A variable that receives no gradient, by name; a device out of memory; a rank that can't be reached.
    pub fn accumulate(
        &self,
        batch: &Batch,
        moment: Option<Moment>,
        step_tokens: usize,
        gradients: &mut StepGradients,
    ) -> Result<Unread> {
        let (input, target) = self.streams(batch)?;
        let (distance, tape) = Tape::of(|| -> Result<Tensor> {
            let layer = self.student.layer(self.index, moment)?;
            let found = cast(&self.pass(&layer, self.index, batch, input)?, DType::F32)?;
            Ok(loss::hidden(&found, &target, batch.rows)?)
        });
        let distance = distance?;
        let values = self.reader.later(distance.reshape(1)?)?;
        let (mut found, taken) = gradients.walk_back(tape, &[(&distance, 1.0 / step_tokens as f64)])?;
        for variable in of_layer(self.student.variables(), self.index) {
            let of = variable.var.as_tensor();
            match found.take(of) {
                Some(gradient) => gradients.add(of.id(), gradient)?,
                None if taken.contains(&of.id()) => {}
                None => return Err(silent(variable)),
            }
        }
        Ok(Unread { terms: vec![("block", 1.0)], values })
    }

    /// What comes into the layer behind the rounded ones, and what the float model has behind it.
    fn streams(&self, batch: &Batch) -> Result<(Tensor, Tensor)> {
        let device = self.rope.device();
        let rounded = Some(Moment { precision: self.precision, ..Moment::full() });
        let factor = self.student.config.embedding_scale();
        let ours = embedding(&self.student.embedding(rounded)?.weight, &batch.inputs, factor)?;
        let mut ours = cast(&ours, self.precision.dtype())?;
        let mut theirs = embedding(&self.start.embedding(device)?.weight, &batch.inputs, factor)?;
        for index in 0..=self.index {
            theirs = self.pass(&self.start.layer(index, device)?, index, batch, theirs)?;
            if index < self.index {
                ours = self.pass(&self.student.layer(index, rounded)?, index, batch, ours)?;
            }
        }
        Ok((ours, theirs))
    }

    fn pass(&self, layer: &Layer<Matrix, Tensor>, index: usize, batch: &Batch, x: Tensor) -> Result<Tensor> {
        let config = &self.student.config;
        let mut exec = TrainExec::new(batch.rows, batch.context, self.rope);
        layer.forward(&mut exec, (config, &Ropes::new(config)), index, x)
    }
}

/// The variables of layer `index`, in their order.
pub(super) fn of_layer(variables: &[Variable], index: usize) -> impl Iterator<Item = &Variable> {
    let prefix = format!("model.layers.{index}.");
    variables.iter().filter(move |variable| variable.name.starts_with(&prefix))
}

fn silent(variable: &Variable) -> Error {
    Error::Config(format!("{}: receives no gradient from its layer", variable.name))
}

//! The student on sizes: its variables, the optimizer's memory of them, and its matrices on their grid.
//!
//! Stands for `crate::student` and `crate::optim`. Knows no loss.

use std::{collections::BTreeMap, convert::Infallible};

use qat_infer::{
    files::Activations,
    model::{Config, Decoder, Param, Role, Weights, params},
};
use qat_quant::Format;

use super::{
    exec::{FLOAT, Matrix, SizeExec, Value, place},
    heap::{Block, Heap, Part, Place},
    tape::{Gradient, Tape},
};
use crate::{
    ops::{self, gpu::Path},
    recipe::{Learn, Plan, Quantization},
};

/// What is trained of a tensor, and what is kept of it.
#[derive(Debug)]
struct Latent {
    param: Param,
    format: Option<Format>,
    /// Values, or codes.
    value: Value,
    scale: Option<Value>,
    bias: Option<Value>,
    /// What is remembered of weights that may be held.
    turns: Option<Value>,
}

/// A student's variables.
#[derive(Debug)]
pub(super) struct SizedStudent {
    config: Config,
    quantization: Quantization,
    noise: bool,
    latents: BTreeMap<String, Latent>,
    /// Numbers that are trained.
    pub trained: u64,
    moments: Vec<Block>,
}

pub(super) fn elements(param: &Param) -> u64 {
    param.shape.iter().product::<usize>() as u64
}

impl SizedStudent {
    /// That of `plan` in the shape `config`, with its optimizer.
    pub fn new(plan: &Plan, config: &Config, (heap, tape, path): (&Heap, &Tape, Path)) -> Self {
        let variable = |floats: u64| {
            // A tensor is made of the values, and the variable is a copy of it.
            let tensor = heap.take(place(path), Part::Weights, floats * FLOAT);
            let block = heap.take(place(path), Part::Weights, floats * FLOAT);
            drop(tensor);
            Value { id: tape.id(), block, elements: floats }
        };
        let quantization = plan.quantization.clone();
        let learns = quantization.gradient.learns_scales();
        let latent = |param: Param| {
            let format = quantization.rules.choose(&param);
            let value = variable(elements(&param));
            let groups = format.filter(|_| learns).map(|format| {
                let groups = format.groups(param.shape[0], param.shape[1]) as u64;
                (groups, format.has_bias() && !quantization.even)
            });
            let scale = groups.map(|(groups, _)| variable(groups));
            let bias = groups.filter(|(_, has_bias)| *has_bias).map(|(groups, _)| variable(groups));
            let counted = quantization.freeze_after.is_some() && format.is_some_and(ops::Turns::counts);
            let turns = counted.then(|| variable(elements(&param)));
            (param.name.clone(), Latent { param, format, value, scale, bias, turns })
        };
        let latents: BTreeMap<String, Latent> = params(config).into_iter().map(latent).collect();
        let mut student = Self {
            config: config.clone(),
            noise: plan.recipe.quant.noise < 1.0,
            quantization,
            latents,
            trained: 0,
            moments: Vec::new(),
        };
        let trained = student.trained_blocks(plan);
        student.trained = trained.iter().map(|(bytes, _)| bytes / FLOAT).sum();
        let moments = trained.iter().flat_map(|(bytes, moments)| (0..*moments).map(|_| *bytes));
        student.moments = moments.map(|bytes| heap.take(place(path), Part::Optimizer, bytes)).collect();
        student
    }

    /// Bytes of each variable that is trained at a time, and of how many tensors the optimizer remembers it by.
    fn trained_blocks(&self, plan: &Plan) -> Vec<(u64, usize)> {
        let mut found = Vec::new();
        // One layer after the other: the optimizer is that of one of them, and they are alike.
        let of_part = |name: &str| plan.blocks.is_none() || name.starts_with("model.layers.0.");
        for latent in self.latents.values().filter(|latent| of_part(&latent.param.name)) {
            if self.quantization.learn == Learn::All {
                let muon = plan.optim.muon.is_some() && latent.param.role == Role::Projection;
                found.push((latent.value.block.bytes(), if muon { 1 } else { 2 }));
            }
            let grid = [&latent.scale, &latent.bias].into_iter().flatten();
            found.extend(grid.map(|value| (value.block.bytes(), 2)));
        }
        found
    }

    /// The gradients of a step, by number.
    pub fn variables(&self) -> impl Iterator<Item = &Value> {
        self.latents.values().flat_map(|latent| {
            let values = (self.quantization.learn == Learn::All).then_some(&latent.value);
            values.into_iter().chain(&latent.scale).chain(&latent.bias)
        })
    }

    /// Bytes of what the optimizer remembers, which begins with zeros.
    pub fn moments(&self) -> u64 {
        self.moments.iter().map(Block::bytes).sum()
    }

    /// Bytes of every tensor that a checkpoint keeps: values, then moments.
    pub fn kept(&self) -> impl Iterator<Item = u64> {
        let of_values = self.latents.values().flat_map(|latent| {
            let grid = latent.scale.iter().chain(&latent.bias);
            std::iter::once(&latent.value).chain(grid).chain(&latent.turns).map(|v| v.block.bytes())
        });
        of_values.chain(self.moments.iter().map(Block::bytes))
    }

    /// The decoder over its variables, or over their grids.
    pub fn decoder(&self, exec: &SizeExec, rounded: bool) -> Decoder<Matrix, Value> {
        let Ok(decoder) = Decoder::build(self.config.clone(), &mut Rounding { student: self, exec, rounded });
        decoder
    }

    /// What `fake_quant` makes of a matrix.
    fn fake_quant(&self, latent: &Latent, format: Format, exec: &SizeExec) -> Value {
        let [rows, cols] = [latent.param.shape[0], latent.param.shape[1]];
        let floats = (rows * cols) as u64;
        let groups = format.groups(rows, cols) as u64;
        let stored = groups * if format.has_bias() { 2 } else { 1 };
        let scales = exec.heap.take(place(exec.path), Part::Rounded, stored * FLOAT);
        let value = exec.make(Part::Rounded, floats);
        let of_weight = match self.quantization.gradient {
            ops::Gradient::Ste => Gradient::Same,
            ops::Gradient::Codes => Gradient::None,
            ops::Gradient::ClippedSte | ops::Gradient::Lsq => Gradient::of_variable(floats),
        };
        let grid = [&latent.scale, &latent.bias].into_iter().flatten();
        let inputs: Vec<(&Value, Gradient)> = std::iter::once((&latent.value, of_weight))
            .chain(grid.map(|v| (v, Gradient::of_variable(groups))))
            .collect();
        let held = exec.on_cpu().then(|| value.block.clone());
        // The gradient in parts: of what is rounded or free, and of what is held.
        let scratch = if latent.turns.is_some() { 3 * floats } else { u64::from(self.noise) * floats };
        exec.write(&value, &inputs, [scales].into_iter().chain(held), scratch);
        value
    }
}

/// Gives a decoder the student's matrices.
struct Rounding<'a> {
    student: &'a SizedStudent,
    exec: &'a SizeExec<'a>,
    rounded: bool,
}

impl Weights for Rounding<'_> {
    type M = Matrix;
    type V = Value;
    type Error = Infallible;

    fn matrix(&mut self, param: &Param) -> Result<Matrix, Infallible> {
        let quantization = &self.student.quantization;
        let latent = &self.student.latents[&param.name];
        let format = latent.format.filter(|_| self.rounded);
        let value = match format {
            Some(format) => self.student.fake_quant(latent, format, self.exec),
            None => latent.value.clone(),
        };
        let projection = param.role == Role::Projection;
        Ok(Matrix {
            value,
            rows: param.shape[0] as u64,
            cols: param.shape[1] as u64,
            int8_inputs: format.is_some() && projection && quantization.activations == Activations::Int8Token,
            cached: self.rounded && quantization.cache_of(param).is_some(),
        })
    }

    fn vector(&mut self, param: &Param) -> Result<Value, Infallible> {
        Ok(self.student.latents[&param.name].value.clone())
    }
}

/// A frozen model of this shape, each tensor a block for `part`.
pub(super) struct Frozen<'a> {
    pub heap: &'a Heap,
    pub tape: &'a Tape,
    pub place: Place,
}

impl Weights for Frozen<'_> {
    type M = Matrix;
    type V = Value;
    type Error = Infallible;

    fn matrix(&mut self, param: &Param) -> Result<Matrix, Infallible> {
        let value = self.vector(param)?;
        let [rows, cols] = [param.shape[0] as u64, param.shape[1] as u64];
        Ok(Matrix { value, rows, cols, int8_inputs: false, cached: false })
    }

    fn vector(&mut self, param: &Param) -> Result<Value, Infallible> {
        let block = self.heap.take(self.place, Part::Teacher, elements(param) * FLOAT);
        Ok(Value { id: self.tape.id(), block, elements: elements(param) })
    }
}

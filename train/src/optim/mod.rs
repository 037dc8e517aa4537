//! The optimizer: which variable moves how far, in groups by what a variable is, and a gradient that is clipped first.
//!
//! Knows no model. AdamW moves everything, but for the matrices inside the layers where the plan says Muon. Its state is public to
//! checkpoints, so that a resumed run continues to the same bits. Scales and grid biases move relative to the size of their scale:
//! a learning rate of 1e-3 moves a scale by at most about 0.1 % a step, whatever its magnitude. The device is waited for once
//! a step, when everything is under way.

mod adamw;
mod clip;
mod muon;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use candle_core::Tensor;

use self::{
    adamw::{Moments, Numbers, Unit, Update},
    clip::Clip,
};
use crate::{
    Error, Result,
    recipe::OptimPlan,
    student::{Kind, Variable},
};

/// Variables and what is remembered of each.
#[derive(Debug)]
pub struct Optimizer {
    plan: OptimPlan,
    variables: Vec<Variable>,
    state: Vec<State>,
    /// Steps taken; AdamW's correction of its moments depends on it.
    taken: usize,
}

/// What is remembered of one variable.
#[derive(Debug)]
enum State {
    AdamW(Moments),
    /// Muon's running sum of gradients.
    Muon(Tensor),
}

impl Optimizer {
    /// A fresh state for `variables`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(plan: OptimPlan, variables: &[Variable]) -> Result<Self> {
        let fresh = |variable: &Variable| -> Result<State> {
            let zeros = || variable.var.zeros_like();
            Ok(match (variable.kind, &plan.muon) {
                (Kind::Weight, Some(_)) => State::Muon(zeros()?),
                _ => State::AdamW(Moments { first: zeros()?, second: zeros()? }),
            })
        };
        let state = variables.iter().map(fresh).collect::<Result<_>>()?;
        Ok(Self { plan, variables: variables.to_vec(), state, taken: 0 })
    }

    /// What it moves.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// Takes a step with `gradients`, one a variable, at share `rate` of the peak learning rates; returns the gradient's norm over weights and
    /// norms before clipping.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn step(&mut self, gradients: &[Tensor], rate: f64) -> Result<f64> {
        let variables = &self.variables;
        let gradients = gradients.iter().map(Tensor::contiguous).collect::<candle_core::Result<Vec<_>>>()?;
        let clip = Clip::measure(variables, &gradients, self.plan.clip)?;
        self.taken += 1;
        let mut updates = Vec::new();
        for (index, (variable, state)) in variables.iter().zip(&mut self.state).enumerate() {
            match (state, &self.plan.muon) {
                (State::Muon(momentum), Some(plan)) => {
                    let gradient = clip.apply(variable.kind, &gradients[index])?;
                    let lr = rate * plan.lr;
                    let decay = 1.0 - lr * self.plan.weight_decay;
                    *momentum = muon::step(&variable.var, momentum, &gradient, plan.momentum, lr, decay)?;
                }
                (State::AdamW(moments), _) => updates.push(Update {
                    value: variable.var.as_tensor(),
                    moments,
                    gradient: &gradients[index],
                    of_grid: of_grid(variable.kind),
                    numbers: Numbers::new(&self.plan, self.taken, variable.kind, rate),
                    unit: unit(variables, index)?,
                }),
                (State::Muon(_), None) => return Err(no_state(variable)),
            }
        }
        adamw::step(&updates, &clip)?;
        clip.norm()
    }

    /// The state by name, for a checkpoint.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut named = BTreeMap::new();
        for (variable, state) in self.variables.iter().zip(&self.state) {
            for (part, tensor) in state.parts() {
                named.insert(format!("{part}.{}", variable.name), tensor.clone());
            }
        }
        named
    }

    /// Puts a state back that was taken after `taken` steps.
    ///
    /// # Errors
    /// A part that is missing or has another shape.
    pub fn restore(
        &mut self,
        mut read: impl FnMut(&str, &Tensor) -> Result<Tensor>,
        taken: usize,
    ) -> Result<()> {
        for (variable, state) in self.variables.iter().zip(&mut self.state) {
            for (part, tensor) in state.parts_mut() {
                *tensor = read(&format!("{part}.{}", variable.name), tensor)?;
            }
        }
        self.taken = taken;
        Ok(())
    }
}

impl State {
    /// Its tensors under the names that checkpoints have for them.
    fn parts(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::AdamW(Moments { first, second }) => vec![("first", first), ("second", second)],
            Self::Muon(momentum) => vec![("momentum", momentum)],
        }
    }

    fn parts_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        match self {
            Self::AdamW(Moments { first, second }) => vec![("first", first), ("second", second)],
            Self::Muon(momentum) => vec![("momentum", momentum)],
        }
    }
}

/// Whether it is part of a grid.
pub(crate) fn of_grid(kind: Kind) -> bool {
    matches!(kind, Kind::Scale | Kind::GridBias)
}

fn no_state(variable: &Variable) -> Error {
    Error::Config(format!("{}: the optimizer's state is of another kind than its plan", variable.name))
}

/// Whose magnitude a unit of the learning rate is.
fn unit(variables: &[Variable], index: usize) -> Result<Unit<'_>> {
    match variables[index].kind {
        Kind::Weight | Kind::Table | Kind::Norm => Ok(Unit::One),
        Kind::Scale => Ok(Unit::Own),
        // A grid's bias stands right behind its scale.
        Kind::GridBias => match index.checked_sub(1).map(|before| &variables[before]) {
            Some(scale) if scale.kind == Kind::Scale => Ok(Unit::Of(scale.var.as_tensor())),
            _ => Err(Error::Config(format!("{}: has no scale before it", variables[index].name))),
        },
    }
}

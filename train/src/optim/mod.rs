//! The optimizer: which variable moves how far, in groups by what a variable is, and a gradient that is clipped first.
//!
//! Knows no model. AdamW moves everything, but for the matrices inside the layers where the plan says Muon. Its state is public to
//! checkpoints, so that a resumed run continues to the same bits. Scales and grid biases move relative to the size of their scale:
//! a learning rate of 1e-3 moves a scale by at most about 0.1 % a step, whatever its magnitude. The norm is waited for when
//! everything is under way. Where several ranks train, each remembers and moves its own rows of each variable, and the others get them
//! from it.

mod adamw;
mod clip;
mod muon;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops::Range};

use candle_core::{Device, Tensor};

use self::{
    adamw::{Moments, Numbers, Unit, Update},
    clip::Clip,
};
use crate::{
    Error, Result,
    ops::gpu::Reader,
    ranks::{Buckets, Ranks, Shares},
    recipe::OptimPlan,
    student::{Kind, Variable},
};

/// Variables and what is remembered of each.
#[derive(Debug)]
pub struct Optimizer {
    plan: OptimPlan,
    ranks: Ranks,
    variables: Vec<Variable>,
    /// How gradients and values travel where there are several ranks.
    buckets: Option<Buckets>,
    own: Vec<Own>,
    reader: Reader,
    /// Steps taken; AdamW's correction of its moments depends on it.
    taken: usize,
}

/// Rows of a variable that this rank moves: all of them where it is alone.
#[derive(Debug)]
struct Own {
    /// Number of the variable.
    index: usize,
    rows: Range<usize>,
    kind: Kind,
    /// Where they lie in the variable.
    value: Tensor,
    state: State,
}

/// What is remembered of rows of one variable.
#[derive(Debug)]
enum State {
    AdamW(Moments),
    /// Muon's running sum of gradients.
    Muon(Tensor),
}

impl Optimizer {
    /// A fresh state for `variables`, or for what of them is this rank's.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(plan: OptimPlan, variables: &[Variable], ranks: &Ranks) -> Result<Self> {
        let is_muons = |variable: &Variable| variable.kind == Kind::Weight && plan.muon.is_some();
        let buckets = (ranks.size() > 1)
            .then(|| Buckets::new(variables, Shares::new(variables, is_muons, ranks.size()), ranks));
        let mut own = Vec::new();
        for (index, variable) in variables.iter().enumerate() {
            let all = variable.var.as_tensor();
            let (rows, value) = match &buckets {
                None => (0..all.dims().first().copied().unwrap_or(1), all.clone()),
                Some(buckets) if buckets.own(index).is_empty() => continue,
                Some(buckets) => {
                    let rows = buckets.own(index);
                    (rows.clone(), all.detach().narrow(0, rows.start, rows.len())?)
                }
            };
            let zeros = || value.zeros_like();
            let state = match is_muons(variable) {
                true => State::Muon(zeros()?),
                false => State::AdamW(Moments { first: zeros()?, second: zeros()? }),
            };
            own.push(Own { index, rows, kind: variable.kind, value, state });
        }
        let reader = Reader::new(device_of(variables))?;
        Ok(Self { plan, ranks: ranks.clone(), variables: variables.to_vec(), buckets, own, reader, taken: 0 })
    }

    /// What it moves.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// How gradients travel where there are several ranks.
    pub(crate) fn buckets(&self) -> Option<&Buckets> {
        self.buckets.as_ref()
    }

    /// Which of the variables have a gradient of zero throughout, on all ranks; `gradients` are as [`Self::step`] takes them.
    ///
    /// # Errors
    /// The device is out of memory; another rank has failed.
    pub fn silent(&self, gradients: &[Tensor]) -> Result<Vec<bool>> {
        let mut learn = vec![0.0; self.variables.len()];
        for (own, gradient) in self.own.iter().zip(gradients) {
            let is_zero = gradient.abs()?.sum_all()?.to_scalar::<f32>()? == 0.0;
            learn[own.index] = f64::from(u8::from(!is_zero));
        }
        Ok(self.ranks.sum(&learn)?.into_iter().map(|learn| learn == 0.0).collect())
    }

    /// Takes a step with `gradients`, one a variable that it has rows of, of these rows, at share `rate` of the peak learning rates; returns the
    /// gradient's norm over weights and norms before clipping.
    ///
    /// # Errors
    /// The device is out of memory; another rank has failed.
    pub fn step(&mut self, gradients: &[Tensor], rate: f64) -> Result<f64> {
        let gradients = gradients.iter().map(Tensor::contiguous).collect::<candle_core::Result<Vec<_>>>()?;
        let kinds: Vec<Kind> = self.own.iter().map(|own| own.kind).collect();
        let device = device_of(&self.variables);
        let clip = Clip::measure((&kinds, &gradients), self.plan.clip, (&self.ranks, device))?;
        let norm = self.reader.later(clip.tensor().clone())?;
        self.taken += 1;
        for (own, gradient) in self.own.iter_mut().zip(&gradients) {
            match (&mut own.state, &self.plan.muon) {
                (State::Muon(momentum), Some(plan)) => {
                    let gradient = clip.apply(own.kind, gradient)?;
                    let lr = rate * plan.lr;
                    let decay = 1.0 - lr * self.plan.weight_decay;
                    let var = &self.variables[own.index].var;
                    *momentum = muon::step(var, momentum, &gradient, plan.momentum, lr, decay)?;
                }
                (State::Muon(_), None) => return Err(no_state(&self.variables[own.index])),
                (State::AdamW(_), _) => {}
            }
        }
        let mut updates = Vec::new();
        for (at, (own, gradient)) in self.own.iter().zip(&gradients).enumerate() {
            if let State::AdamW(moments) = &own.state {
                updates.push(Update {
                    value: &own.value,
                    moments,
                    gradient,
                    of_grid: of_grid(own.kind),
                    numbers: Numbers::new(&self.plan, self.taken, own.kind, rate),
                    unit: self.unit(at)?,
                });
            }
        }
        adamw::step(&updates, &clip)?;
        self.buckets.as_ref().map(Buckets::spread).transpose()?;
        Ok(f64::from(norm.read()?[0]))
    }

    /// The whole state by name, for a checkpoint; on the first rank, which all give theirs.
    ///
    /// # Errors
    /// Another rank has failed; a device out of memory.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut named = BTreeMap::new();
        let mut owned = self.own.iter().peekable();
        for (index, variable) in self.variables.iter().enumerate() {
            let parts = owned.next_if(|own| own.index == index).map(|own| own.state.parts());
            for (at, part) in State::names(variable.kind, &self.plan).iter().enumerate() {
                let own = parts.as_ref().and_then(|parts| parts.get(at)).map(|(_, tensor)| *tensor);
                let whole = match &self.buckets {
                    None => own.cloned(),
                    Some(buckets) => buckets.whole(index, own)?,
                };
                whole.into_iter().for_each(|whole| {
                    named.insert(format!("{part}.{}", variable.name), whole);
                });
            }
        }
        Ok(named)
    }

    /// Puts a state back that was taken after `taken` steps; `read` gives the tensor of a name, which is like the one it is given.
    ///
    /// # Errors
    /// A part that is missing or has another shape.
    pub fn restore(
        &mut self,
        mut read: impl FnMut(&str, &Tensor) -> Result<Tensor>,
        taken: usize,
    ) -> Result<()> {
        for own in &mut self.own {
            let variable = &self.variables[own.index];
            for (part, tensor) in own.state.parts_mut() {
                let whole = read(&format!("{part}.{}", variable.name), variable.var.as_tensor())?;
                *tensor = match &self.buckets {
                    None => whole,
                    // The other rows are let go of.
                    Some(_) => whole.narrow(0, own.rows.start, own.rows.len())?.force_contiguous()?,
                };
            }
        }
        self.taken = taken;
        Ok(())
    }

    /// Whose magnitude a unit of the learning rate is, for what stands at `at` among its own.
    fn unit(&self, at: usize) -> Result<Unit<'_>> {
        match self.own[at].kind {
            Kind::Weight | Kind::Table | Kind::Norm => Ok(Unit::One),
            Kind::Scale => Ok(Unit::Own),
            // A grid's bias stands right behind its scale, and is cut as that is.
            Kind::GridBias => match at.checked_sub(1).map(|before| &self.own[before]) {
                Some(scale) if scale.kind == Kind::Scale => Ok(Unit::Of(&scale.value)),
                _ => Err(Error::Config(format!(
                    "{}: has no scale before it",
                    self.variables[self.own[at].index].name
                ))),
            },
        }
    }
}

impl State {
    /// The names that checkpoints have for the tensors of a variable that is a `kind`.
    fn names(kind: Kind, plan: &OptimPlan) -> &'static [&'static str] {
        if kind == Kind::Weight && plan.muon.is_some() { &["momentum"] } else { &["first", "second"] }
    }

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

/// Where `variables` live; without any it doesn't matter.
fn device_of(variables: &[Variable]) -> &Device {
    variables.first().map_or(&Device::Cpu, |variable| variable.var.device())
}

/// Whether it is part of a grid.
pub(crate) fn of_grid(kind: Kind) -> bool {
    matches!(kind, Kind::Scale | Kind::GridBias)
}

fn no_state(variable: &Variable) -> Error {
    Error::Config(format!("{}: the optimizer's state is of another kind than its plan", variable.name))
}

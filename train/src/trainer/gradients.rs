//! The gradients of a step: added up over its micro-batches and then, where there are several ranks, over these.
//!
//! Knows no loss. Invariant: what is sent to other ranks is final.

use std::collections::{HashMap, HashSet};

use candle_core::{Tensor, TensorId};

use crate::{
    Result,
    ops::{
        accumulate,
        tape::{Gradients, Tape},
    },
    optim::Optimizer,
    ranks::Collected,
    student::Variable,
};

/// Gradients by the variables that a step moves.
pub(super) struct StepGradients<'a> {
    places: HashMap<TensorId, usize>,
    sums: Vec<Option<Tensor>>,
    /// Those on their way to other ranks.
    sent: Option<Collected<'a>>,
    /// Whether nothing more comes behind the micro-batch of the moment.
    is_last: bool,
}

impl<'a> StepGradients<'a> {
    /// Of what `optimizer` moves.
    pub fn new(optimizer: &'a Optimizer) -> Self {
        let sent = optimizer.buckets().map(|buckets| buckets.collect());
        Self { sent, ..Self::of(optimizer.variables()) }
    }

    /// Of `variables`, on one rank.
    pub fn of(variables: &[Variable]) -> Self {
        let places = variables.iter().enumerate().map(|(place, v)| (v.var.as_tensor().id(), place)).collect();
        Self { places, sums: vec![None; variables.len()], sent: None, is_last: false }
    }

    /// Says whether the next micro-batch is the last.
    pub fn begin(&mut self, is_last: bool) {
        self.is_last = is_last;
    }

    /// Walks `tape` back from Σ factor·scalar over `sums`; where ranks wait for gradients they get them meanwhile. What is not in the answer
    /// was taken.
    ///
    /// # Errors
    /// The device is out of memory; a rank that can't be reached.
    pub fn walk_back(
        &mut self,
        tape: Tape,
        sums: &[(&Tensor, f64)],
    ) -> Result<(Gradients, HashSet<TensorId>)> {
        if self.sent.is_none() || !self.is_last {
            return Ok((tape.gradients(sums)?, HashSet::new()));
        }
        let wanted = self.places.keys().copied().collect();
        let mut taken = HashSet::new();
        let mut tell = |of, gradient| {
            taken.insert(of);
            self.add(of, gradient).map_err(candle_core::Error::wrap)
        };
        Ok((tape.gradients_told(sums, &wanted, &mut tell)?, taken))
    }

    /// Adds a micro-batch's gradient of the variable `of`; of one that is not moved it is let go of.
    ///
    /// # Errors
    /// The device is out of memory; a rank that can't be reached.
    pub fn add(&mut self, of: TensorId, gradient: Tensor) -> Result<()> {
        let Some(&place) = self.places.get(&of) else { return Ok(()) };
        let gradient = gradient.contiguous()?;
        let sum = match self.sums[place].take() {
            Some(sum) => {
                accumulate(&sum, &gradient)?;
                sum
            }
            None => gradient,
        };
        match &mut self.sent {
            Some(sent) if self.is_last => sent.add(place, sum),
            _ => {
                self.sums[place] = Some(sum);
                Ok(())
            }
        }
    }

    /// One a variable or, of several ranks, one for each that this rank has rows of, of these rows.
    ///
    /// # Errors
    /// A rank that can't be reached.
    pub fn finish(self) -> Result<Vec<Tensor>> {
        match self.sent {
            Some(sent) => sent.finish(),
            None => Ok(self.sums.into_iter().flatten().collect()),
        }
    }
}

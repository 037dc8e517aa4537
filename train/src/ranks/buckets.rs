//! Variables whose gradients travel between ranks together: large enough that few messages are on their way, small enough that the first leave
//! while the backward pass still makes the others.
//!
//! Knows neither a model nor an optimizer. Invariant: all ranks begin buckets in the same order, that in which a backward pass over the same
//! model fills them.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::{Begun, Ranks, Shares};
use crate::{Error, Result, student::Variable};

/// Elements of a bucket, or more where a variable alone has as many: 8 MiB.
const ELEMENTS: usize = 2 << 20;

/// Which variables are in which bucket, and whose rows are whose.
#[derive(Debug)]
pub(crate) struct Buckets {
    ranks: Ranks,
    shares: Shares,
    variables: Vec<Variable>,
    /// Variables by bucket.
    members: Vec<Vec<usize>>,
    /// The bucket of each variable.
    of: Vec<usize>,
}

impl Buckets {
    /// Of `variables`, from the last on: that is about how gradients come.
    pub fn new(variables: &[Variable], shares: Shares, ranks: &Ranks) -> Self {
        Self::with(ELEMENTS, variables, shares, ranks)
    }

    /// The same with about so many `elements` each.
    pub(super) fn with(elements: usize, variables: &[Variable], shares: Shares, ranks: &Ranks) -> Self {
        let (mut members, mut of) = (Vec::new(), vec![0; variables.len()]);
        let (mut open, mut filled) = (Vec::new(), 0);
        for index in (0..variables.len()).rev() {
            of[index] = members.len();
            open.push(index);
            filled += variables[index].var.elem_count();
            if filled >= elements {
                members.push(std::mem::take(&mut open));
                filled = 0;
            }
        }
        if !open.is_empty() {
            members.push(open);
        }
        Self { ranks: ranks.clone(), shares, variables: variables.to_vec(), members, of }
    }

    /// What gradients are put into.
    pub fn collect(&self) -> Collected<'_> {
        let begun = self.members.iter().map(|_| None).collect();
        Collected { buckets: self, arrived: vec![None; self.variables.len()], begun }
    }

    /// The rows of the variable number `index` that are this rank's.
    pub fn own(&self, index: usize) -> Range<usize> {
        self.shares.rows(index, self.ranks.rank())
    }

    /// Elements of the variable number `index` that are `rank`'s.
    fn elements(&self, index: usize, rank: usize) -> usize {
        let dims = self.variables[index].var.dims();
        self.shares.rows(index, rank).len() * dims.iter().skip(1).product::<usize>()
    }

    /// The rows that are `rank`'s of the tensors of a bucket, one after the other.
    fn pack<'t>(
        &self,
        bucket: usize,
        rank: usize,
        of: impl Fn(usize) -> Option<&'t Tensor>,
    ) -> Result<Tensor> {
        let mut parts = Vec::new();
        for &index in &self.members[bucket] {
            let rows = self.shares.rows(index, rank);
            if let Some(tensor) = of(index).filter(|_| !rows.is_empty()) {
                parts.push(tensor.detach().narrow(0, rows.start, rows.len())?.flatten_all()?);
            }
        }
        if parts.is_empty() {
            return nothing();
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// The same taken apart again: variables with their rows.
    fn unpack(&self, bucket: usize, rank: usize, flat: &Tensor) -> Result<Vec<(usize, Tensor)>> {
        let (mut found, mut at) = (Vec::new(), 0);
        for &index in &self.members[bucket] {
            let len = self.elements(index, rank);
            if len > 0 {
                let mut dims = self.variables[index].var.dims().to_vec();
                dims[0] = self.shares.rows(index, rank).len();
                found.push((index, flat.narrow(0, at, len)?.reshape(dims)?));
                at += len;
            }
        }
        Ok(found)
    }

    /// Gives every rank the rows of all variables as their owners have them.
    ///
    /// # Errors
    /// A rank that can't be reached; a device out of memory.
    pub fn spread(&self) -> Result<()> {
        let size = self.ranks.size();
        let begin = |bucket: usize| {
            let lens: Vec<usize> = (0..size)
                .map(|rank| self.members[bucket].iter().map(|&index| self.elements(index, rank)).sum())
                .collect();
            let value = |index: usize| Some(self.variables[index].var.as_tensor());
            self.ranks.begin_spread(self.pack(bucket, self.ranks.rank(), value)?, &lens)
        };
        let begun = (0..self.members.len()).map(begin).collect::<Result<Vec<_>>>()?;
        for (bucket, begun) in begun.into_iter().enumerate() {
            let Some(begun) = begun else { continue };
            for (rank, flat) in begun.wait()?.iter().enumerate() {
                if rank == self.ranks.rank() {
                    continue;
                }
                for (index, rows) in self.unpack(bucket, rank, flat)? {
                    let first = self.shares.rows(index, rank).start;
                    self.variables[index].var.slice_set(&rows.contiguous()?, 0, first)?;
                }
            }
        }
        Ok(())
    }

    /// The whole of a tensor like the variable number `index`, of which `own` are this rank's rows; on the first rank alone, in the
    /// host's memory.
    ///
    /// # Errors
    /// A rank that can't be reached; a device out of memory.
    pub fn whole(&self, index: usize, own: Option<&Tensor>) -> Result<Option<Tensor>> {
        let lens: Vec<usize> = (0..self.ranks.size()).map(|rank| self.elements(index, rank)).collect();
        let own = match own {
            Some(own) => own.flatten_all()?,
            None => nothing()?,
        };
        let Some(begun) = self.ranks.begin_spread(own, &lens)? else { return Ok(None) };
        let parts: Vec<Tensor> = begun.wait()?.into_iter().filter(|part| part.elem_count() > 0).collect();
        if !self.ranks.is_first() {
            return Ok(None);
        }
        // A device may have no room for what it holds a share of.
        let whole = Tensor::cat(&parts, 0)?.reshape(self.variables[index].var.dims())?;
        Ok(Some(whole.to_device(&Device::Cpu)?))
    }
}

/// What a rank has that has no rows: not every device can have a tensor without elements.
fn nothing() -> Result<Tensor> {
    Ok(Tensor::zeros(0, DType::F32, &Device::Cpu)?)
}

/// Gradients on their way to their owners.
pub(crate) struct Collected<'a> {
    buckets: &'a Buckets,
    arrived: Vec<Option<Tensor>>,
    begun: Vec<Option<Box<dyn Begun<Tensor>>>>,
}

impl Collected<'_> {
    /// Takes the gradient of the variable number `index`, contiguous and final; with the last of a bucket that is sent.
    ///
    /// # Errors
    /// A rank that can't be reached; a device out of memory.
    pub fn add(&mut self, index: usize, gradient: Tensor) -> Result<()> {
        self.arrived[index] = Some(gradient);
        let bucket = self.buckets.of[index];
        let members = &self.buckets.members[bucket];
        if members.iter().any(|&member| self.arrived[member].is_none()) {
            return Ok(());
        }
        let of = |index: usize| self.arrived[index].as_ref();
        let ranks = &self.buckets.ranks;
        let parts = (0..ranks.size()).map(|rank| self.buckets.pack(bucket, rank, of));
        self.begun[bucket] = ranks.begin_sum(parts.collect::<Result<_>>()?)?;
        members.iter().for_each(|&member| self.arrived[member] = None);
        Ok(())
    }

    /// The sums of the rows that are this rank's, in the order of the variables, but for those that it has no rows of.
    ///
    /// # Errors
    /// A variable whose gradient never came; a rank that can't be reached; a device out of memory.
    pub fn finish(self) -> Result<Vec<Tensor>> {
        let mut sums = vec![None; self.arrived.len()];
        for (bucket, begun) in self.begun.into_iter().enumerate() {
            let begun = begun.ok_or_else(|| Error::Ranks("a gradient is missing".into()))?;
            for (index, sum) in self.buckets.unpack(bucket, self.buckets.ranks.rank(), &begun.wait()?)? {
                sums[index] = Some(sum.contiguous()?);
            }
        }
        Ok(sums.into_iter().flatten().collect())
    }
}

//! Several processes that train one model together, as one of them sees the others.
//!
//! Every rank runs the same program on its own rows of each batch, and calls what is here in the same order. [`Engine`] is all that has to be
//! known of whoever carries things between them. Knows no model. Invariants: sums are made in the order of the ranks, so that the same ranks give
//! the same bits; a rank that fails tells the others in place of what they wait for, so that all end.

mod buckets;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(any(feature = "nccl", test))]
mod rendezvous;
mod shares;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod threads;

use std::{cell::Cell, fmt, ops::Range, rc::Rc};

use candle_core::Tensor;
use serde::{Serialize, de::DeserializeOwned};

pub(crate) use buckets::{Buckets, Collected};
pub use launch::{Launch, Launcher};
pub(crate) use shares::Shares;

use crate::{Error, Result, student::Variable};

/// Who carries bytes and tensors between ranks. All ranks call the same in the same order.
pub trait Engine: fmt::Debug {
    /// Number of this rank, counted from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// The bytes of every rank, in the order of the ranks.
    ///
    /// # Errors
    /// A rank that can't be reached.
    fn gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>>;

    /// Begins sums: `parts[r]`, flat f32, is what this rank adds to the one that rank `r` will have. A part of no elements is summed
    /// nowhere.
    ///
    /// # Errors
    /// A rank that can't be reached; a device out of memory.
    fn begin_sum(&self, parts: Vec<Tensor>) -> Result<Box<dyn Begun<Tensor>>>;

    /// Begins to give `own`, flat f32, to all; `lens[r]` elements come from rank `r`, in their order.
    ///
    /// # Errors
    /// A rank that can't be reached; a device out of memory.
    fn begin_spread(&self, own: Tensor, lens: &[usize]) -> Result<Box<dyn Begun<Vec<Tensor>>>>;
}

/// What is under way between ranks.
pub trait Begun<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// A rank that can't be reached; a device out of memory.
    fn wait(self: Box<Self>) -> Result<T>;
}

/// What stands in front of the bytes of a rank that goes on, has failed, or was stopped.
const WELL: u8 = 0;
const FAILED: u8 = 1;
const STOPPED: u8 = 2;

/// The ranks of a run: this process alone, or with others.
#[derive(Debug, Clone, Default)]
pub struct Ranks(Option<Rc<Seat>>);

#[derive(Debug)]
struct Seat {
    engine: Box<dyn Engine>,
    /// Whether a rank has said that it goes; nobody answers afterwards.
    parted: Cell<bool>,
}

impl Ranks {
    /// One process.
    pub fn alone() -> Self {
        Self(None)
    }

    /// Those that `engine` reaches.
    pub fn over(engine: Box<dyn Engine>) -> Self {
        Self(Some(Rc::new(Seat { engine, parted: Cell::new(false) })))
    }

    /// Number of this one.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |seat| seat.engine.rank())
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |seat| seat.engine.size())
    }

    /// Whether this is the one that writes files and is watched.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Those of `rows` equal rows that are this rank's.
    ///
    /// # Errors
    /// Rows that can't be divided; `key` is what the recipe calls their number.
    pub fn divide(&self, key: &str, rows: usize) -> Result<Range<usize>> {
        let (rank, size) = (self.rank(), self.size());
        if rows.is_multiple_of(size) {
            return Ok(rows / size * rank..rows / size * (rank + 1));
        }
        Err(Error::Config(format!(
            "{key} = {rows} is the batch of all ranks together, and can't be divided evenly among {size}; want a multiple of {size}, such \
             as {}, or another number of processes",
            rows.next_multiple_of(size)
        )))
    }

    /// Those of `len` items that are this rank's, as equal a share as their number allows.
    pub fn share(&self, len: usize) -> Range<usize> {
        share(len, self.rank(), self.size())
    }

    /// What every rank tells, in their order.
    ///
    /// # Errors
    /// Another rank has failed or was stopped.
    fn exchange(&self, told: Result<&[u8], &Error>) -> Result<Vec<Vec<u8>>> {
        let Some(seat) = self.0.as_ref().filter(|seat| !seat.parted.get()) else {
            return Ok(vec![told.unwrap_or_default().to_vec(); self.size()]);
        };
        let (mark, bytes) = match told {
            Ok(bytes) => (WELL, bytes.to_vec()),
            Err(Error::Interrupted) => (STOPPED, Vec::new()),
            Err(error) => (FAILED, error.to_string().into_bytes()),
        };
        let mut all = seat.engine.gather([&[mark], bytes.as_slice()].concat())?;
        for (rank, told) in all.iter_mut().enumerate() {
            let mark = if told.is_empty() { FAILED } else { told.remove(0) };
            if mark == WELL {
                continue;
            }
            seat.parted.set(true);
            return Err(match mark {
                STOPPED => Error::Interrupted,
                _ => Error::Elsewhere { rank, problem: String::from_utf8_lossy(told).into_owned() },
            });
        }
        Ok(all)
    }

    /// Tells the others that this rank ends because of `error`, if they don't know yet.
    pub fn part(&self, error: &Error) {
        // They are told, or can't be reached any more.
        let _ = self.exchange(Err(error));
    }

    /// `result`, when all ranks have one.
    ///
    /// # Errors
    /// Its own, or that of another rank.
    pub fn agree<T>(&self, result: Result<T>) -> Result<T> {
        let others = self.exchange(result.as_ref().map(|_| &[][..]));
        let value = result?;
        others.map(|_| value)
    }

    /// What `make` gives on the first rank alone; none on the others.
    ///
    /// # Errors
    /// What `make` gives, on all ranks.
    pub fn on_first<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        self.agree(if self.is_first() { make().map(Some) } else { Ok(None) })
    }

    /// What `make` gives on the first rank, then, when that is through, on the others.
    ///
    /// # Errors
    /// What `make` gives.
    pub fn first_then_others<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.is_first() {
            return self.agree(make());
        }
        self.agree(Ok(()))?;
        make()
    }

    /// What `make` gives on the first rank, told to all.
    ///
    /// # Errors
    /// What `make` gives, on all ranks.
    pub fn from_first<T: Serialize + DeserializeOwned>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.size() == 1 {
            return make();
        }
        let lost = |e: serde_json::Error| Error::Ranks(format!("the first rank can't be understood: {e}"));
        let spelled = match self.is_first() {
            true => make().and_then(|made| serde_json::to_vec(&made).map_err(lost)),
            false => Ok(Vec::new()),
        };
        let all = self.exchange(spelled.as_deref());
        spelled?;
        serde_json::from_slice(&all?[0]).map_err(lost)
    }

    /// Sums over the ranks.
    ///
    /// # Errors
    /// Another rank has failed.
    pub fn sum(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        if self.size() == 1 {
            return Ok(numbers.to_vec());
        }
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut sums = vec![0.0; numbers.len()];
        for told in self.exchange(Ok(&bytes))? {
            let theirs = told.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
            sums.iter_mut().zip(theirs).for_each(|(sum, number)| *sum += number);
        }
        Ok(sums)
    }

    /// The words of all ranks, in the order of the ranks.
    ///
    /// # Errors
    /// That of `words`; another rank has failed.
    pub fn concat(&self, words: Result<Vec<u32>>) -> Result<Vec<u32>> {
        if self.size() == 1 {
            return words;
        }
        let bytes = words.map(|words| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>());
        let all = self.exchange(bytes.as_deref());
        bytes?;
        let words =
            |told: Vec<u8>| told.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        Ok(all?.into_iter().map(words).collect::<Vec<Vec<u32>>>().concat())
    }

    /// Whether it is so on any rank.
    ///
    /// # Errors
    /// Another rank has failed.
    pub fn any(&self, is_so: bool) -> Result<bool> {
        Ok(self.sum(&[f64::from(u8::from(is_so))])?[0] > 0.0)
    }

    /// Gives all ranks the first one's values of `variables`, so that none begins with other roundings.
    ///
    /// # Errors
    /// Another rank has failed; a device out of memory.
    pub fn align(&self, variables: &[Variable]) -> Result<()> {
        let Some(seat) = &self.0 else { return Ok(()) };
        self.agree(Ok(()))?;
        for variable in variables {
            let value = variable.var.as_tensor().detach().flatten_all()?;
            let mut lens = vec![0; self.size()];
            lens[0] = value.elem_count();
            let own = if self.is_first() { value } else { value.narrow(0, 0, 0)? };
            let all = seat.engine.begin_spread(own, &lens)?.wait()?;
            if !self.is_first() {
                variable.var.set(&all[0].reshape(variable.var.dims())?)?;
            }
        }
        Ok(())
    }

    /// This rank's part of the sum of `tensor` over all ranks, flat; the parts of all make up the whole. Alone it is the tensor.
    ///
    /// # Errors
    /// A rank that can't be reached; a device out of memory.
    pub fn part_of_sum(&self, tensor: &Tensor) -> Result<Tensor> {
        let Some(seat) = &self.0 else { return Ok(tensor.clone()) };
        let (flat, size) = (tensor.contiguous()?.flatten_all()?, self.size());
        let part = |rank| {
            let share = share(flat.elem_count(), rank, size);
            flat.narrow(0, share.start, share.len())
        };
        let parts = (0..size).map(part).collect::<candle_core::Result<_>>()?;
        seat.engine.begin_sum(parts)?.wait()
    }

    /// The tensors like `own`, flat f32, of all ranks, in their order.
    ///
    /// # Errors
    /// A rank that can't be reached; a device out of memory.
    pub fn everyones(&self, own: &Tensor) -> Result<Vec<Tensor>> {
        match self.begin_spread(own.clone(), &vec![own.elem_count(); self.size()])? {
            Some(begun) => begun.wait(),
            None => Ok(vec![own.clone()]),
        }
    }

    /// Begins as [`Engine::begin_sum`]; none where there is one rank.
    fn begin_sum(&self, parts: Vec<Tensor>) -> Result<Option<Box<dyn Begun<Tensor>>>> {
        self.0.as_ref().map(|seat| seat.engine.begin_sum(parts)).transpose()
    }

    /// Begins as [`Engine::begin_spread`]; none where there is one rank.
    fn begin_spread(&self, own: Tensor, lens: &[usize]) -> Result<Option<Box<dyn Begun<Vec<Tensor>>>>> {
        self.0.as_ref().map(|seat| seat.engine.begin_spread(own, lens)).transpose()
    }
}

/// Those of `len` items that are `rank`'s among `size` ranks.
fn share(len: usize, rank: usize, size: usize) -> Range<usize> {
    len * rank / size..len * (rank + 1) / size
}

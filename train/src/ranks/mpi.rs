//! Ranks that MPI reaches: processes of one machine, or of a cluster's nodes.
//!
//! One thread of its own makes every call to MPI, one after the other as they are asked for, so that what is under way gets on while the
//! trainer computes, whatever the MPI library does about progress by itself. Tensors go through the host's memory. A rank that dies ends all:
//! mpirun and srun see to that.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use candle_core::{Device, Tensor};
use mpi::{
    Threading,
    request::scope,
    topology::SimpleCommunicator,
    traits::{Communicator as _, Destination as _, Equivalence, Source as _},
};

use super::{Begun, Engine, Launch, Ranks};
use crate::{Error, Result};

/// Looks at open messages before the thread sleeps between them, so that a rank that waits leaves its processor to those that compute.
const LOOKS: usize = 50;
const NAP: Duration = Duration::from_micros(50);
/// Looks after which others are taken to have something long to do.
const MANY_LOOKS: usize = 2000;
const LONG_NAP: Duration = Duration::from_millis(1);

/// What the thread of MPI does next.
type Order = Box<dyn FnOnce(&SimpleCommunicator) + Send>;

/// Meets the ranks of the `launch`.
///
/// # Errors
/// MPI sees another number of processes than the launcher says it has started.
pub(super) fn connect(launch: &Launch) -> Result<Ranks> {
    let (orders, taken) = channel::<Order>();
    let (ready, met) = channel();
    let serve = move || {
        let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else { return };
        let world = universe.world();
        if ready.send((world.rank() as usize, world.size() as usize)).is_ok() {
            taken.into_iter().for_each(|order| order(&world));
        }
    };
    let thread = thread::Builder::new().name("mpi".into()).spawn(serve);
    let thread = thread.map_err(|e| Error::Ranks(format!("no thread for MPI: {e}")))?;
    let (rank, size) = met.recv().map_err(|_| gone())?;
    if size != launch.size {
        return Err(Error::Ranks(format!(
            "{} processes were started, but MPI sees {size}: the launcher is not that of the MPI library that this qat was built with (for \
             srun, try --mpi=pmix)",
            launch.size
        )));
    }
    Ok(Ranks::over(Box::new(Mpi { rank, size, orders: Some(orders), thread: Some(thread) })))
}

#[derive(Debug)]
struct Mpi {
    rank: usize,
    size: usize,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Mpi {
    /// Has the thread do `work`; what came of it is received.
    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SimpleCommunicator) -> T + Send + 'static,
    ) -> Result<Receiver<T>> {
        let (answer, answered) = channel();
        // Who asked and went away needs no answer.
        let order: Order = Box::new(move |world| drop(answer.send(work(world))));
        self.orders.as_ref().and_then(|orders| orders.send(order).ok()).ok_or_else(gone)?;
        Ok(answered)
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // The thread ends with its orders, and with it MPI.
        self.orders = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn gone() -> Error {
    Error::Ranks("MPI could not be started, or has ended".into())
}

impl Engine for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let work = move |world: &SimpleCommunicator| {
            let size = world.size() as usize;
            let lens = exchange(world, &vec![&[bytes.len() as u64][..]; size], &vec![1; size]);
            let lens: Vec<usize> = lens.iter().map(|len| len[0] as usize).collect();
            exchange(world, &vec![&bytes[..]; size], &lens)
        };
        self.ask(work)?.recv().map_err(|_| gone())
    }

    fn begin_sum(&self, parts: Vec<Tensor>) -> Result<Box<dyn Begun<Tensor>>> {
        let device = parts[self.rank].device().clone();
        let parts = parts.iter().map(Tensor::to_vec1).collect::<candle_core::Result<Vec<Vec<f32>>>>()?;
        let rank = self.rank;
        let work = move |world: &SimpleCommunicator| {
            let to: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
            let mut all = exchange(world, &to, &vec![parts[rank].len(); parts.len()]).into_iter();
            let mut sum = all.next().unwrap_or_default();
            all.for_each(|part| add(&mut sum, &part));
            sum
        };
        Ok(Box::new(Answer { answered: self.ask(work)?, device }))
    }

    fn begin_spread(&self, own: Tensor, lens: &[usize]) -> Result<Box<dyn Begun<Vec<Tensor>>>> {
        let device = own.device().clone();
        let (own, lens) = (own.to_vec1::<f32>()?, lens.to_vec());
        let work = move |world: &SimpleCommunicator| exchange(world, &vec![&own[..]; lens.len()], &lens);
        Ok(Box::new(Answer { answered: self.ask(work)?, device }))
    }
}

fn add(sum: &mut [f32], part: &[f32]) {
    qat_quant::vectorized(
        #[inline(always)]
        || sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part),
    );
}

/// Sends `to[r]` to each rank, and gives what came from each, which are `lens[r]` elements; its own from itself.
fn exchange<T: Equivalence + Clone + Default>(
    world: &SimpleCommunicator,
    to: &[&[T]],
    lens: &[usize],
) -> Vec<Vec<T>> {
    let own = world.rank() as usize;
    let room =
        |(rank, len): (usize, &usize)| if rank == own { to[own].to_vec() } else { vec![T::default(); *len] };
    let mut from: Vec<Vec<T>> = lens.iter().enumerate().map(room).collect();
    scope(|scope| {
        let mut open = Vec::new();
        for (rank, room) in
            from.iter_mut().enumerate().filter(|(rank, room)| *rank != own && !room.is_empty())
        {
            open.push(world.process_at_rank(rank as i32).immediate_receive_into(scope, &mut room[..]));
        }
        for (rank, part) in to.iter().enumerate().filter(|(rank, part)| *rank != own && !part.is_empty()) {
            open.push(world.process_at_rank(rank as i32).immediate_send(scope, *part));
        }
        let mut looks = 0;
        while !open.is_empty() {
            let before = open.len();
            open = open.into_iter().filter_map(|message| message.test().err()).collect();
            looks = if open.len() < before { 0 } else { looks + 1 };
            if looks > LOOKS {
                thread::sleep(if looks > MANY_LOOKS { LONG_NAP } else { NAP });
            }
        }
    });
    from
}

/// What the thread will answer.
struct Answer<T> {
    answered: Receiver<T>,
    device: Device,
}

impl Begun<Tensor> for Answer<Vec<f32>> {
    fn wait(self: Box<Self>) -> Result<Tensor> {
        tensor(self.answered.recv().map_err(|_| gone())?, &self.device)
    }
}

impl Begun<Vec<Tensor>> for Answer<Vec<Vec<f32>>> {
    fn wait(self: Box<Self>) -> Result<Vec<Tensor>> {
        let parts = self.answered.recv().map_err(|_| gone())?;
        parts.into_iter().map(|part| tensor(part, &self.device)).collect()
    }
}

fn tensor(values: Vec<f32>, device: &Device) -> Result<Tensor> {
    let len = values.len();
    Ok(Tensor::from_vec(values, len, device)?)
}

//! Ranks that are threads of one process: what tests hold the others to.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::mpsc::{Receiver, Sender, channel},
};

use candle_core::Tensor;

use super::{Begun, Engine, Ranks};
use crate::{Error, Result};

/// What one thread sends another, numbered by what it belongs to.
enum Message {
    Bytes(Vec<u8>),
    Part(Tensor),
}

/// The place of one rank, which a thread takes with it.
pub(crate) struct Seat {
    rank: usize,
    to: Vec<Sender<(u64, Message)>>,
    from: Vec<Receiver<(u64, Message)>>,
}

/// Seats for `size` ranks.
pub(crate) fn seats(size: usize) -> Vec<Seat> {
    let mut seats: Vec<Seat> =
        (0..size).map(|rank| Seat { rank, to: Vec::new(), from: Vec::new() }).collect();
    for from in 0..size {
        for to in 0..size {
            let (sender, receiver) = channel();
            seats[from].to.push(sender);
            seats[to].from.push(receiver);
        }
    }
    seats
}

/// Runs `f` as each of `size` ranks; gives what came of it, in their order.
pub(crate) fn together<R: Send>(size: usize, f: impl Fn(Ranks) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let f = &f;
        let run = |seat: Seat| scope.spawn(move || f(seat.ranks()));
        let running: Vec<_> = seats(size).into_iter().map(run).collect();
        running.into_iter().map(|thread| thread.join().expect("a rank that doesn't panic")).collect()
    })
}

impl Seat {
    /// The ranks as they are seen from here.
    pub fn ranks(self) -> Ranks {
        let early = RefCell::new(HashMap::new());
        let next = RefCell::new(0);
        Ranks::over(Box::new(Threads(std::rc::Rc::new(Line { seat: self, early, next }))))
    }
}

struct Line {
    seat: Seat,
    /// What came before it was asked for.
    early: RefCell<HashMap<(usize, u64), Message>>,
    next: RefCell<u64>,
}

impl Line {
    fn number(&self) -> u64 {
        let mut next = self.next.borrow_mut();
        *next += 1;
        *next
    }

    fn send(&self, to: usize, number: u64, message: Message) -> Result<()> {
        self.seat.to[to].send((number, message)).map_err(|_| gone(to))
    }

    fn receive(&self, from: usize, number: u64) -> Result<Message> {
        loop {
            if let Some(message) = self.early.borrow_mut().remove(&(from, number)) {
                return Ok(message);
            }
            let (of, message) = self.seat.from[from].recv().map_err(|_| gone(from))?;
            self.early.borrow_mut().insert((from, of), message);
        }
    }

    fn part(&self, from: usize, number: u64) -> Result<Tensor> {
        match self.receive(from, number)? {
            Message::Part(tensor) => Ok(tensor),
            Message::Bytes(_) => Err(Error::Ranks("ranks don't do the same".into())),
        }
    }
}

fn gone(rank: usize) -> Error {
    Error::Ranks(format!("rank {rank} is gone"))
}

struct Threads(std::rc::Rc<Line>);

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

impl Engine for Threads {
    fn rank(&self) -> usize {
        self.0.seat.rank
    }

    fn size(&self) -> usize {
        self.0.seat.to.len()
    }

    fn gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let number = self.0.number();
        (0..self.size()).try_for_each(|to| self.0.send(to, number, Message::Bytes(bytes.clone())))?;
        let receive = |from| match self.0.receive(from, number)? {
            Message::Bytes(bytes) => Ok(bytes),
            Message::Part(_) => Err(Error::Ranks("ranks don't do the same".into())),
        };
        (0..self.size()).map(receive).collect()
    }

    fn begin_sum(&self, parts: Vec<Tensor>) -> Result<Box<dyn Begun<Tensor>>> {
        let number = self.0.number();
        for (to, part) in parts.into_iter().enumerate() {
            self.0.send(to, number, Message::Part(part))?;
        }
        Ok(Box::new(Sum(self.0.clone(), number)))
    }

    fn begin_spread(&self, own: Tensor, lens: &[usize]) -> Result<Box<dyn Begun<Vec<Tensor>>>> {
        assert_eq!(own.elem_count(), lens[self.rank()]);
        let number = self.0.number();
        // Others must not see it change.
        let own = Tensor::from_vec(own.to_vec1::<f32>()?, own.elem_count(), own.device())?;
        (0..self.size()).try_for_each(|to| self.0.send(to, number, Message::Part(own.clone())))?;
        Ok(Box::new(Spread(self.0.clone(), number)))
    }
}

struct Sum(std::rc::Rc<Line>, u64);

impl Begun<Tensor> for Sum {
    fn wait(self: Box<Self>) -> Result<Tensor> {
        let mut sum = self.0.part(0, self.1)?;
        for from in 1..self.0.seat.from.len() {
            sum = (sum + self.0.part(from, self.1)?)?;
        }
        Ok(sum)
    }
}

struct Spread(std::rc::Rc<Line>, u64);

impl Begun<Vec<Tensor>> for Spread {
    fn wait(self: Box<Self>) -> Result<Vec<Tensor>> {
        (0..self.0.seat.from.len()).map(|from| self.0.part(from, self.1)).collect()
    }
}

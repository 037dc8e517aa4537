//! Runs a compiled kernel over its grid, on the calling thread: one coroutine for each GPU thread of a threadgroup, threadgroups
//! one after the other.
//!
//! Threads wait in two places: at an exchange, for the lanes of their simdgroup, and at a threadgroup barrier, for all. Who waits
//! for somebody that can't come has diverged; that ends the run.

pub mod abi;
mod access;
mod callbacks;
#[cfg(target_os = "linux")]
mod faults;
mod fibers;
pub mod floats;
pub mod memory;
mod schedule;
mod shadow;

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::BTreeSet,
    ptr,
};

use crate::{
    Order,
    error::{Kind, Violation},
    random::Random,
};
use abi::{BuiltIns, SOURCES, Site, Slot};
pub use callbacks::FUNCTIONS;
use memory::Memory;
pub use schedule::run;

/// More violations than this are not told.
const ENOUGH: usize = 30;

/// What is launched.
pub struct Grid {
    pub groups: [u32; 3],
    /// Of a full threadgroup.
    pub threads: [u32; 3],
    /// Of the whole grid: the last threadgroups of each row may be smaller.
    pub extent: [u32; 3],
}

/// How it is run.
pub struct Settings {
    pub order: Order,
    pub checked: bool,
    pub shuffled: bool,
}

/// What happened, counted.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub threads: u64,
    pub barriers: u64,
    pub simd_operations: u64,
    pub threadgroup_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// At an exchange of its simdgroup.
    Meeting,
    /// At a threadgroup barrier.
    AtBarrier,
    Done,
}

struct Thread {
    state: Cell<State>,
    suspender: Cell<*const fibers::Suspender>,
    built_ins: Cell<BuiltIns>,
}

struct Simdgroup {
    /// Lanes that exist, and those that have not ended.
    all: Cell<u32>,
    live: Cell<u32>,
    /// Lanes that wait at `site`.
    arrived: Cell<u32>,
    site: Cell<Option<Site>>,
    /// Exchanges take turns, so that a quick lane can begin the next one while a slow one still reads.
    turn: Cell<usize>,
    taken: Cell<[u32; 2]>,
    slots: UnsafeCell<[[Slot; 32]; 2]>,
    device_epoch: Cell<u32>,
    threadgroup_epoch: Cell<u32>,
}

/// A run in progress, as the functions that the kernel calls find it.
pub struct Run<'a> {
    kernel: &'a Kernel,
    settings: Settings,
    memory: RefCell<&'a mut Memory>,
    threads: Vec<Thread>,
    simdgroups: Vec<Simdgroup>,
    /// Threads of the threadgroup that runs, of those that `threads` has room for.
    size: Cell<u32>,
    /// Those of them that have not ended.
    live: Cell<u32>,
    group: Cell<[u32; 3]>,
    /// Counts threadgroups, from 1.
    life: Cell<u32>,
    /// The thread that runs, if one does.
    now: Cell<Option<usize>>,
    waiting: Cell<u32>,
    barrier: Cell<Option<Site>>,
    device_epoch: Cell<u32>,
    threadgroup_epoch: Cell<u32>,
    /// Whether the run can't go on.
    broken: Cell<bool>,
    lane_order: [u8; 32],
    counts: Cell<Counts>,
    violations: RefCell<Vec<Violation>>,
    /// Kind and place of what was told already.
    told: RefCell<BTreeSet<(Kind, String)>>,
}

/// What is called for each thread.
pub struct Kernel {
    pub call: extern "C" fn(&abi::Arguments),
    pub buffers: Vec<*mut u8>,
    pub threadgroup: Vec<*mut u8>,
}

thread_local! {
    static CURRENT: Cell<*const Run<'static>> = const { Cell::new(ptr::null()) };
}

/// The run that the calling code is part of.
fn current<'a>() -> Option<&'a Run<'static>> {
    // SAFETY: set for the time of `schedule::run` only, to a run that is borrowed for this time; all it holds is behind cells.
    unsafe { CURRENT.get().as_ref() }
}

impl Run<'_> {
    /// Simdgroup and lane of a thread.
    fn lane(&self, thread: usize) -> (&Simdgroup, u32) {
        (&self.simdgroups[thread / 32], (thread % 32) as u32)
    }

    /// The index, over the whole grid, of a thread of this threadgroup.
    fn global(&self, thread: usize) -> u32 {
        (self.life.get() - 1) * self.threads.len() as u32 + thread as u32
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    /// Tells a violation by the thread that runs, at an instruction or (if it is known) at a line.
    fn tell(&self, kind: Kind, message: String, place: Place) {
        let place = place.text();
        if self.violations.borrow().len() >= ENOUGH || !self.told.borrow_mut().insert((kind, place.clone())) {
            return;
        }
        let thread = self.now.get().map(|t| t as u32);
        let threadgroup = self.group.get();
        self.violations.borrow_mut().push(Violation { kind, message, threadgroup, thread, place });
    }

    /// Ends the run: the calling thread never goes on.
    fn give_up(&self) -> ! {
        self.broken.set(true);
        loop {
            self.suspend();
        }
    }

    /// Waits until the scheduler lets the calling thread go on.
    fn suspend(&self) {
        let Some(now) = self.now.get() else { return };
        // SAFETY: set when the thread began, and alive on its stack for as long as it runs.
        unsafe { (*self.threads[now].suspender.get()).suspend(()) };
    }
}

/// Where something happened.
pub enum Place {
    Line(String),
    /// The address after an instruction.
    Instruction(usize),
}

impl Place {
    fn text(self) -> String {
        match self {
            Self::Line(text) => text,
            Self::Instruction(pc) => crate::symbols::line(pc),
        }
    }
}

impl Thread {
    fn new() -> Self {
        Self {
            state: Cell::new(State::Done),
            suspender: Cell::new(ptr::null()),
            built_ins: Cell::new([[0; 4]; SOURCES]),
        }
    }
}

impl Simdgroup {
    fn new() -> Self {
        Self {
            all: Cell::new(0),
            live: Cell::new(0),
            arrived: Cell::new(0),
            site: Cell::new(None),
            turn: Cell::new(0),
            taken: Cell::new([0; 2]),
            slots: UnsafeCell::new([[[0; 64]; 32]; 2]),
            device_epoch: Cell::new(0),
            threadgroup_epoch: Cell::new(0),
        }
    }
}

/// The order in which the lanes of a reduction are taken.
fn lane_order(shuffled: bool) -> [u8; 32] {
    let mut order: [u8; 32] = std::array::from_fn(|i| i as u8);
    if shuffled {
        Random::new(0x5eed).shuffle(&mut order);
    }
    order
}

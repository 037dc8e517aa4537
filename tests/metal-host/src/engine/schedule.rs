//! Who runs next: threadgroups in the order asked for, and within one all threads in turn until every one has ended.

use super::{
    BuiltIns, CURRENT, Counts, Grid, Kernel, Memory, Place, Run, SOURCES, Settings, Simdgroup, State, Thread,
    abi, current,
    fibers::{self, Fiber, Suspender},
    lane_order,
};
use crate::{
    Order,
    error::{Kind, Violation},
    random::Random,
};
use std::cell::{Cell, RefCell};

/// Bytes of threadgroup memory on every Apple GPU.
const THREADGROUP_MEMORY: usize = 32 * 1024;

/// Runs `kernel` over `grid`; what it did wrong comes back beside what it did.
pub fn run(
    kernel: &Kernel,
    grid: &Grid,
    settings: Settings,
    memory: &mut Memory,
) -> std::io::Result<(Counts, Vec<Violation>)> {
    let threads: u32 = grid.threads.iter().product();
    let mut fibers = fibers::take(threads as usize, thread)?;
    #[cfg(target_os = "linux")]
    super::faults::catch();
    let run = Run {
        kernel,
        lane_order: lane_order(settings.shuffled),
        settings,
        memory: RefCell::new(memory),
        threads: (0..threads).map(|_| Thread::new()).collect(),
        simdgroups: (0..threads.div_ceil(32)).map(|_| Simdgroup::new()).collect(),
        size: Cell::new(0),
        live: Cell::new(0),
        group: Cell::new([0; 3]),
        life: Cell::new(0),
        now: Cell::new(None),
        waiting: Cell::new(0),
        barrier: Cell::new(None),
        device_epoch: Cell::new(0),
        threadgroup_epoch: Cell::new(0),
        broken: Cell::new(false),
        counts: Cell::new(Counts::default()),
        violations: RefCell::default(),
        told: RefCell::default(),
    };
    CURRENT.set((&raw const run).cast());
    grid_of(&run, grid, &mut fibers);
    CURRENT.set(std::ptr::null());
    if !run.broken.get() {
        fibers::give_back(fibers);
    }
    Ok((run.counts.get(), run.violations.into_inner()))
}

fn grid_of(run: &Run, grid: &Grid, fibers: &mut [Fiber]) {
    let [columns, rows, layers] = grid.groups;
    let mut groups: Vec<u32> = (0..columns * rows * layers).collect();
    let mut random = match run.settings.order {
        Order::Random(seed) => Random::new(seed),
        Order::Forward | Order::Reverse => Random::new(0),
    };
    arrange(&mut groups, run.settings.order, &mut random);
    let mut order: Vec<usize> = Vec::new();
    for group in groups {
        let place = [group % columns, group / columns % rows, group / columns / rows];
        begin(run, grid, place);
        order.clear();
        order.extend(0..run.size.get() as usize);
        arrange(&mut order, run.settings.order, &mut random);
        threadgroup(run, &order, fibers);
        if run.broken.get() {
            return;
        }
    }
}

fn arrange<T>(items: &mut [T], order: Order, random: &mut Random) {
    match order {
        Order::Forward => {}
        Order::Reverse => items.reverse(),
        Order::Random(_) => random.shuffle(items),
    }
}

/// Sets up the threadgroup at `place`.
fn begin(run: &Run, grid: &Grid, place: [u32; 3]) {
    let size: [u32; 3] =
        std::array::from_fn(|i| grid.threads[i].min(grid.extent[i] - place[i] * grid.threads[i]));
    let threads: u32 = size.iter().product();
    run.group.set(place);
    run.life.set(run.life.get() + 1);
    run.size.set(threads);
    run.live.set(threads);
    run.waiting.set(0);
    run.device_epoch.set(run.device_epoch.get() + 1);
    run.threadgroup_epoch.set(run.threadgroup_epoch.get() + 1);
    run.memory.borrow_mut().poison_threadgroup();
    run.count(|c| c.threads += u64::from(threads));
    for (index, group) in run.simdgroups.iter().enumerate() {
        let lanes = threads.saturating_sub(32 * index as u32).min(32);
        group.all.set(u32::MAX.checked_shr(32 - lanes).unwrap_or(0));
        group.live.set(group.all.get());
        group.arrived.set(0);
        group.device_epoch.set(0);
        group.threadgroup_epoch.set(0);
    }
    for index in 0..threads {
        let thread = &run.threads[index as usize];
        thread.state.set(State::Ready);
        thread.built_ins.set(built_ins(grid, place, size, index));
    }
}

/// What a thread is told of itself, by the sources of `shim/runtime.h`.
fn built_ins(grid: &Grid, place: [u32; 3], size: [u32; 3], index: u32) -> BuiltIns {
    let within = [index % size[0], index / size[0] % size[1], index / size[0] / size[1]];
    let simdgroups = |threads: [u32; 3]| threads.iter().product::<u32>().div_ceil(32);
    let three = |v: [u32; 3]| [v[0], v[1], v[2], 0];
    let one = |v: u32| [v, 0, 0, 0];
    let mut values = [[0; 4]; SOURCES];
    let given = [
        three(std::array::from_fn(|i| place[i] * grid.threads[i] + within[i])),
        three(place),
        three(within),
        one(index),
        three(size),
        three(grid.threads),
        three(grid.groups),
        three(grid.extent),
        one(index % 32),
        one(index / 32),
        one(simdgroups(size)),
        one(simdgroups(grid.threads)),
        one(32),
        one(index / 4),
        one(index % 4),
    ];
    values[abi::THREADGROUP as usize + 1..].copy_from_slice(&given);
    values
}

/// Runs the threads of one threadgroup until all have ended, or none can go on.
fn threadgroup(run: &Run, order: &[usize], fibers: &mut [Fiber]) {
    while run.live.get() > 0 {
        let mut moved = false;
        for index in order {
            if run.threads[*index].state.get() != State::Ready {
                continue;
            }
            moved = true;
            run.now.set(Some(*index));
            fibers[*index].resume();
            run.now.set(None);
            if run.broken.get() {
                return;
            }
        }
        if !moved {
            run.stuck();
            return;
        }
    }
}

/// What each coroutine does: one thread of one threadgroup, from beginning to end.
fn thread(suspender: &Suspender) {
    let Some(run) = current() else { return };
    let Some(now) = run.now.get() else { return };
    let thread = &run.threads[now];
    thread.suspender.set(suspender);
    let built_ins = thread.built_ins.get();
    let kernel = run.kernel;
    (kernel.call)(&abi::Arguments {
        buffers: kernel.buffers.as_ptr(),
        threadgroup: kernel.threadgroup.as_ptr(),
        built_ins: built_ins.as_ptr(),
    });
    thread.state.set(State::Done);
    run.live.set(run.live.get() - 1);
    let (group, lane) = run.lane(now);
    group.live.set(group.live.get() & !(1 << lane));
    if group.arrived.get() != 0 && group.arrived.get() == group.live.get() {
        run.release_simdgroup(now / 32);
    }
    if run.waiting.get() > 0 && run.waiting.get() == run.live.get() {
        run.release_barrier();
    }
}

impl Run<'_> {
    /// Tells, lane by lane, who waits for what.
    fn stuck(&self) {
        let mut waits = Vec::new();
        for (index, group) in self.simdgroups.iter().enumerate() {
            let lanes = |state: State| -> u32 {
                let threads = self.threads.iter().skip(32 * index).take(32).enumerate();
                threads.filter(|(_, t)| t.state.get() == state).fold(0, |mask, (lane, _)| mask | 1 << lane)
                    & group.all.get()
            };
            if let (Some(site), true) = (group.site.get(), lanes(State::Meeting) != 0) {
                let (name, place) = (site.name(), site.place());
                let (here, barrier) = (lanes(State::Meeting), lanes(State::AtBarrier));
                let rest = match barrier {
                    0 => String::new(),
                    _ => format!(", lanes {barrier:08x} at a threadgroup_barrier"),
                };
                waits.push(format!("lanes {here:08x} of simdgroup {index} wait in {name} at {place}{rest}"));
            }
        }
        let place = self.barrier.get().filter(|_| self.waiting.get() > 0).map(|site| site.place());
        waits.sort();
        let message = format!("no thread can go on: {}", waits.join("; "));
        self.tell(Kind::Divergence, message, Place::Line(place.unwrap_or_default()));
        self.broken.set(true);
    }

    /// Lets a simdgroup go on from where all its lanes have come.
    pub(super) fn release_simdgroup(&self, index: usize) {
        let group = &self.simdgroups[index];
        let arrived = group.arrived.replace(0);
        if let (true, Some(site)) = (group.live.get() != group.all.get(), group.site.get()) {
            let gone = group.all.get() & !group.live.get();
            let message =
                format!("{} after lanes {gone:08x} of simdgroup {index} have left the kernel", site.name());
            self.tell(Kind::Divergence, message, Place::Line(site.place()));
        }
        let mut taken = group.taken.get();
        taken[group.turn.get()] = arrived;
        group.taken.set(taken);
        group.turn.set(1 - group.turn.get());
        self.count(|c| c.simd_operations += 1);
        for thread in self.threads.iter().skip(32 * index).take(32) {
            if thread.state.get() == State::Meeting {
                thread.state.set(State::Ready);
            }
        }
    }

    /// Lets the threadgroup go on from its barrier.
    pub(super) fn release_barrier(&self) {
        let Some(site) = self.barrier.get() else { return };
        if self.live.get() != self.size.get() {
            let gone = self.size.get() - self.live.get();
            let message = format!(
                "threadgroup_barrier after {gone} of {} threads have left the kernel",
                self.size.get()
            );
            self.tell(Kind::Divergence, message, Place::Line(site.place()));
        }
        self.waiting.set(0);
        self.count(|c| c.barriers += 1);
        for thread in &self.threads {
            if thread.state.get() == State::AtBarrier {
                thread.state.set(State::Ready);
            }
        }
    }

    /// Whether more threadgroup memory is asked for than there is.
    pub(super) fn refuse_too_much_threadgroup_memory(&self, place: Place) {
        let bytes = self.memory.borrow().threadgroup_bytes();
        self.count(|c| c.threadgroup_bytes = bytes);
        if bytes > THREADGROUP_MEMORY {
            let message = format!("{bytes} bytes, and there are {THREADGROUP_MEMORY}");
            self.tell(Kind::ThreadgroupMemory, message, place);
        }
    }
}

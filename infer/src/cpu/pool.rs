//! Threads for one caller: a job is cut into tasks, the caller works along, and the call returns when all is done.
//!
//! A token is decoded in some 150 jobs of 20 to 100 µs, so what counts is the time to begin and to end one. Workers
//! therefore wait for the next job spinning, for [`SPIN`], before they go to sleep; tasks are handed out by one counter,
//! a few at a time, so that a thread that the system interrupts holds up nobody; and a job ends without those workers
//! that never came. On two cores a job of 32 empty tasks takes 0.24 µs here, 7 µs in rayon (`benches/pool.rs`).
//!
//! Knows no arithmetic. Invariants: every task runs exactly once, and what it writes to ([`Parts`]) is its own; when a
//! call returns or unwinds, no worker touches what the call was given. A panic in a task ends the call with that panic.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How long a worker spins before it sleeps: longer than what lies between two jobs of a token, or between two tokens.
const SPIN: Duration = Duration::from_micros(200);
/// Spins of the caller before it lets others have its core: a worker has been interrupted in the middle of a task.
const PATIENCE: usize = 20_000;
/// Portions for each thread that the tasks of a job are handed out in.
const PORTIONS: usize = 8;
/// More threads than this are a mistake.
const MOST: usize = 1024;

/// A caller's threads. Dropping it ends them.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Not `Sync`: two callers at a time, or a call from within a task, would overwrite the job.
    one_caller: PhantomData<Cell<()>>,
}

/// `job << 32 | OPEN or STOP | workers inside`: who comes in and whether anyone may is one atomic step.
type State = u64;
const OPEN: State = 1 << 31;
const STOP: State = 1 << 30;
const INSIDE: State = STOP - 1;

/// A number on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Alone<T>(T);

#[derive(Debug)]
struct Shared {
    state: Alone<AtomicU64>,
    /// The first task that nobody has taken.
    next: Alone<AtomicUsize>,
    job: UnsafeCell<Job>,
    asleep: AtomicUsize,
    door: Mutex<()>,
    bell: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A job as the workers see it: `call(data, worker, task)` for each task below `tasks`, taken `portion` at a time.
#[derive(Debug, Clone, Copy)]
struct Job {
    data: *const (),
    call: unsafe fn(*const (), usize, usize),
    tasks: usize,
    portion: usize,
}

// SAFETY: the job is written by the caller while the state is neither open nor has anyone inside, and read by workers
// inside. The pointer in it is to a `Sync` closure that outlives the time when someone is inside.
#[expect(unsafe_code, reason = "a job is shared by the protocol of `state`")]
unsafe impl Sync for Shared {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a job is shared by the protocol of `state`")]
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads`, the caller's among them.
    ///
    /// # Errors
    /// When there are none or absurdly many, or the system gives no more.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 || threads > MOST {
            return Err(Error::Invalid(format!("{threads} threads: choose 1 to {MOST}")));
        }
        let shared = Arc::new(Shared {
            state: Alone::default(),
            next: Alone::default(),
            job: UnsafeCell::new(Job { data: std::ptr::null(), call: no_task, tasks: 0, portion: 1 }),
            asleep: AtomicUsize::new(0),
            door: Mutex::new(()),
            bell: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new(), one_caller: PhantomData };
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let spawned =
                std::thread::Builder::new().name(format!("qat-{worker}")).spawn(move || shared.serve(worker));
            let handle = spawned.map_err(|e| {
                Error::Invalid(format!("thread {worker} of {threads} can't be started ({e}); choose fewer"))
            })?;
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// Threads, the caller's among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(thread, index)` for every index below `tasks`; `thread` is below [`threads`](Self::threads), and no
    /// two tasks have the same one at the same time.
    pub fn run<F: Fn(usize, usize) + Sync>(&self, tasks: usize, task: F) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(|index| task(0, index));
            return;
        }
        let portion = (tasks / (self.threads() * PORTIONS)).max(1);
        let job = Job { data: (&raw const task).cast(), call: call::<F>, tasks, portion };
        let shared = &*self.shared;
        shared.open(job);
        let own = catch_unwind(AssertUnwindSafe(|| shared.work(job, 0)));
        shared.close();
        let theirs = lock(&shared.panic).take();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = theirs {
            resume_unwind(panic);
        }
    }

    /// Calls `task(index, part)` for every part.
    pub fn each<P: Parts>(&self, parts: P, task: impl Fn(usize, P::Part) + Sync) {
        #[expect(unsafe_code, reason = "parts are handed out here and nowhere else")]
        self.run(parts.count(), |_, index| {
            // SAFETY: `run` gives every index below the count once, and `parts` is used by this call only.
            task(index, unsafe { parts.part(index) });
        });
    }

    /// [`each`](Self::each) with something of each thread's own to work in.
    ///
    /// # Panics
    /// When `scratch` has fewer elements than there are threads.
    pub fn each_with<S: Send, P: Parts>(
        &self,
        scratch: &mut [S],
        parts: P,
        task: impl Fn(&mut S, usize, P::Part) + Sync,
    ) {
        assert!(
            scratch.len() >= self.threads(),
            "{} scratches for {} threads",
            scratch.len(),
            self.threads()
        );
        let scratch = Chunks::new(scratch, 1);
        #[expect(unsafe_code, reason = "parts and scratch are handed out here and nowhere else")]
        self.run(parts.count(), |thread, index| {
            // SAFETY: as in `each`; and a thread runs one task at a time, so its scratch has one user at a time.
            let (scratch, part) = unsafe { (scratch.part(thread), parts.part(index)) };
            task(&mut scratch[0], index, part);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.0.fetch_or(STOP, Ordering::SeqCst);
        self.shared.ring();
        for worker in self.workers.drain(..) {
            // A worker's panics were the callers' and have been handed on.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Publishes a job. Nobody is inside.
    fn open(&self, job: Job) {
        // SAFETY: the state is closed and nobody is inside, so that nobody else looks at the job.
        #[expect(unsafe_code, reason = "the job is the caller's until it opens")]
        unsafe {
            *self.job.get() = job;
        }
        self.next.0.store(0, Ordering::Relaxed);
        let number = self.state.0.load(Ordering::Relaxed) >> 32;
        // Sequentially consistent, as is a worker's way to bed: one of the two sees the other.
        self.state.0.store(number.wrapping_add(1) << 32 | OPEN, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) > 0 {
            self.ring();
        }
    }

    /// Lets nobody in any more and waits for those inside.
    fn close(&self) {
        self.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.state.0.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < PATIENCE { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }

    /// Wakes who sleeps.
    fn ring(&self) {
        drop(lock(&self.door));
        self.bell.notify_all();
    }

    /// The tasks that are left, until none is.
    fn work(&self, job: Job, thread: usize) {
        loop {
            let first = self.next.0.fetch_add(job.portion, Ordering::Relaxed);
            if first >= job.tasks {
                return;
            }
            for index in first..(first + job.portion).min(job.tasks) {
                // SAFETY: `data` is the closure that `call` was made for; it lives until the job is closed and nobody is
                // inside.
                #[expect(unsafe_code, reason = "the closure's type was erased to hand it over")]
                unsafe {
                    (job.call)(job.data, thread, index);
                }
            }
        }
    }

    /// The life of a worker.
    fn serve(&self, thread: usize) {
        let mut served = 0;
        while let Some(state) = self.await_job(served) {
            if self.state.0.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            served = state >> 32;
            // SAFETY: the worker is inside, where the job doesn't change.
            #[expect(unsafe_code, reason = "the job is shared while someone is inside")]
            let job = unsafe { *self.job.get() };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(job, thread))) {
                self.next.0.fetch_max(job.tasks, Ordering::Relaxed);
                *lock(&self.panic) = Some(panic);
            }
            self.state.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open job other than number `served`; none when the pool ends.
    fn await_job(&self, served: u64) -> Option<State> {
        let is_for_me = |state: State| state & STOP != 0 || state & OPEN != 0 && state >> 32 != served;
        let began = Instant::now();
        loop {
            for _ in 0..64 {
                let state = self.state.0.load(Ordering::Acquire);
                if is_for_me(state) {
                    return (state & STOP == 0).then_some(state);
                }
                std::hint::spin_loop();
            }
            if began.elapsed() > SPIN {
                break;
            }
        }
        let mut door = lock(&self.door);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let state = loop {
            let state = self.state.0.load(Ordering::SeqCst);
            if is_for_me(state) {
                break state;
            }
            door = self.bell.wait(door).unwrap_or_else(PoisonError::into_inner);
        };
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        (state & STOP == 0).then_some(state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is behind the locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Safety
/// `data` points to an `F` that lives.
#[expect(unsafe_code, reason = "the way back from an erased closure")]
unsafe fn call<F: Fn(usize, usize) + Sync>(data: *const (), thread: usize, index: usize) {
    // SAFETY: what the caller promises.
    let task = unsafe { &*data.cast::<F>() };
    task(thread, index);
}

/// The task of a pool that never had one.
///
/// # Safety
/// None is needed; the signature is that of [`call`].
#[expect(unsafe_code, reason = "the signature of `call`")]
unsafe fn no_task(_: *const (), _: usize, _: usize) {}

/// Something that is cut into parts, one for each task of a job.
///
/// # Safety
/// Parts of different indices below [`count`](Self::count) must not overlap.
#[expect(unsafe_code, reason = "whoever cuts must cut cleanly")]
pub unsafe trait Parts: Sync {
    /// What a task owns.
    type Part;

    /// How many parts there are.
    fn count(&self) -> usize;

    /// Part `index`.
    ///
    /// # Safety
    /// `index` is below the count, and no part of this index is in use.
    unsafe fn part(&self, index: usize) -> Self::Part;
}

/// A slice in chunks of equal length, the last possibly shorter.
#[derive(Debug)]
pub struct Chunks<'a, T> {
    start: *mut T,
    len: usize,
    chunk: usize,
    whole: PhantomData<&'a mut [T]>,
}

impl<'a, T> Chunks<'a, T> {
    /// `slice` in chunks of `chunk` elements.
    ///
    /// # Panics
    /// When `chunk` is 0.
    pub fn new(slice: &'a mut [T], chunk: usize) -> Self {
        assert!(chunk > 0, "chunks of nothing");
        Self { start: slice.as_mut_ptr(), len: slice.len(), chunk, whole: PhantomData }
    }
}

// SAFETY: it only hands out what is `&mut [T]` of different elements, to one thread each.
#[expect(unsafe_code, reason = "a `&mut [T]` in parts")]
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

// SAFETY: chunk i is [i·chunk, (i + 1)·chunk) within the slice.
#[expect(unsafe_code, reason = "chunks don't overlap")]
unsafe impl<'a, T: Send> Parts for Chunks<'a, T> {
    type Part = &'a mut [T];

    fn count(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }

    unsafe fn part(&self, index: usize) -> &'a mut [T] {
        assert!(index < self.count(), "chunk {index} of {}", self.count());
        let first = index * self.chunk;
        // SAFETY: in bounds by the assertion; the caller promises that nobody else has this chunk.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), self.chunk.min(self.len - first)) }
    }
}

/// A row-major matrix in tiles of equal size, those at the right and lower edge possibly smaller; numbered row by row of
/// tiles.
#[derive(Debug)]
pub struct Tiles<'a> {
    start: *mut f32,
    shape: [usize; 2],
    tile: [usize; 2],
    whole: PhantomData<&'a mut [f32]>,
}

impl<'a> Tiles<'a> {
    /// The matrix `[rows, cols]` in tiles `[rows, cols]`.
    ///
    /// # Panics
    /// When `matrix` has another length, or a size of a tile is 0.
    pub fn new(matrix: &'a mut [f32], shape: [usize; 2], tile: [usize; 2]) -> Self {
        assert!(matrix.len() == shape[0] * shape[1] && tile[0] > 0 && tile[1] > 0, "{shape:?} in {tile:?}");
        Self { start: matrix.as_mut_ptr(), shape, tile, whole: PhantomData }
    }
}

// SAFETY: it only hands out what is `&mut [f32]` of different elements, to one thread each.
#[expect(unsafe_code, reason = "a `&mut [f32]` in parts")]
unsafe impl Sync for Tiles<'_> {}

// SAFETY: tiles are the products of disjoint ranges of rows and of columns.
#[expect(unsafe_code, reason = "tiles don't overlap")]
unsafe impl<'a> Parts for Tiles<'a> {
    type Part = Tile<'a>;

    fn count(&self) -> usize {
        self.shape[0].div_ceil(self.tile[0]) * self.shape[1].div_ceil(self.tile[1])
    }

    unsafe fn part(&self, index: usize) -> Tile<'a> {
        assert!(index < self.count(), "tile {index} of {}", self.count());
        let across = self.shape[1].div_ceil(self.tile[1]);
        let first = [index / across * self.tile[0], index % across * self.tile[1]];
        Tile {
            // SAFETY: the first element of a tile is inside the matrix.
            start: unsafe { self.start.add(first[0] * self.shape[1] + first[1]) },
            stride: self.shape[1],
            first,
            shape: [self.tile[0].min(self.shape[0] - first[0]), self.tile[1].min(self.shape[1] - first[1])],
            whole: PhantomData,
        }
    }
}

/// A task's part of a matrix.
#[derive(Debug)]
pub struct Tile<'a> {
    start: *mut f32,
    stride: usize,
    first: [usize; 2],
    shape: [usize; 2],
    whole: PhantomData<&'a mut [f32]>,
}

impl Tile<'_> {
    /// Row and column of the matrix at which it begins.
    pub fn first(&self) -> [usize; 2] {
        self.first
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Row `row` of the tile.
    ///
    /// # Panics
    /// When there is no such row.
    #[inline]
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.shape[0], "row {row} of {}", self.shape[0]);
        // SAFETY: the row lies inside the matrix, and the tile, borrowed mutably, is its only user.
        #[expect(unsafe_code, reason = "rows of a tile are not one slice")]
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.shape[1])
        }
    }
}

/// The parts of several matrices, one matrix after the other: a part comes with the number of its matrix.
#[derive(Debug)]
pub struct Joined<'a, const N: usize>(pub [Tiles<'a>; N]);

// SAFETY: an index is one tile of one matrix, and the matrices are different borrows.
#[expect(unsafe_code, reason = "tiles don't overlap")]
unsafe impl<'a, const N: usize> Parts for Joined<'a, N> {
    type Part = (usize, usize, Tile<'a>);

    fn count(&self) -> usize {
        self.0.iter().map(Parts::count).sum()
    }

    /// The number of the matrix, the index of the part in it, and the part.
    unsafe fn part(&self, mut index: usize) -> Self::Part {
        let mut which = 0;
        while index >= self.0[which].count() {
            index -= self.0[which].count();
            which += 1;
        }
        // SAFETY: what the caller promises of the index holds for the one tile that it stands for.
        (which, index, unsafe { self.0[which].part(index) })
    }
}

macro_rules! parts_of_tuple {
    ($($name:ident $at:tt),+) => {
        // SAFETY: each member's parts don't overlap, and the members are different borrows.
        #[expect(unsafe_code, reason = "part by part, each member's own")]
        unsafe impl<$($name: Parts),+> Parts for ($($name,)+) {
            type Part = ($($name::Part,)+);

            fn count(&self) -> usize {
                [$(self.$at.count()),+].into_iter().fold(usize::MAX, usize::min)
            }

            unsafe fn part(&self, index: usize) -> Self::Part {
                // SAFETY: below every member's count, and what the caller promises holds for each.
                unsafe { ($(self.$at.part(index),)+) }
            }
        }
    };
}

parts_of_tuple!(A 0, B 1);
parts_of_tuple!(A 0, B 1, C 2);
parts_of_tuple!(A 0, B 1, C 2, D 3);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_task_runs_once_however_many_threads_there_are() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).expect("threads");
            for tasks in [0, 1, 2, 3, 7, 64, 1000] {
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                pool.run(tasks, |thread, index| {
                    assert!(thread < threads);
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks}");
            }
        }
    }

    #[test]
    fn many_short_jobs_and_sleep_between_them_lose_nothing() {
        let pool = Pool::new(3).expect("threads");
        let sum = AtomicUsize::new(0);
        for round in 0..20_000 {
            pool.run(5, |_, index| {
                sum.fetch_add(index, Ordering::Relaxed);
            });
            if round % 4000 == 0 {
                std::thread::sleep(SPIN * 5);
            }
        }
        assert_eq!(sum.into_inner(), 20_000 * 10);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).expect("threads");
        for bad in 0..20 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(20, |_, index| assert!(index != bad, "task {bad} fails"));
            }));
            let panic = outcome.expect_err("it failed");
            let message = panic.downcast_ref::<String>().expect("a message");
            assert_eq!(message, &format!("task {bad} fails"));
        }
        let sum = AtomicUsize::new(0);
        pool.run(100, |_, index| {
            sum.fetch_add(index, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4950);
    }

    #[test]
    fn parts_cover_a_matrix_without_overlap() {
        let pool = Pool::new(2).expect("threads");
        let (mut a, mut b, mut c) = (vec![0.0; 7 * 37], vec![0.0; 7 * 16], vec![0.0; 8]);
        let joined = Joined([Tiles::new(&mut a, [7, 37], [3, 16]), Tiles::new(&mut b, [7, 16], [7, 5])]);
        assert_eq!(joined.count(), 9 + 4);
        pool.each(joined, |_, (which, index, mut tile)| {
            for row in 0..tile.shape()[0] {
                tile.row(row).iter_mut().for_each(|v| *v += (1 + which * 100 + index) as f32);
            }
        });
        assert_eq!((a[0], a[16], a[36], a[3 * 37], a[6 * 37 + 36]), (1.0, 2.0, 3.0, 4.0, 9.0));
        assert_eq!((b[0], b[15], b[6 * 16 + 5]), (101.0, 104.0, 102.0));
        pool.each((Chunks::new(&mut c, 3), Chunks::new(&mut b[..3], 1)), |index, (c, b)| {
            c.fill(index as f32);
            b[0] = -1.0;
        });
        assert_eq!(c, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0]);
        assert_eq!(b[..4], [-1.0, -1.0, -1.0, 101.0]);
    }

    #[test]
    fn no_threads_and_too_many_are_refused() {
        assert!(Pool::new(0).is_err());
        let message = Pool::new(100_000).map(|_| ()).expect_err("too many").to_string();
        assert!(message.contains("100000") && message.contains("1024"), "{message}");
    }
}

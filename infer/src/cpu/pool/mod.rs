//! Threads for one caller: a job is cut into tasks, the caller works along, and the call returns when all is done.
//!
//! A token is decoded in some 150 jobs of 20 to 100 µs, so what counts is the time to begin and to end one. Workers
//! therefore wait for the next job spinning, for [`SPIN`], before they go to sleep. Each thread begins with a run of
//! neighbouring tasks of its own, since what lies side by side in memory is read fastest by one, and then helps the
//! others with theirs, so that a thread that the system interrupts holds up nobody. A job ends without those workers that
//! never came. Two cores of Zen 4 take 0.6 µs for 32 tasks of nothing and 12.6 µs for 32 tasks of 0.8 µs; rayon takes 3.6 and
//! 17.7 µs, or 13.3 µs for the latter when many jobs are run from inside its pool (`benches/pool.rs`, medians).
//!
//! Knows no arithmetic. Invariants: every task runs exactly once, and what it writes to ([`Parts`]) is its own; when a
//! call returns or unwinds, no worker touches what the call was given. A panic in a task ends the call with that panic.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

mod parts;
#[cfg(test)]
mod tests;

pub use parts::{Chunks, Joined, Parts, Tile, Tiles};

use crate::{Error, Result};

/// How long a worker spins before it sleeps: longer than what lies between two jobs of a token, or between two tokens.
const SPIN: Duration = Duration::from_micros(200);
/// Spins of the caller before it lets others have its core: a worker has been interrupted in the middle of a task.
const PATIENCE: usize = 20_000;
/// Portions in which a thread takes the tasks of a run.
const PORTIONS: usize = 16;
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
    /// For each thread's run of tasks, the first that nobody has taken.
    next: Vec<Alone<AtomicUsize>>,
    job: UnsafeCell<Job>,
    asleep: AtomicUsize,
    door: Mutex<()>,
    bell: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A job as the workers see it: `call(data, thread, task)` for each task below `tasks`.
#[derive(Debug, Clone, Copy)]
struct Job {
    data: *const (),
    // SAFETY: called with the `data` beside it, while that lives.
    call: unsafe fn(*const (), usize, usize),
    tasks: usize,
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
            next: (0..threads).map(|_| Alone::default()).collect(),
            job: UnsafeCell::new(Job { data: std::ptr::null(), call: no_task, tasks: 0 }),
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
        let job = Job { data: (&raw const task).cast(), call: call::<F>, tasks };
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
        for (thread, next) in self.next.iter().enumerate() {
            next.0.store(self.run_of(thread, job.tasks).start, Ordering::Relaxed);
        }
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

    /// The tasks that a thread begins with.
    fn run_of(&self, thread: usize, tasks: usize) -> Range<usize> {
        let threads = self.next.len();
        thread * tasks / threads..(thread + 1) * tasks / threads
    }

    /// The thread's own tasks, then what is left of the others', until nothing is.
    fn work(&self, job: Job, thread: usize) {
        let threads = self.next.len();
        for owner in (thread..threads).chain(0..thread) {
            let run = self.run_of(owner, job.tasks);
            let portion = (run.len() / PORTIONS).max(1);
            loop {
                let first = self.next[owner].0.fetch_add(portion, Ordering::Relaxed);
                if first >= run.end {
                    break;
                }
                for index in first..(first + portion).min(run.end) {
                    // SAFETY: `data` is the closure that `call` was made for; it lives until the job is closed and
                    // nobody is inside.
                    #[expect(unsafe_code, reason = "the closure's type was erased to hand it over")]
                    unsafe {
                        (job.call)(job.data, thread, index);
                    }
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
                self.next.iter().for_each(|next| next.0.store(job.tasks, Ordering::Relaxed));
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

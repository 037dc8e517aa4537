//! GPU threads as coroutines on stacks of their own. They switch only where they wait, and are used again by later runs.

use std::cell::RefCell;

use corosensei::{
    Coroutine, CoroutineResult, Yielder,
    stack::{DefaultStack, Stack, StackPointer},
};

/// What a suspended thread is handed, and hands out: nothing.
pub type Suspender = Yielder<(), ()>;

/// Bytes of a thread's stack.
const STACK: usize = 256 * 1024;

/// A stack that begins lower than its memory allows.
///
/// Were all stacks to begin at the same offset in a page, the threads' variables would fight for the same few cache lines.
struct Staggered {
    stack: DefaultStack,
    down: usize,
}

// SAFETY: memory and guard page are the default stack's; only the first bytes are left unused.
unsafe impl Stack for Staggered {
    fn base(&self) -> StackPointer {
        StackPointer::new(self.stack.base().get() - self.down).unwrap_or(self.stack.base())
    }

    fn limit(&self) -> StackPointer {
        self.stack.limit()
    }
}

/// A GPU thread, suspended.
pub struct Fiber {
    coroutine: Coroutine<(), (), (), Staggered>,
}

impl Fiber {
    /// A thread that runs `body` again and again, suspending after each.
    fn new(index: usize, body: fn(&Suspender)) -> std::io::Result<Self> {
        let stack = Staggered { stack: DefaultStack::new(STACK)?, down: index % 61 * 256 };
        let coroutine = Coroutine::with_stack(stack, move |suspender: &Suspender, ()| {
            loop {
                body(suspender);
                suspender.suspend(());
            }
        });
        Ok(Self { coroutine })
    }

    /// Lets the thread go on until it waits or ends.
    pub fn resume(&mut self) {
        match self.coroutine.resume(()) {
            CoroutineResult::Yield(()) | CoroutineResult::Return(()) => {}
        }
    }
}

impl Drop for Fiber {
    fn drop(&mut self) {
        // SAFETY: what is on the stack is a kernel's frames and the callbacks' above it, which own nothing while suspended.
        unsafe { self.coroutine.force_reset() };
    }
}

thread_local! {
    static IDLE: RefCell<Vec<Fiber>> = const { RefCell::new(Vec::new()) };
}

/// `count` threads that are about to run `body` (the same in every call).
pub fn take(count: usize, body: fn(&Suspender)) -> std::io::Result<Vec<Fiber>> {
    let mut fibers = IDLE.take();
    while fibers.len() < count {
        fibers.push(Fiber::new(fibers.len(), body)?);
    }
    Ok(fibers)
}

/// Keeps threads that have ended their work for the next run.
pub fn give_back(fibers: Vec<Fiber>) {
    IDLE.set(fibers);
}

//! What the processor refuses becomes a violation, and ends the run: an access to what isn't there, a division by zero, and the
//! trap that a compiler puts where the behaviour of a program is undefined.
//!
//! The signal's handler touches nothing but the interrupted thread's registers: it notes address and instruction, and makes the
//! thread go on in `landed`, on the stack of the GPU thread, where everything is allowed again.

use std::{
    cell::Cell,
    ffi::c_int,
    mem, ptr,
    sync::{Once, OnceLock},
};

use libc::{c_void, siginfo_t, ucontext_t};

use super::{Place, Run, current};
use crate::error::Kind;

/// What was refused, and the instruction that asked for it.
#[derive(Clone, Copy)]
struct Fault {
    signal: c_int,
    /// That was touched; the stack's end is near if it is near the stack pointer.
    address: usize,
    pc: usize,
}

thread_local! {
    static FAULT: Cell<Fault> = const { Cell::new(Fault { signal: 0, address: 0, pc: 0 }) };
}

/// Memory that isn't there, then instructions that can't be carried out.
const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGFPE];
/// What was done about them before.
static BEFORE: [OnceLock<Action>; SIGNALS.len()] = [const { OnceLock::new() }; SIGNALS.len()];

struct Action(libc::sigaction);
// SAFETY: a plain description of a handler.
unsafe impl Send for Action {}
// SAFETY: as above; it is read only.
unsafe impl Sync for Action {}

/// Installs the handler, once for the process.
pub fn catch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (signal, before) in SIGNALS.into_iter().zip(&BEFORE) {
            // SAFETY: the handler keeps to what signal handlers may do; a zeroed sigaction is a valid one.
            unsafe {
                let mut action: libc::sigaction = mem::zeroed();
                action.sa_sigaction = handle as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                let mut old: libc::sigaction = mem::zeroed();
                libc::sigaction(signal, &action, &mut old);
                let _ = before.set(Action(old));
            }
        }
    });
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let in_kernel = current().is_some_and(|run| run.now.get().is_some());
    // SAFETY: the system hands over its description of the fault and the interrupted registers.
    unsafe {
        if in_kernel {
            let registers = &mut *context.cast::<ucontext_t>();
            let address = (*info).si_addr() as usize;
            let pc = redirect(registers, address);
            FAULT.set(Fault { signal, address, pc });
            return;
        }
        // Not ours: the handler before gets it when the instruction is tried again.
        let place = SIGNALS.iter().position(|s| *s == signal).unwrap_or(0);
        match BEFORE[place].get() {
            Some(before) => libc::sigaction(signal, &before.0, ptr::null_mut()),
            None => libc::sigaction(signal, &mem::zeroed(), ptr::null_mut()),
        };
    }
}

/// A stack that ran over has to be cut back before anything can be called on it.
const CUT: usize = 64 * 1024;

/// Makes the interrupted thread go on in `landed`; gives the instruction that faulted.
#[cfg(target_arch = "x86_64")]
fn redirect(registers: &mut ucontext_t, address: usize) -> usize {
    let registers = &mut registers.uc_mcontext.gregs;
    let pc = registers[libc::REG_RIP as usize] as usize;
    let stack = registers[libc::REG_RSP as usize] as usize;
    // As if called: the return address would lie at a multiple of 16, less 8.
    registers[libc::REG_RSP as usize] = ((cut(stack, address) & !15) - 8) as i64;
    registers[libc::REG_RIP as usize] = landed as *const () as usize as i64;
    pc
}

#[cfg(target_arch = "aarch64")]
fn redirect(registers: &mut ucontext_t, address: usize) -> usize {
    let registers = &mut registers.uc_mcontext;
    let pc = registers.pc as usize;
    registers.sp = (cut(registers.sp as usize, address) & !15) as u64;
    registers.pc = landed as *const () as usize as u64;
    pc
}

/// Below the red zone; or, where the end of the stack is near, above what will never run again.
fn cut(stack: usize, address: usize) -> usize {
    match address.abs_diff(stack) < 4 * 4096 {
        true => stack + CUT,
        false => stack - 256,
    }
}

/// Goes on where the kernel faulted.
extern "C" fn landed() -> ! {
    let Fault { signal, address, pc } = FAULT.get();
    let Some(run) = current() else { std::process::abort() };
    let (kind, message) = match signal {
        libc::SIGSEGV | libc::SIGBUS => (Kind::OutOfBounds, named(run, address)),
        libc::SIGFPE => (Kind::Undefined, "a division by zero".into()),
        _ => (Kind::Undefined, "a step that is undefined, where the compiler put a trap".into()),
    };
    run.tell(kind, message, Place::Instruction(pc + 1));
    run.give_up()
}

fn named(run: &Run, address: usize) -> String {
    let mut memory = run.memory.borrow_mut();
    let Some((_, Some(region))) = memory.find(address) else {
        return format!("access to the wild address {address:#x}");
    };
    let offset = address as i64 - region.base as i64;
    let bytes = if region.is_bound { format!(" ({} bytes)", region.len) } else { String::new() };
    format!("access at offset {offset} of {}{bytes}", region.name)
}

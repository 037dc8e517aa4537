//! The functions that a kernel calls. Each runs on the stack of a GPU thread.

use std::ffi::c_char;

use super::{
    Place, Run, State,
    abi::{self, ATOMIC, ATOMIC_STORE, Exchange, Functions, MEM_DEVICE, MEM_THREADGROUP, Site, WRITE},
    current,
    shadow::Access,
};
use crate::error::Kind;

/// What every kernel's library is given after loading.
pub static FUNCTIONS: Functions = Functions {
    threadgroup_barrier,
    simdgroup_barrier,
    exchange,
    lane,
    threadgroup_variable,
    access,
    undefined,
};

extern "C" fn threadgroup_barrier(flags: u32, site: &Site) {
    let Some(run) = current() else { return };
    let Some(now) = run.now.get() else { return };
    if run.waiting.get() == 0 {
        run.barrier.set(Some(*site));
    } else if let Some(other) = run.barrier.get().filter(|other| other != site) {
        let message = format!(
            "one thread waits at the threadgroup_barrier of {}, another at {}",
            other.place(),
            site.place()
        );
        run.tell(Kind::Divergence, message, Place::Line(site.place()));
        run.give_up();
    }
    run.waiting.set(run.waiting.get() + 1);
    run.threads[now].state.set(State::AtBarrier);
    if run.waiting.get() == run.live.get() {
        advance(&run.device_epoch, flags & MEM_DEVICE);
        advance(&run.threadgroup_epoch, flags & MEM_THREADGROUP);
        run.release_barrier();
    } else {
        run.suspend();
    }
}

fn advance(epoch: &std::cell::Cell<u32>, flag: u32) {
    epoch.set(epoch.get() + u32::from(flag != 0));
}

extern "C" fn simdgroup_barrier(flags: u32, site: &Site) {
    let Some(run) = current() else { return };
    let Some(now) = run.now.get() else { return };
    let (group, _) = run.lane(now);
    let is_last = run.meet(now, site, &[]);
    if is_last {
        advance(&group.device_epoch, flags & MEM_DEVICE);
        advance(&group.threadgroup_epoch, flags & MEM_THREADGROUP);
    }
}

extern "C" fn exchange(value: *const u8, size: u64, site: &Site, met: &mut Exchange) {
    let Some(run) = current() else { return };
    let Some(now) = run.now.get() else { return };
    // SAFETY: the shim passes a value of its caller with its size.
    let value = unsafe { std::slice::from_raw_parts(value, size as usize) };
    let (group, lane) = run.lane(now);
    let turn = group.turn.get();
    run.meet(now, site, value);
    // SAFETY: a pointer to one half of the slots, which is not written before every lane has come to the next exchange.
    let slots = unsafe { (*group.slots.get())[turn].as_ptr() };
    *met = Exchange { slots, order: run.lane_order.as_ptr(), active: group.taken.get()[turn], lane };
}

impl Run<'_> {
    /// Waits for the other lanes of the simdgroup with `value` in this lane's slot; tells whether this lane was the last.
    fn meet(&self, now: usize, site: &Site, value: &[u8]) -> bool {
        let (group, lane) = self.lane(now);
        match group.site.get() {
            Some(other) if group.arrived.get() != 0 && other != *site => {
                let (first, second) = (other.name(), site.name());
                let message =
                    format!("one lane waits in {first} at {}, another comes to {second}", other.place());
                self.tell(Kind::Divergence, message, Place::Line(site.place()));
                self.give_up();
            }
            _ => group.site.set(Some(*site)),
        }
        // SAFETY: this lane's slot of this turn; nobody reads it before all have come.
        unsafe {
            (&mut (*group.slots.get())[group.turn.get()][lane as usize])[..value.len()].copy_from_slice(value)
        };
        group.arrived.set(group.arrived.get() | 1 << lane);
        if group.arrived.get() == group.live.get() {
            self.release_simdgroup(now / 32);
            return true;
        }
        self.threads[now].state.set(State::Meeting);
        self.suspend();
        false
    }
}

extern "C" fn lane() -> u32 {
    current().and_then(|run| run.now.get()).map_or(0, |now| now as u32 % 32)
}

extern "C" fn threadgroup_variable(key: *const u8, size: u64, align: u64, name: *const c_char) -> *mut u8 {
    let Some(run) = current() else { return std::ptr::null_mut() };
    let known = run.memory.borrow().threadgroup_bytes();
    let address =
        run.memory.borrow_mut().variable(key as usize, size as usize, align as usize, || abi::text(name));
    let Some(address) = address else {
        run.tell(
            Kind::ThreadgroupMemory,
            "too many threadgroup variables".into(),
            Place::Line(abi::text(name)),
        );
        run.give_up();
    };
    if run.memory.borrow().threadgroup_bytes() != known {
        run.refuse_too_much_threadgroup_memory(Place::Line(abi::text(name)));
    }
    address as *mut u8
}

extern "C" fn access(address: *const u8, size: u64, kind: u32, pc: *const u8) {
    let Some(run) = current() else { return };
    if !run.settings.checked {
        return;
    }
    let access = match kind {
        WRITE => Access::Write,
        ATOMIC => Access::Atomic,
        ATOMIC_STORE => Access::AtomicStore,
        _ => Access::Read,
    };
    run.access(address as usize, size as usize, access, pc as usize);
}

extern "C" fn undefined(what: *const c_char, file: *const c_char, line: u32, pc: *const u8) {
    let Some(run) = current() else { return };
    let place = match file.is_null() {
        true => Place::Instruction(pc as usize),
        false => Place::Line(format!("{}:{line}", abi::text(file))),
    };
    run.tell(Kind::Undefined, abi::text(what), place);
}

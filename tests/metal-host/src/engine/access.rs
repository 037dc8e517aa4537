//! The checks of one access to memory: bounds, permission, initialisation, order.

use super::{
    Place, Run,
    memory::Region,
    shadow::{Access, Conflict, Moment},
};
use crate::error::Kind;

impl Run<'_> {
    /// Looks at an access before it is made. Memory of the thread itself is not looked at.
    pub(super) fn access(&self, address: usize, size: usize, access: Access, pc: usize) {
        let Some(now) = self.now.get() else { return };
        let mut memory = self.memory.borrow_mut();
        let Some((slot, region)) = memory.find(address) else { return };
        let Some(region) = region else {
            self.tell(Kind::OutOfBounds, format!("a wild address, {slot} slots in"), Place::Instruction(pc));
            drop(memory);
            self.give_up();
        };
        let offset = address as i64 - region.base as i64;
        if offset < 0 || offset as usize + size > region.len {
            let message = format!("{} of {size} bytes at offset {offset} of {}", noun(access), sized(region));
            let faults = region.faults(address, size);
            drop(memory);
            self.tell(Kind::OutOfBounds, message, Place::Instruction(pc));
            if faults {
                self.give_up();
            }
            return;
        }
        let (offset, end) = (offset as usize, offset as usize + size);
        let reads = matches!(access, Access::Read | Access::Atomic);
        if reads {
            region.read += size as u64;
        }
        if access != Access::Read {
            region.written += size as u64;
            if region.is_read_only {
                let message =
                    format!("{} of {size} bytes at offset {offset} of {}", noun(access), sized(region));
                self.tell(Kind::ReadOnly, message, Place::Instruction(pc));
            }
        }
        if region.is_read_only {
            // Nobody writes it, or it was told: reads can't race.
            return;
        }
        let moment = self.moment(now, region);
        let life = if region.is_threadgroup { self.life.get() } else { 1 };
        let (is_given, name) = (region.is_given, sized(region));
        let place = || Place::Instruction(pc);
        for (index, byte) in region.shadow()[offset..end].iter_mut().enumerate() {
            if reads && !is_given && !byte.is_written(life) {
                let message = format!(
                    "{} of {size} bytes at offset {offset} of {name}: byte {index} was never written",
                    noun(access)
                );
                self.tell(Kind::Uninitialised, message, place());
                break;
            }
            if let Some(conflict) = byte.touch(access, &moment, life) {
                let message =
                    self.race(access, conflict, now, &format!("offset {} of {name}", offset + index));
                self.tell(Kind::Race, message, place());
                break;
            }
        }
    }

    fn moment(&self, now: usize, region: &Region) -> Moment {
        let (group, _) = self.lane(now);
        let (epoch, simd_epoch) = match region.is_threadgroup {
            true => (self.threadgroup_epoch.get(), group.threadgroup_epoch.get()),
            false => (self.device_epoch.get(), group.device_epoch.get()),
        };
        Moment { thread: self.global(now), threads_per_group: self.threads.len() as u32, epoch, simd_epoch }
    }

    fn race(&self, access: Access, conflict: Conflict, now: usize, what: &str) -> String {
        let all = self.threads.len() as u32;
        let (earlier, mine) = (conflict.thread, self.global(now));
        let who = match (earlier / all == mine / all, earlier % all / 32 == mine % all / 32) {
            (false, _) => "of another threadgroup, which nothing can order".into(),
            (true, same) => {
                let whose = if same { "the same simdgroup" } else { "another simdgroup" };
                format!("{} of {whose}, without a barrier for this memory between", earlier % all)
            }
        };
        format!("{} of {what} and {} by thread {who}", noun(access), noun(conflict.earlier))
    }
}

fn noun(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
        Access::Atomic => "atomic access",
        Access::AtomicStore => "atomic store",
    }
}

fn sized(region: &Region) -> String {
    match region.is_bound {
        true => format!("{} ({} bytes)", region.name, region.len),
        false => region.name.clone(),
    }
}

//! Who touched a byte last, and whether that is ordered before who touches it now.
//!
//! Metal orders two accesses by different threads in one way only: a barrier between them, in the same threadgroup (or simdgroup),
//! with the flag of that memory. So a byte needs to know, for writes, reads and atomics apart, when the last ones were and how
//! widely they were spread; everything before them is ordered already, or was reported.

/// When and by whom something is touched.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Over the whole grid.
    pub thread: u32,
    pub threads_per_group: u32,
    /// Counts barriers for this kind of memory, of all threadgroups one after the other.
    pub epoch: u32,
    /// Counts barriers of this thread's simdgroup for this kind of memory.
    pub simd_epoch: u32,
}

impl Moment {
    fn group_of(&self, thread: u32) -> u32 {
        thread / self.threads_per_group
    }

    /// Whether `thread`, of this threadgroup, is of this simdgroup.
    fn shares_simdgroup(&self, thread: u32) -> bool {
        let within = |t: u32| t % self.threads_per_group / 32;
        within(thread) == within(self.thread)
    }
}

/// How widely the last accesses of a kind were spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Breadth {
    #[default]
    Nobody,
    Thread,
    Simdgroup,
    Threadgroup,
    Several,
}

/// The last accesses of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Accesses {
    breadth: Breadth,
    /// The last of them.
    thread: u32,
    epoch: u32,
    simd_epoch: u32,
}

impl Accesses {
    fn are_before(&self, now: &Moment) -> bool {
        match self.breadth {
            Breadth::Nobody => true,
            Breadth::Several => false,
            Breadth::Thread if self.thread == now.thread => true,
            _ if now.group_of(self.thread) != now.group_of(now.thread) => false,
            _ if self.epoch != now.epoch => true,
            Breadth::Threadgroup => false,
            _ => now.shares_simdgroup(self.thread) && self.simd_epoch != now.simd_epoch,
        }
    }

    fn add(&mut self, now: &Moment) {
        self.breadth = match self.breadth {
            Breadth::Nobody => Breadth::Thread,
            Breadth::Several => Breadth::Several,
            _ if now.group_of(self.thread) != now.group_of(now.thread) => Breadth::Several,
            // Everything before is ordered before this threadgroup's accesses from now on.
            _ if self.epoch != now.epoch => Breadth::Thread,
            Breadth::Thread if self.thread == now.thread => Breadth::Thread,
            Breadth::Threadgroup => Breadth::Threadgroup,
            _ if !now.shares_simdgroup(self.thread) => Breadth::Threadgroup,
            // Ordered within the simdgroup; to the others, the last one stands for all.
            _ if self.simd_epoch != now.simd_epoch => Breadth::Thread,
            _ => Breadth::Simdgroup,
        };
        (self.thread, self.epoch, self.simd_epoch) = (now.thread, now.epoch, now.simd_epoch);
    }
}

/// What is done to a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Atomic,
    /// An atomic access that doesn't look at what was there.
    AtomicStore,
}

/// What is known of a byte.
#[derive(Clone, Copy, Debug, Default)]
pub struct Byte {
    writes: Accesses,
    reads: Accesses,
    atomics: Accesses,
    /// The threadgroup (counted from 1) that all of this is about, for memory that each threadgroup has anew; else 1.
    life: u32,
    written: bool,
}

/// An earlier access that nothing orders before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub earlier: Access,
    pub thread: u32,
}

impl Byte {
    /// Forgets what was before `life`.
    fn born(&mut self, life: u32) {
        if self.life != life {
            *self = Self { life, ..Self::default() };
        }
    }

    pub fn is_written(&self, life: u32) -> bool {
        self.written && self.life == life
    }

    /// Notes the access, and tells the earlier one that it races with.
    pub fn touch(&mut self, access: Access, now: &Moment, life: u32) -> Option<Conflict> {
        self.born(life);
        let against: &[(Access, &Accesses)] = match access {
            Access::Read => &[(Access::Write, &self.writes), (Access::Atomic, &self.atomics)],
            Access::Write => {
                &[(Access::Write, &self.writes), (Access::Read, &self.reads), (Access::Atomic, &self.atomics)]
            }
            Access::Atomic | Access::AtomicStore => {
                &[(Access::Write, &self.writes), (Access::Read, &self.reads)]
            }
        };
        let racing = against.iter().find(|(_, accesses)| !accesses.are_before(now));
        let conflict =
            racing.map(|(earlier, accesses)| Conflict { earlier: *earlier, thread: accesses.thread });
        match access {
            Access::Read => self.reads.add(now),
            Access::Write => {
                self.writes = Accesses::default();
                self.writes.add(now);
            }
            Access::Atomic | Access::AtomicStore => self.atomics.add(now),
        }
        self.written |= access != Access::Read;
        conflict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread of a grid of threadgroups of 64.
    fn moment(thread: u32, epoch: u32, simd_epoch: u32) -> Moment {
        Moment { thread, threads_per_group: 64, epoch, simd_epoch }
    }

    /// Whether the last of `accesses` races with what was before.
    fn races(accesses: &[(Access, Moment)]) -> bool {
        let mut byte = Byte::default();
        accesses.iter().map(|(access, now)| byte.touch(*access, now, 1).is_some()).last().expect("an access")
    }

    #[test]
    fn a_barrier_orders_what_is_before_it() {
        use Access::{Atomic, Read, Write};
        for (accesses, race) in [
            (vec![(Write, moment(0, 1, 0)), (Read, moment(0, 1, 0))], false),
            (vec![(Write, moment(0, 1, 0)), (Read, moment(1, 1, 0))], true),
            (vec![(Write, moment(0, 1, 0)), (Read, moment(1, 2, 0))], false),
            (vec![(Write, moment(0, 1, 0)), (Read, moment(1, 1, 1))], false),
            // The barrier of a simdgroup says nothing to another simdgroup.
            (vec![(Write, moment(0, 1, 0)), (Read, moment(32, 1, 1))], true),
            // Nothing orders threadgroups.
            (vec![(Write, moment(0, 1, 0)), (Read, moment(64, 2, 0))], true),
            (vec![(Read, moment(0, 1, 0)), (Read, moment(64, 2, 0))], false),
            (vec![(Atomic, moment(0, 1, 0)), (Atomic, moment(64, 2, 0))], false),
            (vec![(Atomic, moment(0, 1, 0)), (Read, moment(1, 1, 0))], true),
            (vec![(Atomic, moment(0, 1, 0)), (Read, moment(1, 2, 0))], false),
        ] {
            assert_eq!(races(&accesses), race, "{accesses:?}");
        }
    }

    #[test]
    fn no_reader_is_forgotten() {
        use Access::{Read, Write};
        // A reader of another simdgroup, then many of the writer's own, ordered by its own barrier.
        let mut accesses = vec![(Read, moment(40, 1, 0))];
        accesses.extend((0..5).map(|t| (Read, moment(t, 1, 0))));
        accesses.push((Write, moment(3, 1, 1)));
        assert!(races(&accesses));
        // A reader of another threadgroup stays unordered after any barrier.
        let accesses = [(Read, moment(64, 1, 0)), (Read, moment(0, 2, 0)), (Write, moment(0, 3, 0))];
        assert!(races(&accesses));
    }

    #[test]
    fn each_threadgroup_has_its_memory_anew() {
        let mut byte = Byte::default();
        assert_eq!(byte.touch(Access::Write, &moment(0, 1, 0), 1), None);
        assert!(byte.is_written(1) && !byte.is_written(2));
        assert_eq!(byte.touch(Access::Write, &moment(64, 2, 0), 2), None);
    }
}

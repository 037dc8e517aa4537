//! Memory that is only counted: blocks are taken and given back as the run would, and their bytes are added up.
//!
//! A [`Block`] is a number of bytes that lie somewhere until it is dropped. Knows no model and no tensor. Invariant: what is held is the
//! sum of the blocks that live; what the process has taken from the system is never less.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use serde::Serialize;

/// What memory is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Weights, norms, scales and biases of the student in f32.
    Weights,
    /// What the optimizer remembers of them.
    Optimizer,
    /// Matrices on their grid, as the forward pass multiplies by them.
    Rounded,
    /// Gradients of weights and of rounded matrices.
    Gradients,
    /// What the forward pass keeps for the backward pass, and gradients of it.
    Activations,
    /// Logits of a chunk of tokens, the student's and the teacher's, and their gradient.
    Logits,
    /// The teacher's weights and what it says, or what is read from its cache.
    Teacher,
    /// Weights on their way from the disk into a run, and from there into a checkpoint.
    Loading,
}

impl Part {
    /// All of them, in the order of a table.
    pub const ALL: [Self; 8] = [
        Self::Weights,
        Self::Optimizer,
        Self::Rounded,
        Self::Gradients,
        Self::Activations,
        Self::Logits,
        Self::Teacher,
        Self::Loading,
    ];
}

/// How freed memory is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The whole sum of what lives counts, nothing else.
    Exact,
    /// glibc's, with memory that is never given back: the smallest hole that fits is split, neighbouring holes are joined, and the rest
    /// comes from the end.
    BestFit,
    /// candle's on Metal: buffers of a power of two, of which free ones are taken again by whoever fits; none is given back within a step.
    PowersOfTwo,
}

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The memory of the process.
    Host,
    /// That of the GPU.
    Device,
}

/// A run of bytes: where it begins and how long it is.
type Span = (u64, u64);

/// Memory of one kind.
#[derive(Debug)]
struct Arena {
    policy: Policy,
    /// Holes, shortest first: length and begin.
    holes: BTreeSet<Span>,
    /// The same by begin.
    begins: BTreeMap<u64, u64>,
    /// Where all that was ever taken ends; with [`Policy::Exact`] what lives.
    end: u64,
    /// The greatest end.
    high: u64,
    /// Blocks that were taken from the end.
    count: u64,
}

/// Bytes in front of a block, and what its length is a multiple of.
const HEADER: u64 = 16;

impl Arena {
    fn new(policy: Policy) -> Self {
        Self { policy, holes: BTreeSet::new(), begins: BTreeMap::new(), end: 0, high: 0, count: 0 }
    }

    fn take(&mut self, bytes: u64) -> Span {
        let span = match self.policy {
            Policy::Exact => {
                self.end += bytes;
                (0, bytes)
            }
            Policy::BestFit => self.best_fit((bytes + HEADER).next_multiple_of(HEADER)),
            Policy::PowersOfTwo => match self.holes.range((bytes, 0)..).next().copied() {
                Some((len, begin)) => {
                    self.holes.remove(&(len, begin));
                    (begin, len)
                }
                None => self.at_end(bytes.max(1).next_power_of_two()),
            },
        };
        self.high = self.high.max(self.end);
        span
    }

    fn at_end(&mut self, len: u64) -> Span {
        self.end += len;
        self.count += 1;
        match self.policy {
            // Buffers lie nowhere in particular: a number tells them apart.
            Policy::PowersOfTwo => (self.count, len),
            _ => (self.end - len, len),
        }
    }

    fn best_fit(&mut self, len: u64) -> Span {
        let Some((hole, begin)) = self.holes.range((len, 0)..).next().copied() else {
            return self.at_end(len);
        };
        self.fill(begin);
        if hole > len {
            self.open(begin + len, hole - len);
        }
        (begin, len)
    }

    fn open(&mut self, begin: u64, len: u64) {
        self.holes.insert((len, begin));
        self.begins.insert(begin, len);
    }

    /// Closes the hole at `begin` and gives its length.
    fn fill(&mut self, begin: u64) -> u64 {
        let len = self.begins.remove(&begin).unwrap_or_default();
        self.holes.remove(&(len, begin));
        len
    }

    fn give(&mut self, (mut begin, mut len): Span) {
        match self.policy {
            Policy::Exact => self.end -= len,
            Policy::PowersOfTwo => {
                self.holes.insert((len, begin));
            }
            Policy::BestFit => {
                if let Some((&before, &length)) = self.begins.range(..begin).next_back()
                    && before + length == begin
                {
                    self.fill(before);
                    (begin, len) = (before, len + length);
                }
                len += self.fill(begin + len);
                if begin + len == self.end {
                    self.end = begin;
                } else {
                    self.open(begin, len);
                }
            }
        }
    }

    /// What it has taken from the system.
    fn taken(&self) -> u64 {
        if self.policy == Policy::BestFit { self.high } else { self.end }
    }

    /// Gives free buffers back.
    fn trim(&mut self) {
        if self.policy == Policy::PowersOfTwo {
            let free: u64 = self.holes.iter().map(|(len, _)| len).sum();
            self.end -= free;
            self.holes.clear();
        }
    }
}

/// What was held when most was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peak {
    /// Bytes taken from the system.
    pub taken: u64,
    /// Of them, pages of files that are read.
    pub mapped: u64,
    /// Bytes held, by what for, in the order of [`Part::ALL`].
    pub parts: [u64; Part::ALL.len()],
}

impl Peak {
    /// What the allocator holds beyond what was asked for: holes that nothing fits in, and lengths rounded up.
    pub fn allocator(&self) -> u64 {
        self.taken.saturating_sub(self.mapped + self.parts.iter().sum::<u64>())
    }
}

#[derive(Debug)]
struct Books {
    host: Arena,
    device: Arena,
    mapped: u64,
    /// Bytes that were taken and have not been written to.
    untouched: u64,
    /// By place and part.
    held: [[u64; Part::ALL.len()]; 2],
    peaks: Peaks,
}

/// The greatest moments.
#[derive(Debug, Clone, Default)]
pub struct Peaks {
    /// Of the process without what is the GPU's own.
    pub host: Peak,
    /// Of the GPU.
    pub device: Peak,
    /// Of both together, where they are one memory.
    pub both: Peak,
}

/// The memory of a run. Clones share the books.
#[derive(Debug, Clone)]
pub struct Heap(Rc<RefCell<Books>>);

impl Heap {
    /// Empty, with these habits in the process and on the GPU.
    pub fn new(host: Policy, device: Policy) -> Self {
        let (host, device) = (Arena::new(host), Arena::new(device));
        Self(Rc::new(RefCell::new(Books {
            host,
            device,
            mapped: 0,
            untouched: 0,
            held: Default::default(),
            peaks: Peaks::default(),
        })))
    }

    /// Takes `bytes` for `part`.
    pub fn take(&self, place: Place, part: Part, bytes: u64) -> Block {
        let span = self.0.borrow_mut().take(place, part, bytes);
        Block(Rc::new(Owned { heap: self.clone(), place, part, bytes, span }))
    }

    /// Pages of a file that are read from here on; 0 for none.
    pub fn map(&self, bytes: u64) {
        let mut books = self.0.borrow_mut();
        books.mapped = bytes;
        books.look();
    }

    /// So many bytes of the process are zeros that nobody has written to, which take no memory; 0 from when somebody does.
    pub fn untouched(&self, bytes: u64) {
        let mut books = self.0.borrow_mut();
        books.untouched = bytes;
        books.look();
    }

    /// The GPU was waited for: free buffers are given back.
    pub fn wait(&self) {
        self.0.borrow_mut().device.trim();
    }

    /// The greatest moments so far.
    pub fn peaks(&self) -> Peaks {
        self.0.borrow().peaks.clone()
    }
}

impl Books {
    fn take(&mut self, place: Place, part: Part, bytes: u64) -> Span {
        self.held[place as usize][part as usize] += bytes;
        let span = match place {
            Place::Host => self.host.take(bytes),
            Place::Device => self.device.take(bytes),
        };
        self.look();
        span
    }

    fn give(&mut self, place: Place, part: Part, bytes: u64, span: Span) {
        self.held[place as usize][part as usize] -= bytes;
        match place {
            Place::Host => self.host.give(span),
            Place::Device => self.device.give(span),
        }
    }

    fn look(&mut self) {
        let [of_host, of_device] = self.held;
        let (host, device) = (self.host.taken() + self.mapped - self.untouched, self.device.taken());
        let both = std::array::from_fn(|part| of_host[part] + of_device[part]);
        let keep = |peak: &mut Peak, taken: u64, mapped: u64, parts: [u64; Part::ALL.len()]| {
            let sum = |parts: &[u64]| parts.iter().sum::<u64>();
            if (taken, sum(&parts)) > (peak.taken, sum(&peak.parts)) {
                *peak = Peak { taken, mapped, parts };
            }
        };
        keep(&mut self.peaks.host, host, self.mapped, of_host);
        keep(&mut self.peaks.device, device, 0, of_device);
        keep(&mut self.peaks.both, host + device, self.mapped, both);
    }
}

/// Bytes that are held until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Block(Rc<Owned>);

impl Block {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// What for.
    pub fn part(&self) -> Part {
        self.0.part
    }
}

#[derive(Debug)]
struct Owned {
    heap: Heap,
    place: Place,
    part: Part,
    bytes: u64,
    span: Span,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.heap.0.borrow_mut().give(self.place, self.part, self.bytes, self.span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap(policy: Policy) -> Heap {
        Heap::new(policy, policy)
    }

    fn taken(heap: &Heap) -> u64 {
        heap.peaks().host.taken
    }

    #[test]
    fn the_sum_of_what_lives_is_what_counts_exactly() {
        let heap = heap(Policy::Exact);
        let first = heap.take(Place::Host, Part::Weights, 100);
        let shared = first.clone();
        drop(first);
        let second = heap.take(Place::Host, Part::Logits, 50);
        assert_eq!((taken(&heap), shared.bytes(), second.bytes()), (150, 100, 50));
        drop((shared, second));
        let _third = heap.take(Place::Host, Part::Weights, 120);
        assert_eq!(taken(&heap), 150);
    }

    #[test]
    fn the_smallest_hole_that_fits_is_split_and_neighbours_are_joined() {
        let heap = heap(Policy::BestFit);
        let take = |bytes| heap.take(Place::Host, Part::Activations, bytes);
        // Each with its header: 112, 64, 208, 64, and a last one that keeps holes from the end.
        let [a, b, c, d] = [96, 48, 192, 48].map(take);
        let _last = take(16);
        assert_eq!(taken(&heap), 112 + 64 + 208 + 64 + 32);
        drop(c);
        drop(a);
        // Fits both holes; the smaller is taken, so that the larger still holds 192.
        let [_e, _f] = [64, 192].map(take);
        assert_eq!(taken(&heap), 480);
        drop((b, d));
        // 32 are left of the first hole, joined with the 64 behind it.
        let _g = take(80);
        assert_eq!(taken(&heap), 480);
        assert_eq!(heap.peaks().host.allocator(), 480 - (96 + 48 + 192 + 48 + 16));
    }

    #[test]
    fn a_hole_at_the_end_is_grown_and_what_was_taken_stays_taken() {
        let heap = heap(Policy::BestFit);
        let take = |bytes| heap.take(Place::Host, Part::Activations, bytes);
        let first = take(1000);
        drop(first);
        assert_eq!(taken(&heap), 1024);
        let _second = take(1500);
        assert_eq!(taken(&heap), 1520);
    }

    #[test]
    fn buffers_of_powers_of_two_are_used_again_until_the_gpu_is_waited_for() {
        let heap = heap(Policy::PowersOfTwo);
        let take = |bytes| heap.take(Place::Device, Part::Activations, bytes);
        drop(take(100));
        let small = take(65);
        assert_eq!(heap.peaks().device.taken, 128);
        let _large = take(129);
        assert_eq!(heap.peaks().device.taken, 128 + 256);
        drop(small);
        heap.wait();
        let _again = take(128);
        assert_eq!(heap.peaks().device.taken, 128 + 256);
    }

    #[test]
    fn a_peak_says_what_it_was_held_for() {
        let heap = heap(Policy::Exact);
        let _weights = heap.take(Place::Host, Part::Weights, 10);
        heap.map(1000);
        heap.map(0);
        let _more = heap.take(Place::Device, Part::Gradients, 7);
        let Peaks { host, device, both } = heap.peaks();
        assert_eq!((host.taken, host.mapped, host.parts[0]), (1010, 1000, 10));
        assert_eq!((device.taken, device.parts[Part::Gradients as usize]), (7, 7));
        assert_eq!(both.taken, 1010);
    }
}

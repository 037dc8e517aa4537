//! The dispatch list: what the GPU does for one pass, as plain data.
//!
//! Knows no model and no device. Invariant: a call that touches what an earlier one writes, or writes what an earlier one
//! touches, has a barrier between them; and no barrier stands where none is needed.

use qat_quant::kernels::metal::Launch;

/// A buffer, by its place among those of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub usize);

/// Consecutive bytes of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which buffer.
    pub buffer: BufferId,
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// What a call does with a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads some of it.
    Read,
    /// Writes all of it, whatever was there.
    Write,
    /// Reads and writes some of it; the rest stays.
    ReadWrite,
}

/// What stands at a place of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// Part of a buffer.
    Buffer {
        /// Which part.
        span: Span,
        /// What becomes of it.
        access: Access,
    },
    /// A few bytes that go along with the call.
    Bytes(Vec<u8>),
}

/// An argument and the index (`[[buffer(place)]]`) at which the kernel finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The index.
    pub place: u16,
    /// What is bound there.
    pub argument: Argument,
}

/// One dispatch with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What it computes, in words of the model.
    pub label: String,
    /// The decoder layer it belongs to.
    pub layer: Option<usize>,
    /// The kernel and its grid.
    pub launch: Launch,
    /// Its arguments, by place.
    pub bindings: Vec<Binding>,
    /// Everything before must be finished and seen by all.
    pub barrier: bool,
    /// Bytes that are read from buffers, each that is needed counted once.
    pub bytes_read: u64,
    /// Bytes that are written to buffers.
    pub bytes_written: u64,
}

/// The calls of one pass, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct List {
    calls: Vec<Call>,
    /// Where the calls since the last barrier begin.
    group: usize,
}

impl Span {
    /// Whether they have a byte in common.
    fn overlaps(&self, other: &Self) -> bool {
        self.buffer == other.buffer
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }
}

impl Call {
    /// What it touches.
    pub fn spans(&self) -> impl Iterator<Item = (Span, Access)> {
        self.bindings.iter().filter_map(|binding| match binding.argument {
            Argument::Buffer { span, access } => Some((span, access)),
            Argument::Bytes(_) => None,
        })
    }

    /// Whether the two can't run at the same time.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.spans().any(|(ours, to_ours)| {
            other.spans().any(|(theirs, to_theirs)| {
                (to_ours != Access::Read || to_theirs != Access::Read) && ours.overlaps(&theirs)
            })
        })
    }
}

impl List {
    /// Appends a call, with a barrier if one of those since the last barrier asks for it.
    pub(super) fn push(&mut self, mut call: Call) {
        call.barrier = self.calls[self.group..].iter().any(|earlier| call.conflicts(earlier));
        if call.barrier {
            self.group = self.calls.len();
        }
        self.calls.push(call);
    }

    /// The calls, in order.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }
}

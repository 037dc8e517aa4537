//! The memory that a program works in, asked for once.
//!
//! Knows no operations. Invariant: a buffer holds as many tokens as it was last made to [`fit`](Buffers::fit).

use std::ops::{Deref, DerefMut};

use super::Program;
use crate::plan::Value;

/// The memory of a program.
#[derive(Debug)]
pub(super) struct Buffers(Vec<Buffer>);

/// Floats that begin at a cache line, so that panels of a row, which threads write side by side, share none.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    memory: Vec<f32>,
    first: usize,
}

/// Floats of a cache line.
const LINE: usize = 16;

impl Buffer {
    fn new(len: usize) -> Self {
        let memory = vec![0.0; len + LINE];
        let first = memory.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        Self { memory, first }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[self.first..]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.first..]
    }
}

impl Buffers {
    /// Memory for passes of up to `tokens`.
    pub(super) fn new(program: &Program<'_>, tokens: usize) -> Self {
        Self(program.widths.iter().map(|width| Buffer::new(tokens * width)).collect())
    }

    /// Makes room for passes of `tokens`.
    pub(super) fn fit(&mut self, program: &Program<'_>, tokens: usize) {
        for (buffer, width) in self.0.iter_mut().zip(&program.widths) {
            if buffer.len() < tokens * width {
                *buffer = Buffer::new(tokens * width);
            }
        }
    }

    /// The first `len` elements of a buffer.
    pub(super) fn get(&self, value: Value, len: usize) -> &[f32] {
        &self.0[value.0][..len]
    }

    /// The same, to be written.
    pub(super) fn get_mut(&mut self, value: Value, len: usize) -> &mut [f32] {
        &mut self.0[value.0][..len]
    }

    /// Takes a buffer out, so that it can be written while others are read; [`put`](Self::put) it back.
    pub(super) fn take(&mut self, value: Value) -> Buffer {
        std::mem::take(&mut self.0[value.0])
    }

    /// Puts it back.
    pub(super) fn put(&mut self, value: Value, buffer: Buffer) {
        self.0[value.0] = buffer;
    }
}

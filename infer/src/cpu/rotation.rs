//! Cosines and sines of the rotary angles, by position, computed once.
//!
//! Knows no tensors. Invariant: the angle of a position doesn't depend on when it was asked for.

use crate::model::Rope;

/// Angles of one set of frequencies for the positions from 0 on.
#[derive(Debug)]
pub(super) struct Rotation {
    rope: Rope,
    /// Room for so many positions, by which the rope chooses its frequencies.
    capacity: usize,
    /// `[positions, rotary_dim / 2]`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// Room for `capacity` positions.
    pub(super) fn new(rope: &Rope, capacity: usize) -> Self {
        let len = capacity * rope.pairs();
        Self { rope: rope.clone(), capacity, cos: Vec::with_capacity(len), sin: Vec::with_capacity(len) }
    }

    /// Computes what is missing up to `positions`.
    pub(super) fn extend_to(&mut self, positions: usize) {
        for position in self.cos.len() / self.rope.pairs()..positions {
            for (cos, sin) in self.rope.angles(position, self.capacity) {
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
    }

    /// Cosines and sines of `position`, `[rotary_dim / 2]` each.
    #[inline(always)]
    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.rope.pairs();
        let range = position * half..(position + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

//! Cosines and sines of the rotary angles, by position, computed once.
//!
//! Knows no tensors. Invariant: the angle of a position doesn't depend on when it was asked for.

use crate::model::Rope;

/// Angles of one set of frequencies for the positions from 0 on.
#[derive(Debug)]
pub(super) struct Rotation {
    inv_freq: Vec<f32>,
    /// `[positions, head_dim / 2]`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// Room for `capacity` positions.
    pub(super) fn new(rope: &Rope, capacity: usize) -> Self {
        let len = capacity * rope.inv_freq.len();
        let inv_freq = rope.inv_freq.clone();
        Self { inv_freq, cos: Vec::with_capacity(len), sin: Vec::with_capacity(len) }
    }

    /// Computes what is missing up to `positions`.
    pub(super) fn extend_to(&mut self, positions: usize) {
        for position in self.cos.len() / self.inv_freq.len()..positions {
            for freq in &self.inv_freq {
                // The product is rounded to f32, as in transformers; the functions of it are not.
                let (sin, cos) = f64::from(position as f32 * freq).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    /// Cosines and sines of `position`, `[head_dim / 2]` each.
    #[inline(always)]
    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.inv_freq.len();
        let range = position * half..(position + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

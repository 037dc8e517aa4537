//! Where the heads of a call lie in memory, and the padded copies that the products of one head read.
//!
//! Knows no arithmetic. A head `[t, d]` is padded with zeros to `[rows, cols]`, multiples of [`LANES`].

use rayon::prelude::*;

use super::BLOCK;
use crate::ops::{lanes::LANES, rows_per_chunk};

/// What the units of one call, the key heads of all sequences, have in common.
#[derive(Clone, Copy)]
pub(super) struct HeadShape {
    pub(super) t: usize,
    pub(super) d: usize,
    pub(super) kv_heads: usize,
    /// Query heads of a key head.
    pub(super) group: usize,
}

impl HeadShape {
    pub(super) fn heads(self) -> usize {
        self.kv_heads * self.group
    }

    /// Positions, padded for a product.
    pub(super) fn rows(self) -> usize {
        self.t.next_multiple_of(LANES)
    }

    /// Elements of a head, padded for a product.
    pub(super) fn cols(self) -> usize {
        self.d.next_multiple_of(LANES)
    }

    /// The blocks of queries: first row and number of rows.
    pub(super) fn blocks(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.rows()).step_by(BLOCK).map(move |first| (first, BLOCK.min(self.rows() - first)))
    }

    /// Head `head` of the sequence `x` `[t, heads, d]`, as `[rows, cols]` padded with zeros.
    pub(super) fn gather(self, x: &[f32], heads: usize, head: usize) -> Vec<f32> {
        let mut out = vec![0f32; self.rows() * self.cols()];
        for (out, x) in out.chunks_exact_mut(self.cols()).zip(x.chunks_exact(heads * self.d)) {
            out[..self.d].copy_from_slice(&x[head * self.d..][..self.d]);
        }
        out
    }

    /// The transpose of a gathered head: `[d, rows]`.
    pub(super) fn transpose(self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; self.d * self.rows()];
        for (j, out) in out.chunks_exact_mut(self.rows()).enumerate() {
            for (out, x) in out.iter_mut().zip(x.chunks_exact(self.cols())) {
                *out = x[j];
            }
        }
        out
    }

    /// Rows `first..` of one head `[t, d]` from a padded block.
    pub(super) fn scatter(self, block: &[f32], first: usize, out: &mut [f32]) {
        for (out, x) in out[first * self.d..].chunks_exact_mut(self.d).zip(block.chunks_exact(self.cols())) {
            out.copy_from_slice(&x[..self.d]);
        }
    }

    /// `[b, heads, t, d]`, the order in which units write, to `[b, t, heads, d]`.
    pub(super) fn interleave(self, x: &[f32], heads: usize) -> Vec<f32> {
        let (t, d) = (self.t, self.d);
        let mut out = vec![0f32; x.len()];
        let rows = rows_per_chunk(heads * d);
        out.par_chunks_mut(rows * heads * d).enumerate().for_each(|(chunk, out)| {
            for (i, out) in out.chunks_exact_mut(heads * d).enumerate() {
                let (sequence, position) = ((chunk * rows + i) / t, (chunk * rows + i) % t);
                for (head, out) in out.chunks_exact_mut(d).enumerate() {
                    out.copy_from_slice(&x[((sequence * heads + head) * t + position) * d..][..d]);
                }
            }
        });
        out
    }
}

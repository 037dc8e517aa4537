//! The KV cache of one layer, and attention over it.
//!
//! Knows no layers and no rotation. Keys lie in tiles of [`TILE`] positions, transposed inside a tile, so that the
//! scores of a tile are computed side by side without a sum across lanes; values lie position by position. Both are f32.
//!
//! Invariant: tiles begin at multiples of [`TILE`] of the *absolute* position, and a query looks at them in order. What
//! a token's attention gives is therefore the same bits however the tokens were cut into calls.

use super::lanes::{LANES, Lanes, exp, fold, greater, lanes};
use super::rows::for_each_row;
use crate::model::AttentionShape;

/// Positions of a tile: four AVX2 registers of scores, and few enough that a short context wastes little.
const TILE: usize = PARTS * LANES;
/// Registers of a tile.
const PARTS: usize = 4;

/// Sums that run side by side over the values.
const CHAINS: usize = 4;

/// One number for each position of a tile.
type TileLanes = [Lanes; PARTS];

/// Keys and values of one layer for up to `capacity` positions.
#[derive(Debug)]
pub(super) struct LayerCache {
    shape: AttentionShape,
    /// Positions that fit, a multiple of [`TILE`].
    capacity: usize,
    /// `[kv_heads, capacity / TILE, head_dim, TILE]`
    keys: Vec<f32>,
    /// `[kv_heads, capacity, head_dim]`
    values: Vec<f32>,
}

impl LayerCache {
    /// Room for `capacity` positions. The system hands out the memory page by page as it is written.
    pub(super) fn new(shape: AttentionShape, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(TILE);
        let len = shape.kv_heads * capacity * shape.head_dim;
        Self { shape, capacity, keys: vec![0.0; len], values: vec![0.0; len] }
    }

    /// The heads it was made for.
    pub(super) fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// Writes the keys and values `[tokens, kv_heads · head_dim]` of the positions from `position` on.
    pub(super) fn write(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let width = kv_heads * head_dim;
        for (at, (key, value)) in (position..).zip(keys.chunks_exact(width).zip(values.chunks_exact(width))) {
            for head in 0..kv_heads {
                let part = head * head_dim..(head + 1) * head_dim;
                let row = (head * self.capacity + at) * head_dim;
                self.values[row..row + head_dim].copy_from_slice(&value[part.clone()]);
                let tile = (head * self.capacity + at / TILE * TILE) * head_dim;
                for (lane, key) in key[part].iter().enumerate() {
                    self.keys[tile + lane * TILE + at % TILE] = *key;
                }
            }
        }
    }

    /// Causal attention of the queries `[tokens, heads · head_dim]` at the positions from `position` on, whose keys and
    /// values have been written: `out`, of the same shape.
    pub(super) fn attend(&self, position: usize, queries: &[f32], out: &mut [f32]) {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let longest = position + queries.len() / (heads * head_dim);
        for_each_row(
            out,
            head_dim,
            2 * longest * head_dim,
            #[inline(always)]
            |row, out: &mut [f32]| {
                let (token, head) = (row / heads, row % heads);
                let query = &queries[row * head_dim..(row + 1) * head_dim];
                self.attend_one(head / (heads / kv_heads), position + token + 1, query, out);
            },
        );
    }

    /// Softmax of one query's scores over the first `seen` positions, and the mean of their values under it: one pass
    /// that rescales what it has summed whenever a greater score turns up (Milakov and Gimelshein, arXiv 1805.02867).
    #[inline(always)]
    fn attend_one(&self, kv_head: usize, seen: usize, query: &[f32], out: &mut [f32]) {
        let head_dim = self.shape.head_dim;
        let start = kv_head * self.capacity * head_dim;
        let keys = &self.keys[start..][..self.capacity * head_dim];
        let values = &self.values[start..][..self.capacity * head_dim];
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (mut greatest, mut total) = (f32::NEG_INFINITY, 0.0);
        out.fill(0.0);
        for (index, tile) in keys.chunks_exact(TILE * head_dim).enumerate().take(seen.div_ceil(TILE)) {
            let first = index * TILE;
            let visible = TILE.min(seen - first);
            let scores = scores(query, tile, scale, visible);
            let before = greatest;
            greatest = greater(before, fold(across(&scores, greater), greater));
            let shrink = if greatest > before { exp(before - greatest) } else { 1.0 };
            let weights = weights(&scores, greatest, visible);
            total = total * shrink + fold(across(&weights, |a, b| a + b), |a, b| a + b);
            mix(&weights, &values[first * head_dim..][..visible * head_dim], shrink, out);
        }
        let inverse = 1.0 / total;
        out.iter_mut().for_each(|value| *value *= inverse);
    }
}

/// Scores of the positions of a tile: `scale · query · keyⱼ`, summed over the head in order; −∞ for those that are not
/// visible.
#[inline(always)]
fn scores(query: &[f32], tile: &[f32], scale: f32, visible: usize) -> TileLanes {
    let mut sums = [[0.0; LANES]; PARTS];
    for (q, keys) in query.iter().zip(tile.as_chunks::<TILE>().0) {
        for (part, keys) in keys.as_chunks::<LANES>().0.iter().enumerate() {
            let sum = sums[part];
            sums[part] = lanes(|lane| sum[lane] + q * keys[lane]);
        }
    }
    for (part, sum) in sums.iter_mut().enumerate() {
        let values = *sum;
        let is_visible = |lane| part * LANES + lane < visible;
        *sum = lanes(|lane| if is_visible(lane) { values[lane] * scale } else { f32::NEG_INFINITY });
    }
    sums
}

/// `e^(score − greatest)`. What is not visible has no weight at all, not just the least that `exp` knows.
#[inline(always)]
fn weights(scores: &TileLanes, greatest: f32, visible: usize) -> TileLanes {
    let mut weights = [[0.0; LANES]; PARTS];
    for (part, (weights, scores)) in weights.iter_mut().zip(scores).enumerate() {
        let powers = lanes(|lane| exp(scores[lane] - greatest));
        *weights = lanes(|lane| if part * LANES + lane < visible { powers[lane] } else { 0.0 });
    }
    weights
}

/// Merges four registers in halves.
#[inline(always)]
fn across(tile: &[Lanes; 4], merge: impl Fn(f32, f32) -> f32) -> Lanes {
    let [a, b, c, d] = *tile;
    lanes(|lane| merge(merge(a[lane], c[lane]), merge(b[lane], d[lane])))
}

/// `out = out · shrink + Σⱼ weightsⱼ · valuesⱼ`, a few elements of the head at a time so that they stay in registers.
/// Positions take turns between [`CHAINS`] sums, which hides the latency of an addition.
#[inline(always)]
fn mix(weights: &TileLanes, values: &[f32], shrink: f32, out: &mut [f32]) {
    let head_dim = out.len();
    let (turns, last) = weights.as_flattened()[..values.len() / head_dim].as_chunks::<CHAINS>();
    let (turn_values, last_values) = values.split_at(turns.len() * CHAINS * head_dim);
    let (parts, rest) = out.as_chunks_mut::<LANES>();
    let whole = parts.len() * LANES;
    for (index, part) in parts.iter_mut().enumerate() {
        let row = |rows: &[f32], at: usize| -> Lanes {
            let row = &rows[at * head_dim + index * LANES..][..LANES];
            lanes(|lane| row[lane])
        };
        let mut sums = [[0.0; LANES]; CHAINS];
        for (weights, rows) in turns.iter().zip(turn_values.chunks_exact(CHAINS * head_dim)) {
            for chain in 0..CHAINS {
                let (sum, row) = (sums[chain], row(rows, chain));
                sums[chain] = lanes(|lane| sum[lane] + weights[chain] * row[lane]);
            }
        }
        for (chain, weight) in last.iter().enumerate() {
            let (sum, row) = (sums[chain], row(last_values, chain));
            sums[chain] = lanes(|lane| sum[lane] + weight * row[lane]);
        }
        let sum = across(&sums, |a, b| a + b);
        *part = lanes(|lane| part[lane] * shrink + sum[lane]);
    }
    for (lane, sum) in rest.iter_mut().enumerate() {
        *sum *= shrink;
        for (weight, row) in weights.as_flattened().iter().zip(values.chunks_exact(head_dim)) {
            *sum += weight * row[whole + lane];
        }
    }
}

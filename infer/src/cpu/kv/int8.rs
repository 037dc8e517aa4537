//! Keys and values as 8-bit integers: `scale · q`, q in −127..=127, one scale per head and position.
//!
//! Layout of a tile: the f16 scales of its positions, then the codes, keys `[head_dim, TILE]`, values `[TILE, head_dim]`.
//! Codes are chosen with the scale as it is stored.

use super::{Code, TILE, from_f16, to_f16};

/// One byte each, two for the scale.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int8;

/// Bytes of the scales of a tile.
const SCALES: usize = 2 * TILE;

/// Largest magnitude; infinite ones count as the largest finite.
#[inline(always)]
pub(super) fn peak(row: &[f32]) -> f32 {
    row.iter().fold(0.0, |peak, x| if x.abs() > peak { x.abs() } else { peak }).min(f32::MAX)
}

#[inline(always)]
fn codes(row: &[f32]) -> (u16, impl Fn(f32) -> u8) {
    let stored = to_f16(peak(row) / 127.0);
    let scale = from_f16(stored);
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    // A scale below the smallest normal number has no finite inverse, but an f16 is never that small.
    (stored, move |x: f32| (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8)
}

impl Code for Int8 {
    #[inline(always)]
    fn bytes(self, head_dim: usize) -> usize {
        head_dim + 2
    }

    #[inline(always)]
    fn write_key(self, tile: &mut [u8], at: usize, key: &[f32]) {
        let (scales, cells) = tile.split_at_mut(SCALES);
        let (scale, code) = codes(key);
        scales.as_chunks_mut().0[at] = scale.to_le_bytes();
        for (row, key) in cells.chunks_exact_mut(TILE).zip(key) {
            row[at] = code(*key);
        }
    }

    #[inline(always)]
    fn write_value(self, tile: &mut [u8], at: usize, value: &[f32]) {
        let (scales, cells) = tile.split_at_mut(SCALES);
        let (scale, code) = codes(value);
        scales.as_chunks_mut().0[at] = scale.to_le_bytes();
        for (cell, value) in cells[at * value.len()..].iter_mut().zip(value) {
            *cell = code(*value);
        }
    }

    #[inline(always)]
    fn keys(self, tile: &[u8], out: &mut [f32]) {
        let (bytes, cells) = tile.split_at(SCALES);
        let mut scales = [0.0; TILE];
        for (scale, bytes) in scales.iter_mut().zip(bytes.as_chunks().0) {
            *scale = from_f16(u16::from_le_bytes(*bytes));
        }
        for (out, cells) in out.as_chunks_mut::<TILE>().0.iter_mut().zip(cells.as_chunks::<TILE>().0) {
            for lane in 0..TILE {
                out[lane] = f32::from(cells[lane] as i8) * scales[lane];
            }
        }
    }

    #[inline(always)]
    fn values(self, tile: &[u8], head_dim: usize, out: &mut [f32]) {
        let (scales, cells) = tile.split_at(SCALES);
        let rows = out.chunks_exact_mut(head_dim).zip(cells.chunks_exact(head_dim));
        for ((out, cells), scale) in rows.zip(scales.as_chunks().0) {
            let scale = from_f16(u16::from_le_bytes(*scale));
            for (out, cell) in out.iter_mut().zip(cells) {
                *out = f32::from(*cell as i8) * scale;
            }
        }
    }
}

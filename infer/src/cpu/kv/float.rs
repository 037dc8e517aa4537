//! Keys and values as floats: 32 bits as they are, or rounded to 16.
//!
//! Layout of a tile, little-endian: keys `[head_dim, TILE]`, values `[TILE, head_dim]`.

use super::{Code, TILE, from_f16, to_f16};

/// 4 bytes each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct F32;

/// 2 bytes each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct F16;

#[inline(always)]
fn write_key<const N: usize>(tile: &mut [u8], at: usize, key: &[f32], to: impl Fn(f32) -> [u8; N]) {
    let cells = tile.as_chunks_mut::<N>().0;
    for (row, key) in cells.chunks_exact_mut(TILE).zip(key) {
        row[at] = to(*key);
    }
}

#[inline(always)]
fn write_value<const N: usize>(tile: &mut [u8], at: usize, value: &[f32], to: impl Fn(f32) -> [u8; N]) {
    let cells = &mut tile.as_chunks_mut::<N>().0[at * value.len()..][..value.len()];
    for (cell, value) in cells.iter_mut().zip(value) {
        *cell = to(*value);
    }
}

#[inline(always)]
fn read<const N: usize>(tile: &[u8], out: &mut [f32], from: impl Fn([u8; N]) -> f32) {
    for (out, cell) in out.iter_mut().zip(tile.as_chunks::<N>().0) {
        *out = from(*cell);
    }
}

impl Code for F32 {
    #[inline(always)]
    fn bytes(self, head_dim: usize) -> usize {
        4 * head_dim
    }

    #[inline(always)]
    fn write_key(self, tile: &mut [u8], at: usize, key: &[f32]) {
        write_key(tile, at, key, f32::to_le_bytes);
    }

    #[inline(always)]
    fn write_value(self, tile: &mut [u8], at: usize, value: &[f32]) {
        write_value(tile, at, value, f32::to_le_bytes);
    }

    #[inline(always)]
    fn keys(self, tile: &[u8], out: &mut [f32]) {
        read(tile, out, f32::from_le_bytes);
    }

    #[inline(always)]
    fn values(self, tile: &[u8], _: usize, out: &mut [f32]) {
        read(tile, out, f32::from_le_bytes);
    }
}

#[inline(always)]
fn half(x: f32) -> [u8; 2] {
    to_f16(x).to_le_bytes()
}

#[inline(always)]
fn single(bytes: [u8; 2]) -> f32 {
    from_f16(u16::from_le_bytes(bytes))
}

impl Code for F16 {
    #[inline(always)]
    fn bytes(self, head_dim: usize) -> usize {
        2 * head_dim
    }

    #[inline(always)]
    fn write_key(self, tile: &mut [u8], at: usize, key: &[f32]) {
        write_key(tile, at, key, half);
    }

    #[inline(always)]
    fn write_value(self, tile: &mut [u8], at: usize, value: &[f32]) {
        write_value(tile, at, value, half);
    }

    #[inline(always)]
    fn keys(self, tile: &[u8], out: &mut [f32]) {
        read(tile, out, single);
    }

    #[inline(always)]
    fn values(self, tile: &[u8], _: usize, out: &mut [f32]) {
        read(tile, out, single);
    }
}

//! Keys and values as 4-bit integers: `scale · q`, q in −8..=7, one scale per [`GROUP`] elements of a head.
//!
//! The element of greatest magnitude gets code −8, as in ggml's Q4_0. Codes are chosen with the scale as it is stored,
//! and are stored plus 8. Layout of a tile:
//!
//! | side | scales (f16) | codes |
//! |---|---|---|
//! | keys | `[groups, TILE]` | `[head_dim, TILE / 2]`: the low nibble of byte j is position j, the high one j + TILE/2 |
//! | values | `[TILE, groups]` | `[TILE, head_dim / 2]`: in each group of n, the low nibble of byte j is element j, the high one j + n/2 |

use super::{Code, TILE, from_f16, to_f16};

/// Half a byte each, two bytes for the scale of a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int4;

/// Elements of a head that share a scale.
const GROUP: usize = 32;
/// Bytes of the codes of a group.
const HALF: usize = GROUP / 2;

/// The stored scale of a group, and what makes codes with it.
#[inline(always)]
fn codes(group: &[f32]) -> (u16, impl Fn(f32) -> u8) {
    let peak = group.iter().fold(0.0, |peak: f32, x| if x.abs() > peak.abs() { *x } else { peak });
    let stored = to_f16(peak.clamp(f32::MIN, f32::MAX) / -8.0);
    let scale = from_f16(stored);
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    (stored, move |x: f32| ((x * inverse).round_ties_even().clamp(-8.0, 7.0) + 8.0) as u8)
}

#[inline(always)]
fn scale(bytes: &[u8; 2]) -> f32 {
    from_f16(u16::from_le_bytes(*bytes))
}

#[inline(always)]
fn value(code: u8, scale: f32) -> f32 {
    f32::from(code as i8 - 8) * scale
}

impl Code for Int4 {
    #[inline(always)]
    fn bytes(self, head_dim: usize) -> usize {
        head_dim / 2 + 2 * head_dim.div_ceil(GROUP)
    }

    #[inline(always)]
    fn write_key(self, tile: &mut [u8], at: usize, key: &[f32]) {
        let (scales, cells) = tile.split_at_mut(2 * TILE * key.len().div_ceil(GROUP));
        let groups = scales.as_chunks_mut::<2>().0.chunks_exact_mut(TILE);
        let rows = cells.chunks_mut(GROUP * TILE / 2);
        for ((scales, rows), key) in groups.zip(rows).zip(key.chunks(GROUP)) {
            let (stored, code) = codes(key);
            scales[at] = stored.to_le_bytes();
            for (row, key) in rows.chunks_exact_mut(TILE / 2).zip(key) {
                let cell = &mut row[at % (TILE / 2)];
                *cell =
                    if at < TILE / 2 { *cell & 0xf0 | code(*key) } else { *cell & 0x0f | code(*key) << 4 };
            }
        }
    }

    #[inline(always)]
    fn write_value(self, tile: &mut [u8], at: usize, value: &[f32]) {
        let groups = value.len().div_ceil(GROUP);
        let (scales, cells) = tile.split_at_mut(2 * TILE * groups);
        let scales = &mut scales.as_chunks_mut::<2>().0[at * groups..][..groups];
        let cells = &mut cells[at * value.len() / 2..][..value.len() / 2];
        for ((stored, cells), value) in scales.iter_mut().zip(cells.chunks_mut(HALF)).zip(value.chunks(GROUP))
        {
            let (scale, code) = codes(value);
            *stored = scale.to_le_bytes();
            let (low, high) = value.split_at(cells.len());
            for ((cell, low), high) in cells.iter_mut().zip(low).zip(high) {
                *cell = code(*low) | code(*high) << 4;
            }
        }
    }

    #[inline(always)]
    fn keys(self, tile: &[u8], out: &mut [f32]) {
        let head_dim = out.len() / TILE;
        let (scales, cells) = tile.split_at(2 * TILE * head_dim.div_ceil(GROUP));
        let groups = scales.as_chunks::<2>().0.chunks_exact(TILE);
        for ((stored, cells), out) in
            groups.zip(cells.chunks(GROUP * TILE / 2)).zip(out.chunks_mut(GROUP * TILE))
        {
            let mut scales = [0.0; TILE];
            for (out, stored) in scales.iter_mut().zip(stored) {
                *out = scale(stored);
            }
            let rows = cells.as_chunks::<{ TILE / 2 }>().0;
            for (out, cells) in out.as_chunks_mut::<TILE>().0.iter_mut().zip(rows) {
                let (low, high) = out.split_at_mut(TILE / 2);
                for lane in 0..TILE / 2 {
                    low[lane] = value(cells[lane] & 0x0f, scales[lane]);
                }
                for lane in 0..TILE / 2 {
                    high[lane] = value(cells[lane] >> 4, scales[TILE / 2 + lane]);
                }
            }
        }
    }

    #[inline(always)]
    fn values(self, tile: &[u8], head_dim: usize, out: &mut [f32]) {
        let groups = head_dim.div_ceil(GROUP);
        let (scales, cells) = tile.split_at(2 * TILE * groups);
        let scales = scales.as_chunks::<2>().0.chunks_exact(groups);
        for ((out, cells), scales) in
            out.chunks_exact_mut(head_dim).zip(cells.chunks_exact(head_dim / 2)).zip(scales)
        {
            for ((out, cells), stored) in out.chunks_mut(GROUP).zip(cells.chunks(HALF)).zip(scales) {
                let scale = scale(stored);
                if let (Ok(out), Ok(cells)) =
                    (<&mut [f32; GROUP]>::try_from(&mut *out), <&[u8; HALF]>::try_from(cells))
                {
                    // Through an array of whole numbers: in one step, it isn't vectorized.
                    let mut codes = [0i32; GROUP];
                    for (lane, cell) in cells.iter().enumerate() {
                        codes[lane] = i32::from(cell & 0x0f) - 8;
                        codes[HALF + lane] = i32::from(cell >> 4) - 8;
                    }
                    *out = std::array::from_fn(
                        #[inline(always)]
                        |lane| codes[lane] as f32 * scale,
                    );
                } else {
                    let (low, high) = out.split_at_mut(cells.len());
                    for ((low, high), cell) in low.iter_mut().zip(high).zip(cells) {
                        *low = value(cell & 0x0f, scale);
                        *high = value(cell >> 4, scale);
                    }
                }
            }
        }
    }
}

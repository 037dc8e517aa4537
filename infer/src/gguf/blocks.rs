//! Blocks of ggml that no format of ours has, as floats: the older ones of 32 weights, and the "k-quants" of 256.
//!
//! `d` is the block's scale, `m` or `dmin` what is subtracted or added, as f16; `q` a code. Numbers are multiplied in the order in which
//! ggml's own dequantizers do it, so that values are the same bits. A row is a sequence of blocks.
//!
//! | type | weights | bytes in order | value |
//! |---|---|---|---|
//! | Q4_1 | 32 | d, m, 16 × two nibbles (j, j + 16) | d·q + m |
//! | Q5_0 | 32 | d, 32 high bits, 16 × two nibbles | d·(q − 16) |
//! | Q5_1 | 32 | d, m, 32 high bits, 16 × two nibbles | d·q + m |
//! | Q2_K | 256 | 16 × (4-bit scale, 4-bit min), 64 × four codes, d, dmin | d·s·q − dmin·m |
//! | Q3_K | 256 | 256 high bits, 64 × four codes, 16 × 6-bit scale, d | d·(s − 32)·(q − 4) |
//! | Q4_K | 256 | d, dmin, 8 × (6-bit scale, 6-bit min), 128 × two nibbles | d·s·q − dmin·m |
//! | Q5_K | 256 | d, dmin, 8 × (6-bit scale, 6-bit min), 256 high bits, 128 × two nibbles | d·s·q − dmin·m |
//! | Q6_K | 256 | 128 × two nibbles, 64 × four times two high bits, 16 × i8 scale, d | d·s·(q − 32) |

use half::f16;
use qat_quant::kernels::FloatRef;
use qat_quant::{Format, PackedRef, tq1_0};
use rayon::prelude::*;

use super::kind::Kind;
use crate::{Error, Result};

/// The values of a `[rows, cols]` tensor.
///
/// # Errors
/// `bytes` has another length than the type makes of the shape.
pub(super) fn decode(name: &str, kind: Kind, [rows, cols]: [usize; 2], bytes: &[u8]) -> Result<Vec<f32>> {
    if kind.bytes(cols, rows * cols) != Some(bytes.len()) {
        let problem = format!("{} of [{rows}, {cols}] doesn't fit {} bytes", kind.name(), bytes.len());
        return Err(Error::tensor(name, problem));
    }
    let mut values = vec![0.0; rows * cols];
    let by_row = |decode: &(dyn Fn(usize, &mut [f32]) + Sync), values: &mut [f32]| {
        values.par_chunks_mut(cols).enumerate().for_each(|(row, out)| decode(row, out));
    };
    if let Some(float) = kind.float() {
        let stored = FloatRef::new(name, float, rows, cols, bytes)?;
        by_row(&|row, out| stored.decode_row(row, out), &mut values);
    } else if let Some(format) = kind.format() {
        let stored = PackedRef::new(name, format, rows, cols, bytes, None)?;
        by_row(&|row, out| stored.decode_row(row, out), &mut values);
    } else if kind == Kind::TQ1_0 {
        let wide = tq2_0(bytes);
        let stored = PackedRef::new(name, Format::TernaryG256, rows, cols, &wide, None)?;
        by_row(&|row, out| stored.decode_row(row, out), &mut values);
    } else {
        let row_bytes = cols / kind.block_len() * kind.block_bytes();
        by_row(&|row, out| decode_row(kind, &bytes[row * row_bytes..][..row_bytes], out), &mut values);
    }
    Ok(values)
}

/// TQ1_0 blocks as the TQ2_0 blocks of the same weights.
pub(super) fn tq2_0(bytes: &[u8]) -> Vec<u8> {
    bytes.as_chunks::<{ tq1_0::BYTES }>().0.iter().flat_map(tq1_0::to_tq2_0).collect()
}

/// The values of a row of one of the types in the table above.
fn decode_row(kind: Kind, bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.chunks_exact(kind.block_bytes()).zip(out.chunks_exact_mut(kind.block_len()));
    for (block, out) in blocks {
        match kind {
            Kind::Q4_1 => thirty_two(&block[4..], 0, out, |q| half(block, 0) * q + half(block, 2)),
            Kind::Q5_0 => thirty_two(&block[6..], u32_at(block, 2), out, |q| half(block, 0) * (q - 16.0)),
            Kind::Q5_1 => {
                thirty_two(&block[8..], u32_at(block, 4), out, |q| half(block, 0) * q + half(block, 2));
            }
            Kind::Q2_K => q2_k(block, out),
            Kind::Q3_K => q3_k(block, out),
            Kind::Q4_K => q4_k(block, out),
            Kind::Q5_K => q5_k(block, out),
            Kind::Q6_K => q6_k(block, out),
            // Floats and the formats of ours are decoded by their own code.
            _ => {}
        }
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// 32 weights in 16 bytes, with a fifth bit for each in `high`.
fn thirty_two(codes: &[u8], high: u32, out: &mut [f32], value: impl Fn(f32) -> f32) {
    let code = |j: usize| codes[j % 16] >> (j / 16 * 4) & 15 | ((high >> j & 1) as u8) << 4;
    out.iter_mut().enumerate().for_each(|(j, out)| *out = value(f32::from(code(j))));
}

/// Byte and shift of the two bits of element `n` where 32 bytes hold 128 elements.
fn crumb(n: usize) -> (usize, usize) {
    (n / 128 * 32 + n % 32, n % 128 / 32 * 2)
}

fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (n, out) in out.iter_mut().enumerate() {
        let (at, shift) = crumb(n);
        let scale = scales[n / 16];
        let (step, least) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        *out = step * f32::from(codes[at] >> shift & 3) - least;
    }
}

fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    // Scale i: its low four bits in byte i % 8, its high two in byte 8 + i % 4.
    let scale = |i: usize| {
        let low = scales[i % 8] >> (i / 8 * 4) & 15;
        let top = scales[8 + i % 4] >> (i / 4 * 2) & 3;
        f32::from(low | top << 4) - 32.0
    };
    for (n, out) in out.iter_mut().enumerate() {
        let (at, shift) = crumb(n);
        let below = if high[n % 32] >> (n / 32) & 1 == 1 { 0.0 } else { 4.0 };
        *out = d * scale(n / 16) * (f32::from(codes[at] >> shift & 3) - below);
    }
}

/// Scale and minimum number `i` of the eight that Q4_K and Q5_K pack in 12 bytes.
fn scale_min(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, min) = match i < 4 {
        true => (packed[i] & 63, packed[i + 4] & 63),
        false => (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4),
    };
    (f32::from(scale), f32::from(min))
}

/// Eight times 32 weights: two runs of 32 share 32 bytes, low nibbles first.
fn k_nibbles(block: &[u8], codes: &[u8], high: impl Fn(usize, usize) -> u8, out: &mut [f32]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&block[4..16], i);
        let (step, least) = (d * scale, dmin * min);
        for (j, out) in out.iter_mut().enumerate() {
            let code = codes[i / 2 * 32 + j] >> (i % 2 * 4) & 15 | high(i, j);
            *out = step * f32::from(code) - least;
        }
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    k_nibbles(block, &block[16..], |_, _| 0, out);
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    k_nibbles(block, &block[48..], |i, j| (block[16 + j] >> i & 1) << 4, out);
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (n, out) in out.iter_mut().enumerate() {
        // 64 bytes hold 128 low nibbles, in runs of 32: two in the low, two in the high halves.
        let (half_block, at) = (n / 128, n % 128);
        let nibble = low[half_block * 64 + at % 64] >> (at / 64 * 4) & 15;
        let (byte, shift) = crumb(n);
        let code = nibble | (high[byte] >> shift & 3) << 4;
        let scale = f32::from(scales[n / 16] as i8);
        *out = d * scale * (f32::from(code) - 32.0);
    }
}

//! The KV cache: keys and values of every layer and position, in the type that was asked for.
//!
//! A tile holds [`TILE`] positions of one head. Its keys lie transposed, one element of the head for all positions, so
//! that the scores of a tile are computed side by side without a sum across lanes; its values lie position by position.
//!
//! Knows no attention and no rotation. Invariant: what is read back depends on what was written at that position only,
//! and is finite if that was.

mod cache;
mod float;
mod int4;
mod int8;

use std::fmt;
use std::str::FromStr;

use qat_quant::vectorized;

use crate::{Error, Result};

/// Positions of a tile.
pub(super) const TILE: usize = 64;

/// Calls a generic function with the [`Code`] of a [`KvType`].
macro_rules! with_code {
    ($kv:expr, $code:ident => $body:expr) => {
        match $kv {
            $crate::cpu::kv::KvType::F32 => {
                let $code = $crate::cpu::kv::F32;
                $body
            }
            $crate::cpu::kv::KvType::F16 => {
                let $code = $crate::cpu::kv::F16;
                $body
            }
            $crate::cpu::kv::KvType::Int8 => {
                let $code = $crate::cpu::kv::Int8;
                $body
            }
            $crate::cpu::kv::KvType::Int4 => {
                let $code = $crate::cpu::kv::Int4;
                $body
            }
        }
    };
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvType {
    /// As they are: 4 bytes.
    F32,
    /// Half precision, rounded to nearest even; beyond its range the largest finite number.
    #[default]
    F16,
    /// 8-bit codes −127..=127 with one f16 scale per head and position.
    Int8,
    /// 4-bit codes −8..=7 with one f16 scale per 32 elements of a head, of which the greatest in magnitude is code −8.
    Int4,
}

impl KvType {
    /// All types, widest first.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Int8, Self::Int4];

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bytes of the keys, or of the values, of one head and position.
    pub fn bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => float::F32.bytes(head_dim),
            Self::F16 => float::F16.bytes(head_dim),
            Self::Int8 => int8::Int8.bytes(head_dim),
            Self::Int4 => int4::Int4.bytes(head_dim),
        }
    }

    /// Makes of `rows` `[positions, head_dim]`, keys or values of one head, what a cache of this type gives back of them.
    pub fn round(self, head_dim: usize, rows: &mut [f32]) {
        with_code!(self, code => vectorized(
            #[inline(always)]
            || {
                let mut tile = vec![0; TILE * code.bytes(head_dim)];
                for rows in rows.chunks_mut(TILE * head_dim) {
                    for (at, row) in rows.chunks_exact(head_dim).enumerate() {
                        code.write_value(&mut tile, at, row);
                    }
                    code.values(&tile, head_dim, rows);
                }
            },
        ));
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kv| kv.name() == name).ok_or_else(|| {
            Error::Invalid(format!("the KV cache type {name:?} is unknown; choose f32, f16, int8 or int4"))
        })
    }
}

/// A way to keep a tile of keys and one of values. Loops over lanes, to be inlined into vectorized code.
pub(super) trait Code: Copy + Sync {
    /// Bytes of one position of one head, keys or values.
    fn bytes(self, head_dim: usize) -> usize;

    /// Writes the key of position `at` of the tile.
    fn write_key(self, tile: &mut [u8], at: usize, key: &[f32]);

    /// Writes the value of position `at` of the tile.
    fn write_value(self, tile: &mut [u8], at: usize, value: &[f32]);

    /// All keys of the tile: `out` `[head_dim, TILE]`.
    fn keys(self, tile: &[u8], out: &mut [f32]);

    /// Values of the tile: `out` `[positions, head_dim]`, the first positions of the tile.
    fn values(self, tile: &[u8], head_dim: usize, out: &mut [f32]);
}

pub use cache::KvCache;
pub(super) use cache::LayerCache;
pub(super) use float::{F16, F32};
pub(super) use int4::Int4;
pub(super) use int8::Int8;
pub(super) use with_code;

/// `2^112`: what the exponent of an f16 lacks once its bits stand in an f32.
const REBIAS: f32 = f32::from_bits((127 + 112) << 23);

/// Exact for every finite f16; in lanes, where the `half` crate makes a call.
///
/// The shift carries the sign along, in copies of which the mask leaves the first.
#[inline(always)]
fn from_f16(bits: u16) -> f32 {
    let shifted = (i32::from(bits as i16) << 13) as u32;
    f32::from_bits(shifted & 0x8fff_e000) * REBIAS
}

/// The nearest f16, ties to even; the largest finite one beyond it. In lanes.
///
/// Adding a power of two that is 2¹⁰ steps of the result's own binade lets the addition itself do the rounding.
#[inline(always)]
fn to_f16(x: f32) -> u16 {
    const MOST: f32 = 65_504.0;
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = if x.abs() < MOST { x.abs() } else { MOST };
    // The least exponent of a normal f16 serves the subnormal ones, which have the same steps.
    let exponent = (magnitude.to_bits() >> 23).max(127 - 14);
    let steps = f32::from_bits((exponent + 13) << 23);
    let rounded = magnitude + steps;
    let mantissa = rounded.to_bits() & 0x007f_ffff;
    sign | (((exponent - (127 - 14)) << 10) + mantissa) as u16
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn every_f16_is_read_as_half_reads_it() {
        for bits in 0..=u16::MAX {
            let want = f16::from_bits(bits);
            if want.is_finite() {
                assert_eq!(from_f16(bits).to_bits(), want.to_f32().to_bits(), "{bits:#x}");
                assert_eq!(to_f16(want.to_f32()), bits, "{bits:#x}");
            }
        }
    }

    #[test]
    fn floats_are_rounded_as_half_rounds_them_and_saturate() {
        for step in 0..5_000_000u32 {
            let x = f32::from_bits(step * 859);
            let want = f16::from_f32(x);
            if x.is_finite() && want.is_finite() {
                assert_eq!(to_f16(x), want.to_bits(), "{x:e}");
                assert_eq!(to_f16(-x), (-want).to_bits(), "-{x:e}");
            }
        }
        for x in [65_520.0, 1e9, f32::MAX, f32::INFINITY] {
            assert_eq!((from_f16(to_f16(x)), from_f16(to_f16(-x))), (65_504.0, -65_504.0));
        }
    }

    #[test]
    fn types_are_spelled_one_way() {
        for kv in KvType::ALL {
            assert_eq!(kv.to_string().parse::<KvType>().expect("its own name"), kv);
        }
        let message = "fp16".parse::<KvType>().expect_err("no such type").to_string();
        assert!(message.contains("\"fp16\"") && message.contains("int8"), "{message}");
        assert_eq!(KvType::default(), KvType::F16);
    }

    /// What `code` makes of a head of positions, by keys and by values.
    fn round_trip(code: impl Code, head_dim: usize, rows: &[Vec<f32>]) -> [Vec<Vec<f32>>; 2] {
        let (mut keys, mut values) =
            (vec![0xa5; TILE * code.bytes(head_dim)], vec![0x5a; TILE * code.bytes(head_dim)]);
        for (at, row) in rows.iter().enumerate() {
            code.write_key(&mut keys, at, row);
            code.write_value(&mut values, at, row);
        }
        let (mut key_floats, mut value_floats) =
            (vec![0.0; head_dim * TILE], vec![0.0; head_dim * rows.len()]);
        code.keys(&keys, &mut key_floats);
        code.values(&values, head_dim, &mut value_floats);
        let by_key = |at: usize| (0..head_dim).map(|lane| key_floats[lane * TILE + at]).collect();
        [(0..rows.len()).map(by_key).collect(), value_floats.chunks(head_dim).map(<[f32]>::to_vec).collect()]
    }

    #[test]
    fn keys_and_values_come_back_within_half_a_step() {
        // 48 and 36 leave a short group of four bits; 6 is less than a register.
        for head_dim in [6, 36, 48, 64, 128] {
            let value = |at: usize, lane: usize| ((at * 131 + lane * 71) % 97) as f32 / 10.0 - 4.8;
            let rows: Vec<Vec<f32>> =
                (0..TILE).map(|at| (0..head_dim).map(|lane| value(at, lane)).collect()).collect();
            for kv in KvType::ALL {
                let [keys, values] = with_code!(kv, code => round_trip(code, head_dim, &rows));
                assert_eq!(keys, values, "{kv}: one row, one rounding");
                let mut rounded = [rows.concat(), rows.concat()].concat();
                kv.round(head_dim, &mut rounded);
                assert_eq!(rounded, [values.concat(), values.concat()].concat(), "{kv}: two tiles");
                for (row, found) in rows.iter().zip(&keys) {
                    let group = if kv == KvType::Int4 { 32 } else { head_dim };
                    for (row, found) in row.chunks(group).zip(found.chunks(group)) {
                        let peak = row.iter().fold(0f32, |a, b| a.max(b.abs()));
                        // f16: 11 bits. int8: half of a step of peak/127. int4: a step of peak/8, whole at the side
                        // where code 7 ends. The scale itself is rounded to 11 bits.
                        let bound = match kv {
                            KvType::F32 => 0.0,
                            KvType::F16 => peak / 2048.0,
                            KvType::Int8 => peak / 127.0 * 0.5 * 1.07,
                            KvType::Int4 => peak / 8.0 * 1.01,
                        };
                        let worst = row.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                        assert!(worst <= bound, "{kv}, head {head_dim}: {worst} above {bound}");
                    }
                }
            }
        }
    }

    #[test]
    fn zeros_and_extremes_stay_finite() {
        for kv in KvType::ALL {
            for row in [vec![0.0; 64], vec![1e-30; 64], vec![f32::MAX; 64], vec![f32::INFINITY; 64]] {
                if kv == KvType::F32 && !row[0].is_finite() {
                    continue;
                }
                let [keys, _] = with_code!(kv, code => round_trip(code, 64, std::slice::from_ref(&row)));
                assert!(keys[0].iter().all(|k| k.is_finite()), "{kv}: {} became {}", row[0], keys[0][0]);
            }
        }
    }
}

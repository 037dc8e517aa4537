//! The tiers of 64-bit Arm: sixteen rows in four registers of four.
//!
//! Two tiers in one. dotprod has the product of four bytes and their sum in one instruction (Arm's cores since 2017, all
//! of Apple's M series), on signed bytes. i8mm (since 2021, Apple's M2) has it with unsigned codes, and a product of two
//! rows and two tokens over eight columns in one instruction, which takes tokens in pairs. A processor with neither runs
//! the portable tier. Knows no formats.

mod instructions;

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use self::instructions::{fcvtl, sdot, usdot, usmmla};
use super::PANEL;
use super::lanes::{Chunk, Lanes, Line, low_bits, place, proven, unroll};
use super::tokens::CHUNK;
use crate::ScaleType;

/// Proof of the dot product of signed bytes and, if `I8MM`, of the instructions on matrices of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Neon<const I8MM: bool>(());

impl Neon<false> {
    /// The proof, where there is one.
    pub(super) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }
}

impl Neon<true> {
    /// The proof, where there is one.
    pub(super) fn detect() -> Option<Self> {
        let has = is_aarch64_feature_detected!("dotprod") && is_aarch64_feature_detected!("i8mm");
        has.then_some(Self(()))
    }
}

/// A value for each four rows, made of a tier's intrinsics.
macro_rules! quads {
    ($tier:expr, $quad:ident => $value:expr) => { quads!($tier, $quad in [0 1 2 3] => $value) };
    ($tier:expr, $quad:ident in [$($n:literal)*] => $value:expr) => {
        proven!($tier, [$({ const $quad: usize = $n; $value }),*])
    };
}

impl<const I8MM: bool> Lanes for Neon<I8MM> {
    type Codes = [uint8x16_t; 4];
    type Partial = [int32x4_t; 4];
    type Ints = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];
    type Table = ();

    const INT8_TOKENS: usize = 4;
    const FLOAT_TOKENS: usize = 4;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "neon,dotprod")]
        fn dotprod<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "neon,dotprod,i8mm")]
        fn i8mm<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        proven!(self, if I8MM { i8mm(f) } else { dotprod(f) })
    }

    #[inline(always)]
    fn codes<const BITS: usize, const I: usize>(self, chunk: &Chunk<BITS>) -> Self::Codes {
        let (line, shift) = place(BITS, I);
        quads!(self, QUAD => {
            let low = down(load::<QUAD>(&chunk[line]), shift);
            match BITS {
                8 if I8MM => low,
                // As signed bytes they are 128 less: the top bit turns over.
                8 => veorq_u8(low, vdupq_n_u8(128)),
                3 => vorrq_u8(vandq_u8(low, vdupq_n_u8(3)), third_bit(load::<QUAD>(&chunk[2]), I)),
                _ => vandq_u8(low, vdupq_n_u8((1 << low_bits(BITS)) - 1)),
            }
        })
    }

    #[inline(always)]
    fn offset<const BITS: usize>() -> i32 {
        if BITS == 8 && !I8MM { 128 } else { 0 }
    }

    #[inline(always)]
    fn none(self) -> Self::Partial {
        self.int(0)
    }

    #[inline(always)]
    fn dot<const BITS: usize, const I: usize>(
        self,
        sums: Self::Partial,
        codes: Self::Codes,
        x: &[i8; CHUNK],
    ) -> Self::Partial {
        let x = proven!(self, half(x, I / 4));
        quads!(self, QUAD => if I8MM {
            usdot::<I>(sums[QUAD], codes[QUAD], x)
        } else {
            sdot::<I>(sums[QUAD], codes[QUAD], x)
        })
    }

    #[inline(always)]
    fn widen<const BITS: usize>(self, ints: Self::Ints, sums: Self::Partial) -> Self::Ints {
        self.add_ints(ints, sums)
    }

    #[inline(always)]
    fn multiply<const BITS: usize, const T: usize>(
        self,
        mut ints: [Self::Ints; T],
        chunk: &Chunk<BITS>,
        x: [&[i8; CHUNK]; T],
    ) -> [Self::Ints; T] {
        // For a pair of tokens, the first's sums are tiles of rows 0 and 1 of each four, the second's of rows 2 and 3.
        let paired = if I8MM { T / 2 * 2 } else { 0 };
        let mut sums = [self.none(); T];
        unroll!(EIGHT in [0 1 2 3] {
            const A: usize = 2 * EIGHT;
            const B: usize = A + 1;
            let (a, b) = (self.codes::<BITS, A>(chunk), self.codes::<BITS, B>(chunk));
            for t in paired..T {
                sums[t] = self.dot::<BITS, A>(sums[t], a, x[t]);
                sums[t] = self.dot::<BITS, B>(sums[t], b, x[t]);
            }
            let rows_01 = quads!(self, QUAD => zip_lower(a[QUAD], b[QUAD]));
            let rows_23 = quads!(self, QUAD => zip_upper(a[QUAD], b[QUAD]));
            for t in (0..paired).step_by(2) {
                let x = proven!(self, eight_of_two(x[t], x[t + 1], EIGHT));
                sums[t] = quads!(self, QUAD => usmmla(sums[t][QUAD], rows_01[QUAD], x));
                sums[t + 1] = quads!(self, QUAD => usmmla(sums[t + 1][QUAD], rows_23[QUAD], x));
            }
        });
        for t in (0..paired).step_by(2) {
            let (rows_01, rows_23) = (sums[t], sums[t + 1]);
            sums[t] = quads!(self, QUAD => vuzp1q_s32(rows_01[QUAD], rows_23[QUAD]));
            sums[t + 1] = quads!(self, QUAD => vuzp2q_s32(rows_01[QUAD], rows_23[QUAD]));
        }
        for t in 0..T {
            ints[t] = self.widen::<BITS>(ints[t], sums[t]);
        }
        ints
    }

    #[inline(always)]
    fn int(self, value: i32) -> Self::Ints {
        proven!(self, [vdupq_n_s32(value); 4])
    }

    #[inline(always)]
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        quads!(self, QUAD => vaddq_s32(a[QUAD], b[QUAD]))
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        quads!(self, QUAD => vcvtq_f32_s32(ints[QUAD]))
    }

    #[inline(always)]
    fn table<const BITS: usize>(self, _zero: i32) {}

    #[inline(always)]
    fn centers<const BITS: usize>() -> bool {
        false
    }

    #[inline(always)]
    fn weights<const BITS: usize, const I: usize, const J: usize>(
        self,
        (): (),
        chunk: &Chunk<BITS>,
    ) -> Self::Floats {
        // A code stays where it lies in the 32 bits of its row: the conversion takes the bits below it for a fraction.
        let (line, shift) = place(BITS, I);
        match BITS {
            3 => {
                let codes = self.codes::<BITS, I>(chunk);
                quads!(self, QUAD => field::<BITS>(codes[QUAD], 8 * J as u32))
            }
            _ => quads!(self, QUAD => field::<BITS>(load::<QUAD>(&chunk[line]), shift + 8 * J as u32)),
        }
    }

    #[inline(always)]
    fn multiply_floats<const BITS: usize, const T: usize>(
        self,
        (): (),
        sums: [Self::Floats; T],
        chunk: &Chunk<BITS>,
        x: [&[f32; CHUNK]; T],
    ) -> [Self::Floats; T] {
        // One chain after the other: both at once, for four tokens, would be all 32 registers.
        let mut even = [self.float(0.0); T];
        let mut odd = even;
        unroll!(I in [0 1 2 3 4 5 6 7] { unroll!(J in [0 2] {
            let weights = self.weights::<BITS, I, J>((), chunk);
            for t in 0..T {
                even[t] = self.mul_add(weights, self.float(x[t][4 * I + J]), even[t]);
            }
        }); });
        unroll!(I in [0 1 2 3 4 5 6 7] { unroll!(J in [1 3] {
            let weights = self.weights::<BITS, I, J>((), chunk);
            for t in 0..T {
                odd[t] = self.mul_add(weights, self.float(x[t][4 * I + J]), odd[t]);
            }
        }); });
        std::array::from_fn(
            #[inline(always)]
            |t| self.add(sums[t], self.add(even[t], odd[t])),
        )
    }

    #[inline(always)]
    fn scales(self, stored: &[[u8; 2]; PANEL], kind: ScaleType) -> Self::Floats {
        let (fours, _) = stored.as_chunks::<4>();
        quads!(self, QUAD => {
            let stored = vreinterpret_u16_u8(vld1_u8(fours[QUAD].as_flattened().as_ptr()));
            match kind {
                ScaleType::F16 => fcvtl(stored),
                ScaleType::BF16 => vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(stored))),
            }
        })
    }

    #[inline(always)]
    fn float(self, value: f32) -> Self::Floats {
        proven!(self, [vdupq_n_f32(value); 4])
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        quads!(self, QUAD => vaddq_f32(a[QUAD], b[QUAD]))
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        quads!(self, QUAD => vmulq_f32(a[QUAD], b[QUAD]))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        quads!(self, QUAD => vfmaq_f32(c[QUAD], a[QUAD], b[QUAD]))
    }

    #[inline(always)]
    fn store(self, floats: Self::Floats) -> [f32; PANEL] {
        let mut out = [0.0; PANEL];
        for (out, quad) in out.as_chunks_mut::<4>().0.iter_mut().zip(floats) {
            proven!(self, vst1q_f32(out.as_mut_ptr(), quad));
        }
        out
    }
}

/// The bytes of the four rows `4·QUAD..`.
#[inline]
#[target_feature(enable = "neon")]
fn load<const QUAD: usize>(line: &Line) -> uint8x16_t {
    let bytes = &line.0.as_chunks::<16>().0[QUAD];
    // SAFETY: sixteen bytes to read, of any alignment.
    #[expect(unsafe_code, reason = "a load from memory")]
    unsafe {
        vld1q_u8(bytes.as_ptr())
    }
}

/// Sixteen of a chunk's activations.
#[inline]
#[target_feature(enable = "neon")]
fn half(x: &[i8; CHUNK], index: usize) -> int8x16_t {
    let bytes = &x.as_chunks::<16>().0[index];
    // SAFETY: sixteen bytes to read, of any alignment.
    #[expect(unsafe_code, reason = "a load from memory")]
    unsafe {
        vld1q_s8(bytes.as_ptr())
    }
}

/// Columns `8·eight..8·eight + 8` of two tokens.
#[inline]
#[target_feature(enable = "neon")]
fn eight_of_two(x: &[i8; CHUNK], y: &[i8; CHUNK], eight: usize) -> int8x16_t {
    let (x, y) = (vreinterpretq_s64_s8(half(x, eight / 2)), vreinterpretq_s64_s8(half(y, eight / 2)));
    vreinterpretq_s8_s64(if eight.is_multiple_of(2) { vzip1q_s64(x, y) } else { vzip2q_s64(x, y) })
}

/// Four columns of four rows and the next four, as eight columns of the first two rows.
#[inline]
#[target_feature(enable = "neon")]
fn zip_lower(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)))
}

/// Four columns of four rows and the next four, as eight columns of the last two rows.
#[inline]
#[target_feature(enable = "neon")]
fn zip_upper(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)))
}

/// Bytes shifted right by a number below 8 that the compiler knows.
#[inline]
#[target_feature(enable = "neon")]
fn down(bytes: uint8x16_t, by: u32) -> uint8x16_t {
    vshlq_u8(bytes, vdupq_n_s8(-(by as i8)))
}

/// Bit `i` of each byte as the third bit of a code.
#[inline]
#[target_feature(enable = "neon")]
fn third_bit(bytes: uint8x16_t, i: usize) -> uint8x16_t {
    vandq_u8(vshlq_u8(bytes, vdupq_n_s8(2 - i as i8)), vdupq_n_u8(4))
}

/// The `BITS` bits of each 32 that begin at bit `first`, an even number that the compiler knows, as a float.
#[inline]
#[target_feature(enable = "neon")]
fn field<const BITS: usize>(bytes: uint8x16_t, first: u32) -> float32x4_t {
    let code = vandq_u32(vreinterpretq_u32_u8(bytes), vdupq_n_u32(((1 << BITS) - 1) << first));
    macro_rules! convert {
        ($($first:literal)*) => {
            match first {
                $($first => vcvtq_n_f32_u32::<$first>(code),)*
                _ => vcvtq_f32_u32(code),
            }
        };
    }
    convert!(2 4 6 8 10 12 14 16 18 20 22 24 26 28 30)
}

//! AVX-512 with VNNI: sixteen rows in one register, four products of each and their sum in one instruction.
//!
//! Codes of up to four bits become floats by one permutation: its index is the low four bits of a lane, so that bits above
//! a code need no mask but only a table that repeats.

use std::arch::x86_64::*;

use super::super::PANEL;
use super::super::lanes::{Chunk, Lanes, Line, place};
use super::super::tokens::CHUNK;
use super::proven;
use crate::ScaleType;

/// Proof of AVX-512 F, BW and VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Avx512(());

impl Avx512 {
    /// The proof, where there is one.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni");
        has.then_some(Self(()))
    }

    #[inline(always)]
    fn load(self, line: &[u8; 64]) -> __m512i {
        proven!(self, _mm512_loadu_si512(line.as_ptr().cast()))
    }

    /// The line moved down by `shift` bits within pairs of bytes.
    #[inline(always)]
    fn shifted(self, line: &[u8; 64], shift: u32) -> __m512i {
        let all = self.load(line);
        proven!(self, if shift == 0 { all } else { _mm512_srl_epi16(all, _mm_cvtsi32_si128(shift as i32)) })
    }

    /// The line moved down by `shift` bits within each lane.
    #[inline(always)]
    fn lane_shifted(self, line: &[u8; 64], shift: u32) -> __m512i {
        let all = self.load(line);
        proven!(self, if shift == 0 { all } else { _mm512_srl_epi32(all, _mm_cvtsi32_si128(shift as i32)) })
    }
}

impl Lanes for Avx512 {
    type Codes = __m512i;
    type Partial = __m512i;
    type Ints = __m512i;
    type Floats = __m512;
    type Table = __m512;

    const INT8_TOKENS: usize = 8;
    const FLOAT_TOKENS: usize = 8;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        proven!(self, run(f))
    }

    #[inline(always)]
    fn prefetch(self, address: *const Line) {
        // Into the second level: what is asked for into the first takes one of its few places for misses all the way.
        proven!(self, _mm_prefetch::<_MM_HINT_T1>(address.cast()));
    }

    #[inline(always)]
    fn codes<const BITS: usize, const I: usize>(self, chunk: &Chunk<BITS>) -> Self::Codes {
        let (line, shift) = place(BITS, I);
        let low = self.shifted(&chunk[line].0, shift);
        proven!(
            self,
            match BITS {
                8 => low,
                4 => _mm512_and_si512(low, _mm512_set1_epi8(15)),
                2 => _mm512_and_si512(low, _mm512_set1_epi8(3)),
                _ => {
                    let third = self.shifted(&chunk[2].0, I as u32);
                    let third = _mm512_slli_epi16::<2>(_mm512_and_si512(third, _mm512_set1_epi8(1)));
                    // third | (low & 3)
                    _mm512_ternarylogic_epi32::<0xf8>(third, low, _mm512_set1_epi8(3))
                }
            }
        )
    }

    #[inline(always)]
    fn offset<const BITS: usize>() -> i32 {
        0
    }

    #[inline(always)]
    fn none(self) -> Self::Partial {
        self.int(0)
    }

    #[inline(always)]
    fn dot<const BITS: usize, const I: usize>(
        self,
        partial: Self::Partial,
        codes: Self::Codes,
        x: &[i8; CHUNK],
    ) -> Self::Partial {
        let x = x.as_chunks::<4>().0[I];
        proven!(self, {
            let x = _mm512_set1_epi32(i32::from_le_bytes(x.map(i8::cast_unsigned)));
            _mm512_dpbusd_epi32(partial, codes, x)
        })
    }

    #[inline(always)]
    fn widen<const BITS: usize>(self, ints: Self::Ints, partial: Self::Partial) -> Self::Ints {
        proven!(self, _mm512_add_epi32(ints, partial))
    }

    #[inline(always)]
    fn int(self, value: i32) -> Self::Ints {
        proven!(self, _mm512_set1_epi32(value))
    }

    #[inline(always)]
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        proven!(self, _mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        proven!(self, _mm512_cvtepi32_ps(ints))
    }

    #[inline(always)]
    fn table<const BITS: usize>(self, zero: i32) -> __m512 {
        let codes = 1 << BITS.min(4);
        let mut values = [0.0; 16];
        for (index, value) in values.iter_mut().enumerate() {
            *value = (index as i32 % codes - zero) as f32;
        }
        proven!(self, _mm512_loadu_ps(values.as_ptr()))
    }

    #[inline(always)]
    fn centers<const BITS: usize>() -> bool {
        BITS != 8
    }

    #[inline(always)]
    fn weights<const BITS: usize, const I: usize, const J: usize>(
        self,
        table: __m512,
        chunk: &Chunk<BITS>,
    ) -> Self::Floats {
        let (line, shift) = place(BITS, I);
        let low = self.lane_shifted(&chunk[line].0, shift + 8 * J as u32);
        match BITS {
            8 => proven!(self, {
                let code = if J == 3 { low } else { _mm512_and_si512(low, _mm512_set1_epi32(255)) };
                _mm512_cvtepi32_ps(code)
            }),
            3 => {
                // The third bit is moved to its place above the other two.
                let bit = (I + 8 * J) as i32;
                let all = self.load(&chunk[2].0);
                proven!(self, {
                    let third = if bit < 2 {
                        _mm512_sll_epi32(all, _mm_cvtsi32_si128(2 - bit))
                    } else {
                        _mm512_srl_epi32(all, _mm_cvtsi32_si128(bit - 2))
                    };
                    // third where the mask of 4 says so, else low
                    let code = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi32(4), third, low);
                    _mm512_permutexvar_ps(code, table)
                })
            }
            _ => proven!(self, _mm512_permutexvar_ps(low, table)),
        }
    }

    #[inline(always)]
    fn scales(self, stored: &[[u8; 2]; PANEL], kind: ScaleType) -> Self::Floats {
        proven!(self, {
            let all = _mm256_loadu_si256(stored.as_ptr().cast());
            match kind {
                ScaleType::F16 => _mm512_cvtph_ps(all),
                ScaleType::BF16 => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(all))),
            }
        })
    }

    #[inline(always)]
    fn float(self, value: f32) -> Self::Floats {
        proven!(self, _mm512_set1_ps(value))
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        proven!(self, _mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        proven!(self, _mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        proven!(self, _mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn store(self, floats: Self::Floats) -> [f32; PANEL] {
        let mut out = [0.0; PANEL];
        proven!(self, _mm512_storeu_ps(out.as_mut_ptr(), floats));
        out
    }
}

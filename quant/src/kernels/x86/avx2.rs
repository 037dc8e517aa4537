//! AVX2 with FMA and F16C: what x86-64 processors have had since 2013.
//!
//! Products of codes of up to four bits are summed in 16 bits over a chunk: 8 sums of pairs, of at most 2·15·128 = 3,840
//! each, stay below 2^15. Codes of eight bits are made signed first, and |code| is multiplied with ±x: pairs are at most
//! 2·128·127 = 32,512 (an x of −128 doesn't occur), and are widened at once.

use std::arch::x86_64::*;

use super::super::PANEL;
use super::super::lanes::{Chunk, Lanes, Line, low_bits, place};
use super::super::tokens::CHUNK;
use super::proven;
use crate::ScaleType;

/// Proof of AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Avx2(());

impl Avx2 {
    /// The proof, where there is one.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }

    /// The line's bytes from `32·half` on, moved down by `shift` bits within pairs of bytes.
    #[inline(always)]
    fn shifted(self, line: &[u8; 64], half: usize, shift: u32) -> __m256i {
        let bytes = &line.as_chunks::<32>().0[half];
        proven!(self, {
            let all = _mm256_loadu_si256(bytes.as_ptr().cast());
            if shift == 0 { all } else { _mm256_srl_epi16(all, _mm_cvtsi32_si128(shift as i32)) }
        })
    }

    #[inline(always)]
    fn half_codes<const BITS: usize, const I: usize>(self, chunk: &Chunk<BITS>, half: usize) -> __m256i {
        let (line, shift) = place(BITS, I);
        let low = self.shifted(&chunk[line].0, half, shift);
        proven!(
            self,
            match BITS {
                8 => low,
                4 => _mm256_and_si256(low, _mm256_set1_epi8(15)),
                2 => _mm256_and_si256(low, _mm256_set1_epi8(3)),
                _ => {
                    let third = self.shifted(&chunk[2].0, half, I as u32);
                    let third = _mm256_and_si256(third, _mm256_set1_epi8(1));
                    let low = _mm256_and_si256(low, _mm256_set1_epi8(3));
                    _mm256_or_si256(low, _mm256_slli_epi16::<2>(third))
                }
            }
        )
    }

    #[inline(always)]
    fn half_weights<const BITS: usize, const I: usize, const J: usize>(
        self,
        chunk: &Chunk<BITS>,
        half: usize,
    ) -> __m256 {
        let (line, shift) = place(BITS, I);
        let low = self.field(&chunk[line].0, half, shift + 8 * J as u32, (1 << low_bits(BITS)) - 1);
        let third = if BITS == 3 { self.field(&chunk[2].0, half, (I + 8 * J) as u32, 1) } else { low };
        proven!(self, {
            let code = if BITS == 3 { _mm256_or_si256(low, _mm256_slli_epi32::<2>(third)) } else { low };
            _mm256_cvtepi32_ps(code)
        })
    }

    /// The bits of `mask` of each 32-bit lane, after moving it down by `shift`.
    #[inline(always)]
    fn field(self, line: &[u8; 64], half: usize, shift: u32, mask: i32) -> __m256i {
        let all = self.shifted(line, half, 0);
        proven!(self, {
            let moved = _mm256_srl_epi32(all, _mm_cvtsi32_si128(shift as i32));
            if shift + mask.count_ones() == 32 {
                moved
            } else {
                _mm256_and_si256(moved, _mm256_set1_epi32(mask))
            }
        })
    }

    /// Pairs of products of a half, in 16 bits.
    #[inline(always)]
    fn pairs<const BITS: usize>(self, codes: __m256i, x: __m256i) -> __m256i {
        proven!(
            self,
            if BITS == 8 {
                let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
            } else {
                _mm256_maddubs_epi16(codes, x)
            }
        )
    }

    /// Sums of neighbours, in 32 bits.
    #[inline(always)]
    fn wide(self, pairs: __m256i) -> __m256i {
        proven!(self, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }

    /// Activations `4·i..4·i + 4` in each lane.
    #[inline(always)]
    pub fn four(self, x: &[i8; CHUNK], i: usize) -> __m256i {
        let x = x.as_chunks::<4>().0[i];
        proven!(self, _mm256_set1_epi32(i32::from_le_bytes(x.map(i8::cast_unsigned))))
    }
}

impl Lanes for Avx2 {
    type Codes = [__m256i; 2];
    /// Pairs in 16 bits, or (8-bit codes) sums in 32.
    type Partial = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];
    type Table = ();

    const INT8_TOKENS: usize = 4;
    const FLOAT_TOKENS: usize = 4;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma,f16c")]
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
        [self.half_codes::<BITS, I>(chunk, 0), self.half_codes::<BITS, I>(chunk, 1)]
    }

    #[inline(always)]
    fn offset<const BITS: usize>() -> i32 {
        if BITS == 8 { 128 } else { 0 }
    }

    #[inline(always)]
    fn none(self) -> Self::Partial {
        self.int(0)
    }

    #[inline(always)]
    fn dot<const BITS: usize, const I: usize>(
        self,
        [a, b]: Self::Partial,
        codes: Self::Codes,
        x: &[i8; CHUNK],
    ) -> Self::Partial {
        let x = self.four(x, I);
        let [low, high] = [self.pairs::<BITS>(codes[0], x), self.pairs::<BITS>(codes[1], x)];
        if BITS == 8 {
            let (low, high) = (self.wide(low), self.wide(high));
            proven!(self, [_mm256_add_epi32(a, low), _mm256_add_epi32(b, high)])
        } else {
            proven!(self, [_mm256_add_epi16(a, low), _mm256_add_epi16(b, high)])
        }
    }

    #[inline(always)]
    fn widen<const BITS: usize>(self, ints: Self::Ints, [mut a, mut b]: Self::Partial) -> Self::Ints {
        if BITS != 8 {
            (a, b) = (self.wide(a), self.wide(b));
        }
        self.add_ints(ints, [a, b])
    }

    #[inline(always)]
    fn int(self, value: i32) -> Self::Ints {
        proven!(self, [_mm256_set1_epi32(value); 2])
    }

    #[inline(always)]
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        proven!(self, [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
    }

    #[inline(always)]
    fn to_floats(self, [a, b]: Self::Ints) -> Self::Floats {
        proven!(self, [_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)])
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
        [self.half_weights::<BITS, I, J>(chunk, 0), self.half_weights::<BITS, I, J>(chunk, 1)]
    }

    #[inline(always)]
    fn scales(self, stored: &[[u8; 2]; PANEL], kind: ScaleType) -> Self::Floats {
        let [a, b] = proven!(self, {
            let all = _mm256_loadu_si256(stored.as_ptr().cast());
            [_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all)]
        });
        match kind {
            ScaleType::F16 => proven!(self, [_mm256_cvtph_ps(a), _mm256_cvtph_ps(b)]),
            ScaleType::BF16 => {
                let (a, b) = proven!(self, (_mm256_cvtepu16_epi32(a), _mm256_cvtepu16_epi32(b)));
                let (a, b) = proven!(self, (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b)));
                proven!(self, [_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)])
            }
        }
    }

    #[inline(always)]
    fn float(self, value: f32) -> Self::Floats {
        proven!(self, [_mm256_set1_ps(value); 2])
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        proven!(self, [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        proven!(self, [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        proven!(self, [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn store(self, [a, b]: Self::Floats) -> [f32; PANEL] {
        let mut out = [[0f32; 8]; 2];
        proven!(self, {
            _mm256_storeu_ps(out[0].as_mut_ptr(), a);
            _mm256_storeu_ps(out[1].as_mut_ptr(), b);
        });
        let mut all = [0.0; PANEL];
        all.copy_from_slice(out.as_flattened());
        all
    }
}

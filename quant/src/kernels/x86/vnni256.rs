//! Four products and their sum in one instruction on 256-bit registers, for processors without the 512-bit ones
//! (Intel's since 2021, AMD's since 2024). All but that instruction is AVX2's.
//!
//! The instruction has two encodings, that of AVX-VNNI and that of AVX-512 VNNI with VL; the code around them is the same,
//! so that a processor with either tests the tier.

use std::arch::x86_64::*;

use super::super::PANEL;
use super::super::lanes::{Chunk, Lanes, Line};
use super::super::tokens::CHUNK;
use super::{Avx2, proven};
use crate::ScaleType;

/// An encoding of the instruction.
pub(in super::super) trait Encoding: Copy {
    /// The proof, where there is one.
    fn detect() -> Option<Self>;
    /// Runs `f` with the instruction's features and AVX2's.
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R;
    /// `sum + Σⱼ codesⱼ·xⱼ` in each 32-bit lane, codes unsigned, exact (it wraps, and doesn't saturate).
    fn dot(self, sum: __m256i, codes: __m256i, x: __m256i) -> __m256i;
}

/// Proof of AVX-VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct AvxVnni(());

impl Encoding for AvxVnni {
    fn detect() -> Option<Self> {
        is_x86_feature_detected!("avxvnni").then_some(Self(()))
    }

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        proven!(self, run(f))
    }

    #[inline(always)]
    fn dot(self, sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        proven!(self, _mm256_dpbusd_avx_epi32(sum, codes, x))
    }
}

/// Proof of AVX-512 VNNI with VL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Avx512Vl(());

impl Encoding for Avx512Vl {
    fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
        has.then_some(Self(()))
    }

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512vnni")]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        proven!(self, run(f))
    }

    #[inline(always)]
    fn dot(self, sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        proven!(self, _mm256_dpbusd_epi32(sum, codes, x))
    }
}

/// AVX2 with the instruction in the encoding `E`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Vnni256<E> {
    avx2: Avx2,
    encoding: E,
}

impl<E: Encoding> Vnni256<E> {
    /// The proof, where there is one.
    pub fn detect() -> Option<Self> {
        Some(Self { avx2: Avx2::detect()?, encoding: E::detect()? })
    }
}

impl<E: Encoding> Lanes for Vnni256<E> {
    type Codes = <Avx2 as Lanes>::Codes;
    type Partial = [__m256i; 2];
    type Ints = <Avx2 as Lanes>::Ints;
    type Floats = <Avx2 as Lanes>::Floats;
    type Table = ();

    const INT8_TOKENS: usize = 4;
    const FLOAT_TOKENS: usize = Avx2::FLOAT_TOKENS;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        self.encoding.vectorize(f)
    }

    #[inline(always)]
    fn prefetch(self, address: *const Line) {
        self.avx2.prefetch(address);
    }

    #[inline(always)]
    fn codes<const BITS: usize, const I: usize>(self, chunk: &Chunk<BITS>) -> Self::Codes {
        self.avx2.codes::<BITS, I>(chunk)
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
        [a, b]: Self::Partial,
        codes: Self::Codes,
        x: &[i8; CHUNK],
    ) -> Self::Partial {
        let x = self.avx2.four(x, I);
        [self.encoding.dot(a, codes[0], x), self.encoding.dot(b, codes[1], x)]
    }

    #[inline(always)]
    fn widen<const BITS: usize>(self, ints: Self::Ints, sums: Self::Partial) -> Self::Ints {
        self.avx2.add_ints(ints, sums)
    }

    #[inline(always)]
    fn int(self, value: i32) -> Self::Ints {
        self.avx2.int(value)
    }

    #[inline(always)]
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        self.avx2.add_ints(a, b)
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        self.avx2.to_floats(ints)
    }

    #[inline(always)]
    fn table<const BITS: usize>(self, _zero: i32) {}

    #[inline(always)]
    fn centers<const BITS: usize>() -> bool {
        Avx2::centers::<BITS>()
    }

    #[inline(always)]
    fn weights<const BITS: usize, const I: usize, const J: usize>(
        self,
        (): (),
        chunk: &Chunk<BITS>,
    ) -> Self::Floats {
        self.avx2.weights::<BITS, I, J>((), chunk)
    }

    #[inline(always)]
    fn scales(self, stored: &[[u8; 2]; PANEL], kind: ScaleType) -> Self::Floats {
        self.avx2.scales(stored, kind)
    }

    #[inline(always)]
    fn float(self, value: f32) -> Self::Floats {
        self.avx2.float(value)
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        self.avx2.add(a, b)
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        self.avx2.mul(a, b)
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        self.avx2.mul_add(a, b, c)
    }

    #[inline(always)]
    fn store(self, floats: Self::Floats) -> [f32; PANEL] {
        self.avx2.store(floats)
    }
}

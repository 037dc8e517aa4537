//! What a tier of instructions gives the products: sixteen rows side by side in the lanes of its registers.
//!
//! Knows no formats, matrices or tokens. A value of an implementing type proves that the running processor executes
//! the tier's instructions: only detection makes one. Invariant: everything on integers is exact and `mul_add` rounds
//! once, so that tiers agree to the bit in whatever uses only those; [`Lanes::accumulate`] alone may differ.

use super::PANEL;
use super::tokens::CHUNK;
use crate::ScaleType;

/// Repeats a block for each literal, with the constant `$i` bound to it.
macro_rules! unroll {
    ($i:ident in [$($n:literal)*] $body:block) => { $({ const $i: usize = $n; $body })* };
}
#[cfg(target_arch = "aarch64")]
pub(super) use unroll;

/// An expression of a tier's intrinsics, for which a value of the tier is shown.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! proven {
    ($tier:expr, $intrinsics:expr) => {{
        let _: Self = $tier;
        #[expect(unsafe_code, reason = "intrinsics are unsafe to call from code compiled without their features")]
        #[allow(clippy::macro_metavars_in_unsafe, reason = "that is what the macro is for")]
        // SAFETY: the value shows that the processor has the instructions. Loads and stores go through references to
        // arrays of the size that they touch, and are of the kinds that need no alignment; a prefetch touches nothing.
        unsafe {
            $intrinsics
        }
    }};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use proven;

/// Sixty-four bytes of codes, aligned as the widest register is.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u8; 64]);

/// The codes of one chunk of a panel: 16 rows of 32 columns in `BITS` lines, see [`super::Panels`].
pub(super) type Chunk<const BITS: usize> = [Line; BITS];

/// The sixteen lanes of a tier. `BITS` is the width of a code: 2, 3, 4 or 8.
pub(super) trait Lanes: Copy {
    /// 4 codes of each row, a byte each.
    type Codes: Copy;
    /// A running sum of [`Self::dot`]s, in whatever form holds those of a chunk without overflow.
    type Partial: Copy;
    /// An i32 for each row.
    type Ints: Copy;
    /// An f32 for each row.
    type Floats: Copy;
    /// What [`Self::weights`] looks codes up in.
    type Table: Copy;

    /// Tokens of a block in an int8 product, at most 8.
    const INT8_TOKENS: usize;
    /// Tokens of a block in a float product, at most 8.
    const FLOAT_TOKENS: usize;

    /// Runs `f` compiled with the tier's instructions; `f` must be `#[inline(always)]` throughout.
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R;

    /// Asks for the cache line at `address`, which is not read and may lie anywhere, to be on its way from memory.
    #[inline(always)]
    fn prefetch(self, address: *const Line) {
        let _ = address;
    }

    /// Codes of the columns `4·I..4·I + 4` of a chunk.
    fn codes<const BITS: usize, const I: usize>(self, chunk: &Chunk<BITS>) -> Self::Codes;

    /// What [`Self::dot`] takes off every code: 0 where codes are unsigned to the tier, 128 where 8-bit ones are signed.
    fn offset<const BITS: usize>() -> i32;

    /// The sum of nothing.
    fn none(self) -> Self::Partial;

    /// `partial + Σⱼ (codesⱼ − offset)·xⱼ` in each row, for the columns `4·I..4·I + 4` of a chunk.
    fn dot<const BITS: usize, const I: usize>(
        self,
        partial: Self::Partial,
        codes: Self::Codes,
        x: &[i8; CHUNK],
    ) -> Self::Partial;

    /// `ints + partial`.
    fn widen<const BITS: usize>(self, ints: Self::Ints, partial: Self::Partial) -> Self::Ints;

    /// `ints + Σ (codes − offset)·x` over a chunk, in each row for each token.
    #[inline(always)]
    fn multiply<const BITS: usize, const T: usize>(
        self,
        mut ints: [Self::Ints; T],
        chunk: &Chunk<BITS>,
        x: [&[i8; CHUNK]; T],
    ) -> [Self::Ints; T] {
        let mut partial = [self.none(); T];
        unroll!(I in [0 1 2 3 4 5 6 7] {
            let codes = self.codes::<BITS, I>(chunk);
            for t in 0..T {
                partial[t] = self.dot::<BITS, I>(partial[t], codes, x[t]);
            }
        });
        for t in 0..T {
            ints[t] = self.widen::<BITS>(ints[t], partial[t]);
        }
        ints
    }

    /// The same integer for each row.
    fn int(self, value: i32) -> Self::Ints;

    /// `a + b`.
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    /// The nearest floats.
    fn to_floats(self, ints: Self::Ints) -> Self::Floats;

    /// A table for codes of `BITS` bits of which `zero` stands for 0.
    fn table<const BITS: usize>(self, zero: i32) -> Self::Table;

    /// Whether [`Self::weights`] has taken the zero point off.
    fn centers<const BITS: usize>() -> bool;

    /// The codes of column `4·I + J` as floats, from which the zero point has been taken off if [`Self::centers`].
    fn weights<const BITS: usize, const I: usize, const J: usize>(
        self,
        table: Self::Table,
        chunk: &Chunk<BITS>,
    ) -> Self::Floats;

    /// `sums + Σ weights·x` over a chunk, in each row for each token: two chains of products, those of even columns and
    /// of odd ones, are added together and then to the sum.
    #[inline(always)]
    fn multiply_floats<const BITS: usize, const T: usize>(
        self,
        table: Self::Table,
        mut sums: [Self::Floats; T],
        chunk: &Chunk<BITS>,
        x: [&[f32; CHUNK]; T],
    ) -> [Self::Floats; T] {
        let mut chains = [[self.float(0.0); T]; 2];
        unroll!(I in [0 1 2 3 4 5 6 7] {
            unroll!(J in [0 1 2 3] {
                let weights = self.weights::<BITS, I, J>(table, chunk);
                for t in 0..T {
                    let chain = &mut chains[J % 2][t];
                    *chain = self.accumulate(weights, self.float(x[t][4 * I + J]), *chain);
                }
            });
        });
        for t in 0..T {
            sums[t] = self.add(sums[t], self.add(chains[0][t], chains[1][t]));
        }
        sums
    }

    /// Sixteen stored scales, one for each row.
    fn scales(self, stored: &[[u8; 2]; PANEL], kind: ScaleType) -> Self::Floats;

    /// The same float for each row.
    fn float(self, value: f32) -> Self::Floats;

    /// `a + b`.
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// `a·b`.
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// `a·b + c`, rounded once.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// `a·b + c`, rounded once where that is one instruction, else twice.
    #[inline(always)]
    fn accumulate(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        self.mul_add(a, b, c)
    }

    /// The lanes in order.
    fn store(self, floats: Self::Floats) -> [f32; PANEL];
}

/// Bits of the part of a code that lies in the first lines of a chunk; a three-bit code has its third bit in the last.
pub(super) const fn low_bits(bits: usize) -> usize {
    if bits == 3 { 2 } else { bits }
}

/// The line of a chunk that holds the low bits of the codes of columns `4·i..4·i + 4`, and how far up in each byte.
pub(super) const fn place(bits: usize, i: usize) -> (usize, u32) {
    let low = low_bits(bits);
    let in_a_byte = 8 / low;
    (i / in_a_byte, ((i % in_a_byte) * low) as u32)
}

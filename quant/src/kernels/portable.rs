//! The specification of the products: plain loops over sixteen rows, with no instruction that some processor lacks.

use super::PANEL;
use super::lanes::{Chunk, Four, Lanes, low_bits, place};
use crate::ScaleType;

/// What every processor executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portable;

/// Codes in pairs of columns: the lower byte of lane `2·row` is column 0, its upper byte column 1; `2·row + 1` goes on
/// with 2 and 3.
type Pairs = [u16; 2 * PANEL];

/// A running sum. Codes of up to four bits leave room for a whole chunk in 16 bits: at most 8·2·15·128 = 30,720.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    narrow: [i16; 2 * PANEL],
    /// Of 8-bit codes.
    wide: [i32; 2 * PANEL],
}

impl Portable {
    /// The codes of four columns in each row, a byte each.
    #[inline(always)]
    fn bytes<const BITS: usize, const I: usize>(self, chunk: &Chunk<BITS>) -> [u8; 4 * PANEL] {
        let (line, shift) = place(BITS, I);
        let mask = ((1u32 << low_bits(BITS)) - 1) as u8;
        let low = &chunk[line].0;
        if BITS != 3 {
            return std::array::from_fn(
                #[inline(always)]
                |at| low[at] >> shift & mask,
            );
        }
        let third = &chunk[2].0;
        std::array::from_fn(
            #[inline(always)]
            |at| low[at] >> shift & mask | (third[at] >> I & 1) << 2,
        )
    }
}

impl Lanes for Portable {
    type Codes = Pairs;
    type Partial = Sums;
    type Ints = [i32; PANEL];
    type Floats = [f32; PANEL];
    type Table = f32;

    const INT8_TOKENS: usize = 4;
    const FLOAT_TOKENS: usize = 4;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    #[inline(always)]
    fn codes<const BITS: usize, const I: usize>(self, chunk: &Chunk<BITS>) -> Self::Codes {
        let bytes = self.bytes::<BITS, I>(chunk);
        let pairs = bytes.as_chunks::<2>().0;
        std::array::from_fn(
            #[inline(always)]
            |at| u16::from_le_bytes(pairs[at]),
        )
    }

    #[inline(always)]
    fn offset<const BITS: usize>() -> i32 {
        0
    }

    #[inline(always)]
    fn none(self) -> Self::Partial {
        Sums { narrow: [0; 2 * PANEL], wide: [0; 2 * PANEL] }
    }

    #[inline(always)]
    fn dot<const BITS: usize>(self, mut sums: Self::Partial, codes: Self::Codes, x: Four) -> Self::Partial {
        let x = x.map(i16::from);
        let products: [[i16; 2]; 2 * PANEL] = std::array::from_fn(
            #[inline(always)]
            |at| {
                let second = at % 2 * 2;
                [(codes[at] & 0xff) as i16 * x[second], (codes[at] >> 8) as i16 * x[second + 1]]
            },
        );
        for (at, [a, b]) in products.into_iter().enumerate() {
            if BITS == 8 {
                sums.wide[at] += i32::from(a) + i32::from(b);
            } else {
                sums.narrow[at] += a + b;
            }
        }
        sums
    }

    #[inline(always)]
    fn widen<const BITS: usize>(self, ints: Self::Ints, partial: Self::Partial) -> Self::Ints {
        std::array::from_fn(
            #[inline(always)]
            |row| {
                let [a, b] = [2 * row, 2 * row + 1];
                let sum = match BITS {
                    8 => partial.wide[a] + partial.wide[b],
                    _ => i32::from(partial.narrow[a]) + i32::from(partial.narrow[b]),
                };
                ints[row] + sum
            },
        )
    }

    #[inline(always)]
    fn int(self, value: i32) -> Self::Ints {
        [value; PANEL]
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        ints.map(
            #[inline(always)]
            |int| int as f32,
        )
    }

    #[inline(always)]
    fn table<const BITS: usize>(self, zero: i32) -> f32 {
        zero as f32
    }

    #[inline(always)]
    fn centers<const BITS: usize>() -> bool {
        true
    }

    #[inline(always)]
    fn weights<const BITS: usize, const I: usize, const J: usize>(
        self,
        zero: f32,
        chunk: &Chunk<BITS>,
    ) -> Self::Floats {
        let bytes = self.bytes::<BITS, I>(chunk);
        std::array::from_fn(
            #[inline(always)]
            |row| f32::from(bytes[4 * row + J]) - zero,
        )
    }

    #[inline(always)]
    fn scales(self, stored: &[[u8; 2]; PANEL], kind: ScaleType) -> Self::Floats {
        stored.map(
            #[inline(always)]
            |bytes| kind.read(bytes),
        )
    }

    #[inline(always)]
    fn float(self, value: f32) -> Self::Floats {
        [value; PANEL]
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(
            #[inline(always)]
            |row| a[row] + b[row],
        )
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(
            #[inline(always)]
            |row| a[row] * b[row],
        )
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(
            #[inline(always)]
            |row| a[row].mul_add(b[row], c[row]),
        )
    }

    /// Rounded twice: without the instruction, rounding once is a call for every lane.
    #[inline(always)]
    fn accumulate(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn store(self, floats: Self::Floats) -> [f32; PANEL] {
        floats
    }
}

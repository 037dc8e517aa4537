//! The specification of the products: plain loops over sixteen rows, with no instruction that some processor lacks.

use super::PANEL;
use super::lanes::{Chunk, Lanes, low_bits, place};
use super::tokens::CHUNK;
use crate::ScaleType;

/// What every processor executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portable;

/// An i16 for each two columns of a row.
type Halves = [i16; 2 * PANEL];

/// The codes of four columns: those of columns 0 and 2 of each row, then those of 1 and 3.
#[derive(Clone, Copy)]
pub(super) struct Codes {
    even: Halves,
    odd: Halves,
}

/// A running sum. Codes of up to four bits leave room for a whole chunk in 16 bits: at most 8·2·15·128 = 30,720.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    narrow: Halves,
    /// Of 8-bit codes.
    wide: [i32; 2 * PANEL],
}

/// A lane's value for each half.
#[inline(always)]
fn halves(value: impl Fn(usize) -> i16) -> Halves {
    std::array::from_fn(value)
}

/// Two activations in turn.
#[inline(always)]
fn alternate(first: i16, second: i16) -> Halves {
    halves(
        #[inline(always)]
        |at| if at % 2 == 0 { first } else { second },
    )
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
    type Codes = Codes;
    type Partial = Sums;
    type Ints = [i32; PANEL];
    type Floats = [f32; PANEL];
    type Table = f32;

    const INT8_TOKENS: usize = 4;
    const FLOAT_TOKENS: usize = 8;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    #[inline(always)]
    fn codes<const BITS: usize, const I: usize>(self, chunk: &Chunk<BITS>) -> Self::Codes {
        let bytes = self.bytes::<BITS, I>(chunk);
        let pairs = bytes.as_chunks::<2>().0;
        let words: [u16; 2 * PANEL] = std::array::from_fn(
            #[inline(always)]
            |at| u16::from_le_bytes(pairs[at]),
        );
        Codes {
            even: halves(
                #[inline(always)]
                |at| (words[at] & 0xff) as i16,
            ),
            odd: halves(
                #[inline(always)]
                |at| (words[at] >> 8) as i16,
            ),
        }
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
    fn dot<const BITS: usize, const I: usize>(
        self,
        sums: Self::Partial,
        codes: Self::Codes,
        x: &[i8; CHUNK],
    ) -> Self::Partial {
        let [a, b, c, d] = x.as_chunks::<4>().0[I].map(i16::from);
        let (even, odd) = (alternate(a, c), alternate(b, d));
        let (even, odd) = (
            halves(
                #[inline(always)]
                |at| codes.even[at].wrapping_mul(even[at]),
            ),
            halves(
                #[inline(always)]
                |at| codes.odd[at].wrapping_mul(odd[at]),
            ),
        );
        if BITS == 8 {
            let wide = std::array::from_fn(
                #[inline(always)]
                |at| sums.wide[at] + i32::from(even[at]) + i32::from(odd[at]),
            );
            Sums { wide, ..sums }
        } else {
            let narrow = halves(
                #[inline(always)]
                |at| sums.narrow[at].wrapping_add(even[at]).wrapping_add(odd[at]),
            );
            Sums { narrow, ..sums }
        }
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
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        std::array::from_fn(
            #[inline(always)]
            |row| a[row] + b[row],
        )
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

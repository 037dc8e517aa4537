//! The grid of onnxruntime's `MatMulNBits` and `GatherBlockQuantized`, and codes laid out for them.
//!
//! Codes have 4 bits and lie two to a byte, the first in the low half. A row of the matrix is a sequence of blocks with one
//! scale each: value = scale · (code − zero). Both operators read the same bytes, so that a tied embedding is stored once.
//!
//! Codes of 8 bits are split: q = 16 · high + low, each half a matrix of 4 bits with the same scales. onnxruntime has codes
//! of 8 and of 2 bits as well, but multiplies float inputs by them at a thirtieth of the speed of two matrices of 4 bits: it
//! decodes the whole matrix in every call.
//!
//! Knows no file. Invariant: a [`Grid`] holds every value of the format that it is [for](Grid::of), to the bit.

use qat_quant::{Format, PackedRef};
use rayon::prelude::*;

/// Bits of a code.
pub(super) const BITS: usize = 4;
/// What the high half of an 8-bit code is worth.
pub(super) const HIGH: i16 = 16;

/// A grid of onnxruntime's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    /// Columns that share a scale: a power of two from 16 to 256.
    pub block: usize,
    /// Codes of 8 bits, in two halves.
    pub halves: bool,
}

/// Which part of the codes a matrix of 4 bits holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of them, from −8 to 7, with their zero at 8: the operators' default.
    Whole,
    /// What is left of 8 bits when divided by 16, from −8 to 7, with its zero at 8.
    High,
    /// The rest, from 0 to 15, with its zero at 0.
    Low,
}

impl Grid {
    /// The grid that holds rows of `cols` in `format`, if there is one.
    pub fn of(format: Format, cols: usize) -> Option<Self> {
        match format {
            Format::Int4G32 => Some(Self { block: 32, halves: false }),
            Format::Int8G32 => Some(Self { block: 32, halves: true }),
            Format::TernaryG64 => Some(Self { block: 64, halves: false }),
            Format::TernaryG256 => Some(Self { block: 256, halves: false }),
            // The one scale is repeated for each block.
            Format::TernaryTensor => {
                let block = [256, 128, 64, 32, 16].into_iter().find(|block| cols.is_multiple_of(*block))?;
                Some(Self { block, halves: false })
            }
            // A bias is no multiple of its scale.
            Format::Affine(_) => None,
        }
    }

    /// The scales of a matrix, `[rows, cols / block]`.
    pub fn scales(self, matrix: PackedRef<'_>) -> Vec<f32> {
        match matrix.tensor_scale() {
            Some(scale) => vec![scale; matrix.rows() * matrix.cols() / self.block],
            None => matrix.scales().scale,
        }
    }
}

impl Part {
    /// The codes of a matrix, `[rows, cols / 2]`.
    pub fn of(self, matrix: PackedRef<'_>) -> Vec<u8> {
        let cols = matrix.cols();
        let mut bytes = vec![0; matrix.rows() * cols / 2];
        bytes.par_chunks_mut(cols / 2).enumerate().for_each_init(
            || vec![0; cols],
            |codes, (row, out)| {
                matrix.codes_row(row, codes);
                for (byte, [first, second]) in out.iter_mut().zip(codes.as_chunks().0) {
                    *byte = self.code(*first) | self.code(*second) << BITS;
                }
            },
        );
        bytes
    }

    /// The unsigned code that stands for `code`, one of −8 to 7 for the whole, and of −128 to 127 for a half.
    fn code(self, code: i16) -> u8 {
        let unsigned = match self {
            Self::Whole => code + 8,
            Self::High => code.div_euclid(HIGH) + 8,
            Self::Low => code.rem_euclid(HIGH),
        };
        unsigned as u8
    }
}

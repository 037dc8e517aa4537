//! How the matrices of a launch are stored: packed in one of the formats, or as plain floats.
//!
//! Knows the names and constants by which kernels tell them apart, no shapes of launches.

use super::Constant;
use crate::kernels::FloatType;
use crate::{Format, ScaleType};

/// Function constant: weights that share a scale and a bias, read by affine kernels.
pub(super) const GROUP: u16 = 5;
/// Function constant: whether scales and biases are bf16 rather than f16, read by affine kernels.
pub(super) const BF16_SCALES: u16 = 6;

/// How a matrix lies in memory. It begins at a multiple of 4 bytes; its rows follow one another without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Storage {
    /// Blocks of a format.
    Packed(Format),
    /// Plain floats.
    Float(FloatType),
}

impl Storage {
    /// Bytes of a row of `cols` weights, which must fit.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::Packed(format) => format.row_bytes(cols),
            Self::Float(dtype) => cols * dtype.bytes(),
        }
    }

    /// [`Storage::row_bytes`] of rows that kernels can take: they fit, and their bytes can be counted in 32 bits.
    pub(super) fn checked_row_bytes(self, cols: u32) -> u32 {
        assert!(self.fits(cols as usize), "{self:?} has no rows of {cols}");
        let bytes = self.row_bytes(cols as usize);
        assert!(bytes <= u32::MAX as usize, "a row of {bytes} bytes");
        bytes as u32
    }

    /// Whether a row of `cols` weights can be stored so.
    pub fn fits(self, cols: usize) -> bool {
        match self {
            Self::Packed(format) => format.fits(cols),
            Self::Float(_) => cols > 0,
        }
    }

    /// Where the kernels of this storage stand in a list of names; the order is that of [`names!`].
    pub(super) fn kernel(self) -> usize {
        match self {
            Self::Packed(Format::Int4G32) => 0,
            Self::Packed(Format::Int8G32) => 1,
            Self::Packed(Format::Affine(affine)) => match affine.bits() {
                2 => 2,
                3 => 3,
                4 => 4,
                // The only other width that `Affine::new` admits.
                _ => 5,
            },
            Self::Packed(Format::TernaryG64) => 6,
            Self::Packed(Format::TernaryG256) => 7,
            Self::Packed(Format::TernaryTensor) => 8,
            Self::Float(FloatType::F32) => 9,
            Self::Float(FloatType::F16) => 10,
            Self::Float(FloatType::BF16) => 11,
        }
    }

    /// Weights that a thread decodes at a time: `PIECE` of `blocks.metal`.
    pub(super) fn piece(self) -> u32 {
        match self {
            Self::Packed(_) => 16,
            Self::Float(_) => 8,
        }
    }

    /// The constants that the kernels of this storage read.
    pub(super) fn constants(self) -> Vec<(u16, Constant)> {
        match self {
            Self::Packed(Format::Affine(affine)) => vec![
                (GROUP, Constant::U32(affine.group() as u32)),
                (BF16_SCALES, Constant::Bool(affine.scale_type() == ScaleType::BF16)),
            ],
            _ => Vec::new(),
        }
    }
}

/// The kernels of an operation, one for each storage: `matvec_int4_g32` and so on.
macro_rules! names {
    ($operation:literal) => {
        [
            concat!($operation, "_int4_g32"),
            concat!($operation, "_int8_g32"),
            concat!($operation, "_affine2"),
            concat!($operation, "_affine3"),
            concat!($operation, "_affine4"),
            concat!($operation, "_affine8"),
            concat!($operation, "_ternary_g64"),
            concat!($operation, "_ternary_g256"),
            concat!($operation, "_ternary_tensor"),
            concat!($operation, "_f32"),
            concat!($operation, "_f16"),
            concat!($operation, "_bf16"),
        ]
    };
}
pub(super) use names;

//! Blocks of bytes: one file per layout, each with its table. All are little-endian and the same on every machine.
//!
//! A layout stores codes, scale and bias, and knows neither the arithmetic between them (`grid`) nor matrices
//! (`packed`). A block holds exactly one group.

mod affine;
mod bits;
mod q2_0;
mod q4_0;
mod q8_0;
mod tensor_row;
pub mod tq1_0;
mod tq2_0;
mod trits;

pub(crate) use affine::AffineBlock;
pub(crate) use q2_0::Q2_0;
pub(crate) use q4_0::Q4_0;
pub(crate) use q8_0::Q8_0;
pub(crate) use tensor_row::TensorRow;
pub(crate) use tq2_0::Tq2_0;

use crate::ScaleType;

/// A block layout. `block` is always [`Block::bytes`] long, `codes` [`Block::len`]; codes are integral floats.
pub(crate) trait Block: Copy + Send + Sync {
    /// Weights of a block.
    fn len(self) -> usize;
    /// Bytes of a block.
    fn bytes(self) -> usize;
    /// The stored scale and bias, 0 for a grid without bias. Most blocks begin with an f16 scale.
    #[inline(always)]
    fn scale_bias(self, block: &[u8]) -> (f32, f32) {
        (ScaleType::F16.read([block[0], block[1]]), 0.0)
    }
    /// Reads the codes.
    fn codes(self, block: &[u8], codes: &mut [f32]);
    /// Writes a whole block.
    fn write(self, codes: &[f32], scale: f32, bias: f32, block: &mut [u8]);
    /// Whether every code is on the grid, as it must be where every bit pattern is one.
    #[inline(always)]
    fn legal(self, _block: &[u8]) -> bool {
        true
    }
}

/// Runs `$body` with `$block` bound to the layout of `$format`, for rows of `$cols` under `$tensor_scale`.
macro_rules! with_block {
    ($format:expr, $cols:expr, $tensor_scale:expr, $block:ident => $body:expr) => {
        match $format {
            $crate::Format::Int4G32 => {
                let $block = $crate::layout::Q4_0;
                $body
            }
            $crate::Format::Int8G32 => {
                let $block = $crate::layout::Q8_0;
                $body
            }
            $crate::Format::Affine(affine) => match affine.bits() {
                2 => {
                    let $block = $crate::layout::AffineBlock::<2>::new(affine);
                    $body
                }
                3 => {
                    let $block = $crate::layout::AffineBlock::<3>::new(affine);
                    $body
                }
                4 => {
                    let $block = $crate::layout::AffineBlock::<4>::new(affine);
                    $body
                }
                // The only other width that `Affine::new` admits.
                _ => {
                    let $block = $crate::layout::AffineBlock::<8>::new(affine);
                    $body
                }
            },
            $crate::Format::TernaryG64 => {
                let $block = $crate::layout::Q2_0;
                $body
            }
            $crate::Format::TernaryG256 => {
                let $block = $crate::layout::Tq2_0;
                $body
            }
            $crate::Format::TernaryTensor => {
                let $block = $crate::layout::TensorRow { cols: $cols, scale: $tensor_scale };
                $body
            }
        }
    };
}
pub(crate) use with_block;

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::Format;

    /// Puts every byte value at every place of the `codes` range, checks that the block is `legal` exactly when the
    /// byte is, and that reading and writing a legal one gives the same bytes.
    pub(super) fn every_byte_reads_and_writes_back<B: Block>(
        layout: B,
        codes: Range<usize>,
        legal: impl Fn(u8) -> bool,
    ) {
        for place in codes.step_by(if cfg!(miri) { 7 } else { 1 }) {
            // Miri interprets: there, a byte of each kind of bits.
            for byte in (0..=255).step_by(if cfg!(miri) { 51 } else { 1 }) {
                let mut block = vec![0; layout.bytes()];
                block[place] = byte;
                assert_eq!(layout.legal(&block), legal(byte), "byte {byte:#x} at {place}");
                if legal(byte) {
                    let mut read = vec![f32::NAN; layout.len()];
                    layout.codes(&block, &mut read);
                    let (scale, bias) = layout.scale_bias(&block);
                    let mut back = vec![0xaa; layout.bytes()];
                    layout.write(&read, scale, bias, &mut back);
                    assert_eq!(back, block, "byte {byte:#x} at {place}");
                }
            }
        }
    }

    /// Whether a byte is four two-bit codes below 3.
    pub(super) fn four_trits(byte: u8) -> bool {
        (0..4).all(|i| byte >> (2 * i) & 3 != 3)
    }

    #[test]
    fn blocks_are_as_long_as_their_format_says() {
        for format in Format::all() {
            let cols = format.block_len();
            with_block!(format, cols, 1.0, block => {
                assert_eq!((block.len(), block.bytes()), (format.block_len(), format.block_bytes()), "{format}");
            });
        }
    }
}

//! `int8-g32` on disk: 32 weights in 34 bytes, the Q8_0 block of GGUF. Knows no tensors.
//!
//! | bytes | what |
//! |---|---|
//! | 0..2 | scale, f16 |
//! | 2..34 | code of element j, i8; −128 is not on the grid |

use super::Block;
use crate::ScaleType;

/// The Q8_0 block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Q8_0;

impl Block for Q8_0 {
    #[inline(always)]
    fn len(self) -> usize {
        32
    }

    #[inline(always)]
    fn bytes(self) -> usize {
        34
    }

    #[inline(always)]
    fn codes(self, block: &[u8], codes: &mut [f32]) {
        let bytes = block[2..].as_chunks::<8>().0;
        for (codes, bytes) in codes.as_chunks_mut::<8>().0.iter_mut().zip(bytes) {
            *codes = bytes.map(
                #[inline(always)]
                |byte| f32::from(byte.cast_signed()),
            );
        }
    }

    #[inline(always)]
    fn write(self, codes: &[f32], scale: f32, _bias: f32, block: &mut [u8]) {
        block[..2].copy_from_slice(&ScaleType::F16.write(scale));
        for (byte, &code) in block[2..].iter_mut().zip(codes) {
            *byte = (code as i8).cast_unsigned();
        }
    }

    #[inline(always)]
    fn legal(self, block: &[u8]) -> bool {
        !block[2..].contains(&0x80)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_reads_and_writes_back_and_minus_128_is_refused() {
        super::super::tests::every_byte_reads_and_writes_back(Q8_0, 2..34, |byte| byte != 0x80);
    }
}

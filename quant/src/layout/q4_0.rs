//! `int4-g32` on disk: 32 weights in 18 bytes, the Q4_0 block of GGUF. Knows no tensors.
//!
//! | bytes | what |
//! |---|---|
//! | 0..2 | scale, f16, either sign |
//! | 2..18 | byte j: low nibble is element j, high nibble is element j + 16; nibble = code + 8 |

use super::Block;
use crate::ScaleType;

/// The Q4_0 block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Q4_0;

const HALF: usize = 16;

impl Block for Q4_0 {
    #[inline(always)]
    fn len(self) -> usize {
        2 * HALF
    }

    #[inline(always)]
    fn bytes(self) -> usize {
        2 + HALF
    }

    #[inline(always)]
    fn codes(self, block: &[u8], codes: &mut [f32]) {
        // Both halves in one loop of 32 over a local copy, which can't alias the codes: vectorized only so.
        let mut twice = [0; 2 * HALF];
        twice[..HALF].copy_from_slice(&block[2..]);
        twice[HALF..].copy_from_slice(&block[2..]);
        for ((j, code), byte) in codes.iter_mut().enumerate().zip(twice) {
            let shift = if j < HALF { 0 } else { 4 };
            *code = (u32::from(byte) >> shift & 15) as f32 - 8.0;
        }
    }

    #[inline(always)]
    fn write(self, codes: &[f32], scale: f32, _bias: f32, block: &mut [u8]) {
        block[..2].copy_from_slice(&ScaleType::F16.write(scale));
        let (low, high) = codes.split_at(HALF);
        for ((byte, low), high) in block[2..].iter_mut().zip(low).zip(high) {
            *byte = (low + 8.0) as u8 | ((high + 8.0) as u8) << 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_nibble_is_element_j_and_the_high_one_element_j_plus_16() {
        let mut block = [0x88u8; 18];
        block[..2].copy_from_slice(&ScaleType::F16.write(-0.5));
        block[2] = 0x7f;
        block[17] = 0x0a;
        let mut codes = [9.0; 32];
        Q4_0.codes(&block, &mut codes);
        let mut want = [0.0; 32];
        (want[0], want[16], want[15], want[31]) = (7.0, -1.0, 2.0, -8.0);
        assert_eq!(codes, want);
        assert_eq!(Q4_0.scale_bias(&block), (-0.5, 0.0));
    }

    #[test]
    fn every_byte_reads_and_writes_back() {
        super::super::tests::every_byte_reads_and_writes_back(Q4_0, 2..18, |_| true);
    }
}

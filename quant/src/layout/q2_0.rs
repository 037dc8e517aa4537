//! `ternary-g64` on disk: 64 weights in 18 bytes, the Q2_0 block of GGUF. Knows no tensors.
//!
//! | bytes | what |
//! |---|---|
//! | 0..2 | scale, f16 |
//! | 2..18 | byte j: elements 4j..4j+4, first in the low bits; two bits = code + 1; 3 is not on the grid |

use super::{Block, trits};
use crate::ScaleType;

/// The Q2_0 block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Q2_0;

impl Block for Q2_0 {
    #[inline(always)]
    fn len(self) -> usize {
        64
    }

    #[inline(always)]
    fn bytes(self) -> usize {
        18
    }

    #[inline(always)]
    fn codes(self, block: &[u8], codes: &mut [f32]) {
        trits::unpack(&block[2..], codes);
    }

    #[inline(always)]
    fn write(self, codes: &[f32], scale: f32, _bias: f32, block: &mut [u8]) {
        block[..2].copy_from_slice(&ScaleType::F16.write(scale));
        trits::pack(codes, &mut block[2..]);
    }

    #[inline(always)]
    fn legal(self, block: &[u8]) -> bool {
        trits::legal(&block[2..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_consecutive_codes_lie_in_a_byte_low_bits_first() {
        let mut block = [0b01_01_01_01; 18];
        block[2] = 0b10_00_01_10;
        let mut codes = [9.0; 64];
        Q2_0.codes(&block, &mut codes);
        assert_eq!(codes[..5], [1.0, 0.0, -1.0, 1.0, 0.0]);
        assert!(codes[4..].iter().all(|&code| code == 0.0));
    }

    #[test]
    fn every_byte_reads_and_writes_back_and_code_3_is_refused() {
        super::super::tests::every_byte_reads_and_writes_back(Q2_0, 2..18, super::super::tests::four_trits);
    }
}

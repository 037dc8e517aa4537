//! `ternary-g256` on disk: 256 weights in 66 bytes, the TQ2_0 block of GGUF. Knows no tensors.
//!
//! | bytes | what |
//! |---|---|
//! | 0..32 | byte m: elements m, m + 32, m + 64, m + 96, first in the low bits; two bits = code + 1; 3 is not on the grid |
//! | 32..64 | the same for elements 128.. |
//! | 64..66 | scale, f16 |
//!
//! Stripes, not neighbours: mixing this order with that of `q2_0` gives plausible garbage instead of an error.

use super::{Block, trits};
use crate::ScaleType;

/// The TQ2_0 block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tq2_0;

const STRIPE: usize = 32;
const CODES: usize = 64;

impl Block for Tq2_0 {
    #[inline(always)]
    fn len(self) -> usize {
        256
    }

    #[inline(always)]
    fn bytes(self) -> usize {
        CODES + 2
    }

    #[inline(always)]
    fn scale_bias(self, block: &[u8]) -> (f32, f32) {
        (ScaleType::F16.read([block[CODES], block[CODES + 1]]), 0.0)
    }

    #[inline(always)]
    fn codes(self, block: &[u8], codes: &mut [f32]) {
        for (codes, bytes) in codes.chunks_exact_mut(4 * STRIPE).zip(block[..CODES].chunks_exact(STRIPE)) {
            for (shift, codes) in [0, 2, 4, 6].into_iter().zip(codes.chunks_exact_mut(STRIPE)) {
                // In a local array, which can't alias the block: the loop below is vectorized only then.
                let mut local = [0.0; STRIPE];
                for (code, &byte) in local.iter_mut().zip(bytes) {
                    *code = f32::from(byte >> shift & 3) - 1.0;
                }
                codes.copy_from_slice(&local);
            }
        }
    }

    #[inline(always)]
    fn write(self, codes: &[f32], scale: f32, _bias: f32, block: &mut [u8]) {
        block[..CODES].fill(0);
        for (codes, bytes) in codes.chunks_exact(4 * STRIPE).zip(block[..CODES].chunks_exact_mut(STRIPE)) {
            for (shift, codes) in [0, 2, 4, 6].into_iter().zip(codes.chunks_exact(STRIPE)) {
                for (code, byte) in codes.iter().zip(bytes.iter_mut()) {
                    *byte |= ((code + 1.0) as u8) << shift;
                }
            }
        }
        block[CODES..].copy_from_slice(&ScaleType::F16.write(scale));
    }

    #[inline(always)]
    fn legal(self, block: &[u8]) -> bool {
        trits::legal(&block[..CODES])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn element_n_lies_at_byte_32_times_n_over_128_plus_n_mod_32_shift_2_times_n_mod_128_over_32() {
        for n in 0..256 {
            let mut codes = [0.0; 256];
            codes[n] = 1.0;
            let mut block = [0; 66];
            Tq2_0.write(&codes, 1.0, 0.0, &mut block);
            let mut want = [0b01_01_01_01; 64];
            want[32 * (n / 128) + n % 32] ^= 0b11 << (2 * ((n % 128) / 32));
            assert_eq!(block[..64], want, "element {n}");
        }
    }

    #[test]
    fn every_byte_reads_and_writes_back_and_code_3_is_refused() {
        super::super::tests::every_byte_reads_and_writes_back(Tq2_0, 0..64, super::super::tests::four_trits);
    }
}

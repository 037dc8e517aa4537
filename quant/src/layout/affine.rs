//! `intB-affine-gN` on disk: N weights in 4 + N·B/8 bytes. Knows no tensors.
//!
//! | bytes | what |
//! |---|---|
//! | 0..2 | scale, f16 or bf16, either sign |
//! | 2..4 | bias, the same type |
//! | 4.. | codes 0..2^B−1, a little-endian bit stream (`bits`) |
//!
//! MLX keeps the three parts in three tensors, each in this order: `scales`, `biases`, and the stream as u32 words.

use super::{Block, bits};
use crate::{Affine, ScaleType};

/// The affine block of `BITS`-bit codes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AffineBlock<const BITS: usize> {
    group: usize,
    scale: ScaleType,
}

impl<const BITS: usize> AffineBlock<BITS> {
    /// Group and scale type of `affine`, whose bits the caller matched.
    #[inline(always)]
    pub fn new(affine: Affine) -> Self {
        Self { group: affine.group(), scale: affine.scale_type() }
    }
}

const HEADER: usize = 4;

impl<const BITS: usize> Block for AffineBlock<BITS> {
    #[inline(always)]
    fn len(self) -> usize {
        self.group
    }

    #[inline(always)]
    fn bytes(self) -> usize {
        HEADER + self.group * BITS / 8
    }

    #[inline(always)]
    fn scale_bias(self, block: &[u8]) -> (f32, f32) {
        (self.scale.read([block[0], block[1]]), self.scale.read([block[2], block[3]]))
    }

    #[inline(always)]
    fn codes(self, block: &[u8], codes: &mut [f32]) {
        bits::unpack::<BITS>(&block[HEADER..], codes);
    }

    #[inline(always)]
    fn write(self, codes: &[f32], scale: f32, bias: f32, block: &mut [u8]) {
        block[..2].copy_from_slice(&self.scale.write(scale));
        block[2..HEADER].copy_from_slice(&self.scale.write(bias));
        bits::pack::<BITS>(codes, &mut block[HEADER..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn for_all_groups<const BITS: usize>() {
        for group in [32, 64, 128] {
            for scale in [ScaleType::F16, ScaleType::BF16] {
                let block = AffineBlock::<BITS> { group, scale };
                super::super::tests::every_byte_reads_and_writes_back(block, HEADER..block.bytes(), |_| true);
            }
        }
    }

    #[test]
    fn every_byte_reads_and_writes_back() {
        for_all_groups::<2>();
        for_all_groups::<3>();
        for_all_groups::<4>();
        for_all_groups::<8>();
    }
}

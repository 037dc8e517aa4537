//! `ternary-tensor` on disk: a row of n weights in n/4 bytes, four consecutive codes a byte as in `trits`, and nothing
//! else. Its one bf16 scale is kept beside the matrix, so the row carries it here.

use super::{Block, trits};

/// A whole row under the scale of its tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorRow {
    /// Weights of the row, a multiple of 4.
    pub cols: usize,
    /// The tensor's scale.
    pub scale: f32,
}

impl Block for TensorRow {
    #[inline(always)]
    fn len(self) -> usize {
        self.cols
    }

    #[inline(always)]
    fn bytes(self) -> usize {
        self.cols / 4
    }

    #[inline(always)]
    fn scale_bias(self, _block: &[u8]) -> (f32, f32) {
        (self.scale, 0.0)
    }

    #[inline(always)]
    fn codes(self, block: &[u8], codes: &mut [f32]) {
        trits::unpack(block, codes);
    }

    #[inline(always)]
    fn write(self, codes: &[f32], _scale: f32, _bias: f32, block: &mut [u8]) {
        trits::pack(codes, block);
    }

    #[inline(always)]
    fn legal(self, block: &[u8]) -> bool {
        trits::legal(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_reads_and_writes_back_and_code_3_is_refused() {
        for cols in [4, 12, 64] {
            let row = TensorRow { cols, scale: 0.5 };
            super::super::tests::every_byte_reads_and_writes_back(
                row,
                0..cols / 4,
                super::super::tests::four_trits,
            );
        }
    }
}

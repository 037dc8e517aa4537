//! Ternary codes −1, 0, 1 as two bits (code + 1), four consecutive ones a byte, first in the low bits.
//!
//! Knows no scales. The bit pattern 3 means nothing; reading it gives 2, and [`legal`] finds it.

use super::bits;

#[inline(always)]
pub(super) fn unpack(bytes: &[u8], codes: &mut [f32]) {
    bits::unpack::<2>(bytes, codes);
    for code in codes {
        *code -= 1.0;
    }
}

#[inline(always)]
pub(super) fn pack(codes: &[f32], bytes: &mut [u8]) {
    for (codes, byte) in codes.chunks_exact(4).zip(bytes) {
        *byte = codes.iter().rev().fold(0, |byte, &code| byte << 2 | (code + 1.0) as u8);
    }
}

/// Whether no two bits of `bytes`, at even places, are both set.
#[inline(always)]
pub(super) fn legal(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte & (byte >> 1) & 0b01_01_01_01 == 0)
}

//! Instructions whose intrinsics Rust has not made stable, a line of assembly each.
//!
//! Named as the instruction is. Nothing here touches memory.

#![expect(unsafe_code, reason = "assembly")]

use std::arch::aarch64::*;
use std::arch::asm;

/// In each lane `sum + Σⱼ codesⱼ·xⱼ`, signed, with the four bytes of lane `I mod 4` of `x`.
#[inline]
#[target_feature(enable = "dotprod")]
pub(super) fn sdot<const I: usize>(mut sum: int32x4_t, codes: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction on registers that `dotprod` has.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.4b[{lane}]",
            sum = inout(vreg) sum, codes = in(vreg) codes, x = in(vreg) x, lane = const I % 4,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// [`sdot`] with unsigned codes.
#[inline]
#[target_feature(enable = "i8mm")]
pub(super) fn usdot<const I: usize>(mut sum: int32x4_t, codes: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction on registers that `i8mm` has.
    unsafe {
        asm!(
            "usdot {sum:v}.4s, {codes:v}.16b, {x:v}.4b[{lane}]",
            sum = inout(vreg) sum, codes = in(vreg) codes, x = in(vreg) x, lane = const I % 4,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// `tile + codes · xᵀ`: `codes` has eight unsigned bytes of each of two rows, `x` eight signed ones of each of two
/// tokens, the tile row 0's two tokens and then row 1's.
#[inline]
#[target_feature(enable = "i8mm")]
pub(super) fn usmmla(mut tile: int32x4_t, codes: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction on registers that `i8mm` has.
    unsafe {
        asm!(
            "usmmla {tile:v}.4s, {codes:v}.16b, {x:v}.16b",
            tile = inout(vreg) tile, codes = in(vreg) codes, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    tile
}

/// Four half floats as floats, exactly.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fcvtl(halves: uint16x4_t) -> float32x4_t {
    let floats: float32x4_t;
    // SAFETY: an instruction on registers that every processor with NEON has.
    unsafe {
        asm!(
            "fcvtl {floats:v}.4s, {halves:v}.4h",
            floats = lateout(vreg) floats, halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    floats
}

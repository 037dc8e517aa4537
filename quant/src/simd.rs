//! Portable loops compiled for the best instruction set that the running processor proves to have.
//!
//! Knows no formats. A loop gives the same bits at every instruction set: Rust neither contracts `a·b + c` into a
//! fused operation nor reorders floating-point sums, so wider registers only change how many lanes run at once.

use std::sync::LazyLock;

use pulp::{Arch, WithSimd};

/// The scalar one where a test forces the lowest tier of the products, which must then be lowest in all.
static ARCH: LazyLock<Arch> =
    LazyLock::new(|| if crate::kernels::portable_is_forced() { Arch::Scalar } else { Arch::new() });

/// Runs `f` compiled for the best instruction set. To gain from it, `f` must be an `#[inline(always)]` closure that calls
/// only `#[inline(always)]` functions: code that stays outside is compiled for the oldest processor of the target.
#[inline]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    ARCH.dispatch(f)
}

/// Runs `op` on the registers of the best instruction set, for loops that the compiler doesn't vectorize by itself.
#[inline]
pub fn with_simd<W: WithSimd>(op: W) -> W::Output {
    ARCH.dispatch(op)
}

/// Combines lanes in halves: lane l with lane l + N/2, and so on down to one. `N` is a power of two.
#[inline(always)]
pub(crate) fn reduce<T: Copy, const N: usize>(mut lanes: [T; N], combine: impl Fn(T, T) -> T) -> T {
    const { assert!(N.is_power_of_two()) };
    let mut half = N / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = combine(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

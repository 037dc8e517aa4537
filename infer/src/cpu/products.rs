//! Small dense products in f32, held in registers: scores of a tile of keys, and weighted sums of a tile of values.
//!
//! Knows no attention. Invariant: every element takes its products in order, each fused into its sum, so that the bits
//! depend on neither the width of a register nor how many rows are computed together.

use pulp::{Simd, WithSimd};

/// `c += a · b` for `a` `[rows, depth]`, `b` `[at most depth, width]` and rows of `c` that begin `stride` apart. Where `b`
/// has fewer rows than `a` has columns, the other columns don't count.
#[inline(always)]
pub(super) fn add_products<S: Simd>(
    simd: S,
    (a, depth): (&[f32], usize),
    (b, width): (&[f32], usize),
    (c, stride): (&mut [f32], usize),
) {
    let (mut a, mut c) = (a, c);
    while a.len() >= depth {
        let strip = Strip { a, depth, b, width, c: &mut *c, stride };
        // Eight sums side by side hide the latency of one (4 cycles, two begun in each), and with what they are made of
        // fit the sixteen registers of AVX2. Twelve would too, but the compiler then moves sums to the stack and back.
        // Calls, lest it does that anyway in code that has more on its mind.
        let rows = match a.len() / depth {
            1 => simd.vectorize(Of::<1, 8>(strip)),
            2 => simd.vectorize(Of::<2, 4>(strip)),
            3 => simd.vectorize(Of::<3, 2>(strip)),
            _ => simd.vectorize(Of::<4, 2>(strip)),
        };
        (a, c) = (&a[rows * depth..], &mut c[rows * stride..]);
    }
}

/// The arguments of [`add_products`].
struct Strip<'a> {
    a: &'a [f32],
    depth: usize,
    b: &'a [f32],
    width: usize,
    c: &'a mut [f32],
    stride: usize,
}

/// The first `R` rows of a strip, `C` registers of columns at a time.
struct Of<'a, const R: usize, const C: usize>(Strip<'a>);

impl<const R: usize, const C: usize> WithSimd for Of<'_, R, C> {
    /// How many rows that were.
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        let Self(mut strip) = self;
        let whole = strip.width / S::F32_LANES;
        let mut first = 0;
        while first + C <= whole {
            strip.block::<S, R, C>(simd, first);
            first += C;
        }
        while first < whole {
            strip.block::<S, R, 1>(simd, first);
            first += 1;
        }
        let Strip { a, depth, b, width, c, stride } = strip;
        for column in whole * S::F32_LANES..width {
            for row in 0..R {
                let c = &mut c[row * stride + column];
                for (a, b) in a[row * depth..][..depth].iter().zip(b.chunks_exact(width)) {
                    *c = a.mul_add(b[column], *c);
                }
            }
        }
        R
    }
}

impl Strip<'_> {
    /// `R` rows and `C` registers of columns from register `first` on.
    #[inline(always)]
    fn block<S: Simd, const R: usize, const C: usize>(&mut self, simd: S, first: usize) {
        let Strip { a, depth, b, width, ref mut c, stride } = *self;
        let column = first * S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); C]; R];
        for (row, sums) in sums.iter_mut().enumerate() {
            let c = S::as_simd_f32s(&c[row * stride + column..]).0;
            sums.copy_from_slice(&c[..C]);
        }
        let b = &b[column.min(b.len())..];
        let count = b.len().div_ceil(width).min(depth);
        let a: [&[f32]; R] = std::array::from_fn(
            #[inline(always)]
            |row| &a[row * depth..][..count],
        );
        for (at, b) in b.chunks(width).enumerate().take(count) {
            let b = &S::as_simd_f32s(&b[..C * S::F32_LANES]).0[..C];
            for row in 0..R {
                let a = simd.splat_f32s(a[row][at]);
                for part in 0..C {
                    sums[row][part] = simd.mul_add_f32s(a, b[part], sums[row][part]);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let c = S::as_mut_simd_f32s(&mut c[row * stride + column..]).0;
            c[..C].copy_from_slice(sums);
        }
    }
}

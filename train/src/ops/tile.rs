//! Products of small f32 matrices that fit a core's cache: C += A·B on one thread, in plain loops over register tiles.
//!
//! For the per-head matrices of attention, where a general matrix product spends more time on dispatch and memory than
//! on arithmetic. Knows no heads. Dimensions are padded by the caller to multiples of [`LANES`], so that there are no
//! tails; sums run over k in order.

use super::lanes::LANES;

/// Rows of a register tile; its columns are [`LANES`].
pub(crate) const TILE_ROWS: usize = 4;

/// The left operand of a product.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Element (i, p) is `values[i·stride + p]`.
    Rows { values: &'a [f32], stride: usize },
    /// Element (i, p) is `values[p·stride + i]`: the transpose of what is in memory.
    Columns { values: &'a [f32], stride: usize },
}

impl Left<'_> {
    /// Rows `first..first + 4` of all columns, interleaved as the register tile reads them.
    #[inline(always)]
    fn pack(self, first: usize, panel: &mut [[f32; TILE_ROWS]]) {
        match self {
            Self::Rows { values, stride } => {
                let row = |i: usize| values[(first + i) * stride..][..panel.len()].iter();
                let rows = row(0).zip(row(1)).zip(row(2).zip(row(3)));
                for (packed, ((&a, &b), (&c, &d))) in panel.iter_mut().zip(rows) {
                    *packed = [a, b, c, d];
                }
            }
            Self::Columns { values, stride } => {
                for (packed, values) in panel.iter_mut().zip(values[first..].chunks(stride)) {
                    packed.copy_from_slice(&values[..TILE_ROWS]);
                }
            }
        }
    }
}

/// `c[m, n] += a[m, k]·b[k, n]`, with the rows of `b` and `c` contiguous and `b_stride`, `c_stride` apart.
///
/// `m` is a multiple of 4 and `n` of [`LANES`]. `panel` is scratch of at least k.
#[inline(always)]
pub(crate) fn multiply_add(
    a: Left<'_>,
    (b, b_stride): (&[f32], usize),
    (c, c_stride): (&mut [f32], usize),
    (m, n, k): (usize, usize, usize),
    panel: &mut [[f32; TILE_ROWS]],
) {
    debug_assert!(m.is_multiple_of(TILE_ROWS) && n.is_multiple_of(LANES));
    let panel = &mut panel[..k];
    for (tile, c) in c.chunks_mut(TILE_ROWS * c_stride).take(m / TILE_ROWS).enumerate() {
        a.pack(tile * TILE_ROWS, panel);
        for column in (0..n).step_by(LANES) {
            let sums = tile_sums(panel, b[column..].chunks(b_stride));
            for (c, sums) in c.chunks_mut(c_stride).zip(sums) {
                for (c, sum) in c[column..column + LANES].iter_mut().zip(sums) {
                    *c += sum;
                }
            }
        }
    }
}

/// Four rows of A times [`LANES`] columns of B: sixty-four sums that stay in registers.
#[inline(always)]
fn tile_sums<'a>(
    panel: &[[f32; TILE_ROWS]],
    b: impl Iterator<Item = &'a [f32]>,
) -> [[f32; LANES]; TILE_ROWS] {
    let mut sums = [[0f32; LANES]; TILE_ROWS];
    for (a, b) in panel.iter().zip(b) {
        let Some(b) = b.first_chunk::<LANES>() else { break };
        for i in 0..TILE_ROWS {
            for j in 0..LANES {
                sums[i][j] += a[i] * b[j];
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_adds_to_what_is_there_with_rows_or_columns_as_the_left_operand() {
        let (m, n, k) = (8, 2 * LANES, 5);
        // Small integers: every sum is exact.
        let a: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
        let b: Vec<f32> = (0..k * (n + 3)).map(|i| (i % 5) as f32 - 2.0).collect();
        let a_by_columns: Vec<f32> = (0..k * m).map(|i| a[i % m * k + i / m]).collect();
        let want: Vec<f32> = (0..m * n)
            .map(|i| 1.0 + (0..k).map(|p| a[i / n * k + p] * b[p * (n + 3) + i % n]).sum::<f32>())
            .collect();
        for left in [Left::Rows { values: &a, stride: k }, Left::Columns { values: &a_by_columns, stride: m }]
        {
            let mut c = vec![1f32; m * n];
            multiply_add(left, (&b, n + 3), (&mut c, n), (m, n, k), &mut [[0.0; TILE_ROWS]; 9]);
            assert_eq!(c, want);
        }
    }
}

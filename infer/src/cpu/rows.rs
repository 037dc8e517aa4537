//! Work on rows that don't depend on each other, on one thread or on all.
//!
//! Knows no arithmetic. Invariant: a row is computed the same way whoever computes it, so that results don't depend on
//! the number of threads.

use qat_quant::vectorized;
use rayon::prelude::*;

/// Elementary operations below which waking other threads costs more than it saves (some 20 µs of work).
const WORTH_SHARING: usize = 1 << 16;

/// Calls `work(index, row)` for every row of `width` values of `out`; `cost` is the number of elementary operations
/// per row, for deciding whether to share.
pub(super) fn for_each_row(
    out: &mut [f32],
    width: usize,
    cost: usize,
    work: impl Fn(usize, &mut [f32]) + Sync,
) {
    let rows = out.len() / width;
    if rows > 1 && rows * cost >= WORTH_SHARING {
        let at_least = WORTH_SHARING / 4 / cost.max(1) + 1;
        out.par_chunks_exact_mut(width).enumerate().with_min_len(at_least).for_each(|(index, row)| {
            vectorized(
                #[inline(always)]
                || work(index, row),
            );
        });
    } else {
        vectorized(
            #[inline(always)]
            || {
                for (index, row) in out.chunks_exact_mut(width).enumerate() {
                    work(index, row);
                }
            },
        );
    }
}

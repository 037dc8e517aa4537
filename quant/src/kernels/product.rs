//! The two products, once for all tiers: a panel of weights times a block of tokens.
//!
//! The specification, for a row with scales `s` (and biases `b`) of its groups and a token `x`:
//!
//! - int8: `scale · acc`, where `acc` begins at 0 and each group in order adds `D·s` and then (affine) `A·b`, each
//!   rounded once (a fused multiply-add). `D = Σ (code − zero)·x` and `A = Σ x` are exact integers, rounded to f32.
//! - float: `acc` as before, with `D` the sum, chunk after chunk, of two chains of products (even and odd columns)
//!   added together, and `A` the sum of the chunks' sums. Where a tier doesn't take the zero point off its codes,
//!   `zero·A` is taken off `D`.
//!
//! Nothing depends on how many tokens share a block. Knows no threads and no outputs' places.

use super::PANEL;
use super::lanes::{Chunk, Lanes};
use super::panels::{Panel, ScaleRow};
use super::tokens::{CHUNK, FloatTokens, Int8Tokens};

/// Lines between what is multiplied and what is fetched, for one token: 16 KiB, the next panels. Without it the loads
/// of a fast product run ahead of the processor's own prefetching and wait for memory a few at a time: on Zen 4 one
/// thread read int8-g32 at 12 GB/s instead of 25, int4-g32 at 22 instead of 30.
const AHEAD: usize = 256;

/// Outputs of a panel for the tokens `first..first + T`.
#[inline(always)]
pub(super) fn int8<L: Lanes, const BITS: usize, const AFFINE: bool, const T: usize>(
    l: L,
    panel: Panel<'_>,
    x: &Int8Tokens<'_>,
    first: usize,
) -> [[f32; PANEL]; T] {
    let cols = x.codes.len() / x.scales.len();
    let per_token = cols.div_ceil(CHUNK);
    let rows: [&[i8]; T] = by_token(
        #[inline(always)]
        |t| &x.codes[(first + t) * cols..][..cols],
    );
    let sums: [&[i32]; T] = by_token(
        #[inline(always)]
        |t| &x.sums[(first + t) * per_token..][..per_token],
    );
    let whole = rows.map(
        #[inline(always)]
        |row| row.as_chunks::<CHUNK>().0,
    );
    let mut last = [[0; CHUNK]; T];
    copy_rests(&rows, &mut last);
    let zero = if AFFINE { 0 } else { panel.zero } - L::offset::<BITS>();
    let chunks = panel.lines.as_chunks::<BITS>().0;
    let scale_rows = if AFFINE { 2 } else { 1 };
    let mut acc = [l.float(0.0); T];
    let groups = chunks.chunks(panel.group_chunks).zip(panel.scales.chunks_exact(scale_rows));
    for (group, (chunks, scales)) in groups.enumerate() {
        let begin = group * panel.group_chunks;
        let mut group_sums = [0; T];
        let mut ints = [l.int(0); T];
        for (index, chunk) in (begin..).zip(chunks) {
            if T == 1 {
                prefetch(l, chunk);
            }
            let x: [&[i8; CHUNK]; T] = by_token(
                #[inline(always)]
                |t| whole[t].get(index).unwrap_or(&last[t]),
            );
            ints = l.multiply::<BITS, T>(ints, chunk, x);
            for t in 0..T {
                group_sums[t] += sums[t][index];
            }
        }
        let scale = scale(l, &panel, &scales[0]);
        for t in 0..T {
            let dot = l.add_ints(ints[t], l.int(-zero * group_sums[t]));
            acc[t] = l.mul_add(l.to_floats(dot), scale, acc[t]);
        }
        if AFFINE {
            let bias = l.scales(&scales[1], panel.scale_type);
            for t in 0..T {
                acc[t] = l.mul_add(l.float(group_sums[t] as f32), bias, acc[t]);
            }
        }
    }
    by_token(
        #[inline(always)]
        |t| l.store(l.mul(acc[t], l.float(x.scales[first + t]))),
    )
}

/// Outputs of a panel for the tokens `first..first + T` of `cols` columns.
#[inline(always)]
pub(super) fn float<L: Lanes, const BITS: usize, const AFFINE: bool, const T: usize>(
    l: L,
    panel: Panel<'_>,
    x: &FloatTokens<'_>,
    cols: usize,
    first: usize,
) -> [[f32; PANEL]; T] {
    let per_token = cols.div_ceil(CHUNK);
    let rows: [&[f32]; T] = by_token(
        #[inline(always)]
        |t| &x.values[(first + t) * cols..][..cols],
    );
    let sums: [&[f32]; T] = by_token(
        #[inline(always)]
        |t| &x.sums[(first + t) * per_token..][..per_token],
    );
    let whole = rows.map(
        #[inline(always)]
        |row| row.as_chunks::<CHUNK>().0,
    );
    let mut last = [[0.0; CHUNK]; T];
    copy_rests(&rows, &mut last);
    let zero = if AFFINE { 0 } else { panel.zero };
    let table = l.table::<BITS>(zero);
    let chunks = panel.lines.as_chunks::<BITS>().0;
    let scale_rows = if AFFINE { 2 } else { 1 };
    let mut acc = [l.float(0.0); T];
    let groups = chunks.chunks(panel.group_chunks).zip(panel.scales.chunks_exact(scale_rows));
    for (group, (chunks, scales)) in groups.enumerate() {
        let begin = group * panel.group_chunks;
        let mut group_sums = [0.0; T];
        let mut sum = [l.float(0.0); T];
        for (index, chunk) in (begin..).zip(chunks) {
            if T == 1 {
                prefetch(l, chunk);
            }
            let x: [&[f32; CHUNK]; T] = by_token(
                #[inline(always)]
                |t| whole[t].get(index).unwrap_or(&last[t]),
            );
            sum = l.multiply_floats::<BITS, T>(table, sum, chunk, x);
            for t in 0..T {
                group_sums[t] += sums[t][index];
            }
        }
        let scale = scale(l, &panel, &scales[0]);
        for t in 0..T {
            if !L::centers::<BITS>() {
                sum[t] = l.accumulate(l.float(-(zero as f32)), l.float(group_sums[t]), sum[t]);
            }
            acc[t] = l.accumulate(sum[t], scale, acc[t]);
        }
        if AFFINE {
            let bias = l.scales(&scales[1], panel.scale_type);
            for t in 0..T {
                acc[t] = l.accumulate(l.float(group_sums[t]), bias, acc[t]);
            }
        }
    }
    acc.map(
        #[inline(always)]
        |acc| l.store(acc),
    )
}

/// The scales of a group, one for each row.
#[inline(always)]
fn scale<L: Lanes>(l: L, panel: &Panel<'_>, stored: &ScaleRow) -> L::Floats {
    match panel.tensor_scale {
        Some(scale) => l.float(scale),
        None => l.scales(stored, panel.scale_type),
    }
}

/// Sends for the chunk that lies [`AHEAD`] of this one, perhaps past the end.
#[inline(always)]
fn prefetch<L: Lanes, const BITS: usize>(l: L, chunk: &Chunk<BITS>) {
    let ahead = chunk.as_ptr().wrapping_add(AHEAD);
    for line in 0..BITS {
        l.prefetch(ahead.wrapping_add(line));
    }
}

/// One value for each token of a block.
#[inline(always)]
fn by_token<V, const T: usize>(value: impl FnMut(usize) -> V) -> [V; T] {
    std::array::from_fn(value)
}

/// What rows have beyond their whole chunks.
///
/// Never inlined: `last` has to stay a place in memory. Seen as values, a chunk that is either a row's or `last` would be
/// chosen float by float in the innermost loop.
#[inline(never)]
fn copy_rests<V: Copy, const T: usize>(rows: &[&[V]; T], last: &mut [[V; CHUNK]; T]) {
    for (row, last) in rows.iter().zip(last) {
        let rest = row.as_chunks::<CHUNK>().1;
        last[..rest.len()].copy_from_slice(rest);
    }
}

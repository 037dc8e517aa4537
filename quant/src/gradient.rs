//! How a gradient passes through the fake quantizer, as pure functions over slices.
//!
//! With u = (w − b)/s, q = code(w) and G = ∂L/∂ŵ, rounding passes gradients unchanged (straight through, arXiv
//! 1308.3432) and clamping blocks them. LSQ (arXiv 1902.08153) adds the scale, and LSQ+ (arXiv 2004.09576) the bias:
//!
//! | | dw | ds per group | db per group |
//! |---|---|---|---|
//! | inside | G | Σ G·(q − u) | 0 |
//! | u < lo | 0 | Σ G·lo | Σ G |
//! | u > hi | 0 | Σ G·hi | Σ G |
//!
//! Inside is lo ≤ u ≤ hi. For ternary grids, dw alone passes for |u| ≤ 3/2, which is where rounding stays within the
//! codes: 42 % of absmean-scaled normal weights lie beyond 1 and would otherwise never move again. A group whose scale
//! is 0 has no step to clip by: dw = G, ds = db = 0. LSQ's factor γ is left to the optimizer's learning rate.

use rayon::prelude::*;

use crate::{
    Format, Scales,
    grid::{Grid, Spans, TASK},
    simd::vectorized,
};

/// Gradients of scales and biases, laid out as [`Scales`].
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleGradients {
    /// One per group.
    pub scale: Vec<f32>,
    /// One per group, or empty when the format is symmetric.
    pub bias: Vec<f32>,
}

/// Straight through: dw = G.
///
/// # Panics
/// When the lengths differ.
pub fn straight_through(grad: &[f32], dw: &mut [f32]) {
    dw.copy_from_slice(grad);
}

/// Clipped straight through: dw = G inside the grid and 0 outside.
///
/// `w`, `grad` and `dw` are `[rows, cols]`.
///
/// # Panics
/// When a length is not what the shape and the format say.
pub fn clipped(
    format: Format,
    w: &[f32],
    rows: usize,
    cols: usize,
    scales: &Scales,
    grad: &[f32],
    dw: &mut [f32],
) {
    let spans = Spans::new(format, w.len(), rows, cols, scales);
    assert_eq!((grad.len(), dw.len()), (w.len(), w.len()), "gradients of a [{rows}, {cols}] matrix");
    let margin = margin(format);
    let tasks = dw.par_chunks_mut(TASK).zip(grad.par_chunks(TASK)).zip(w.par_chunks(TASK)).enumerate();
    tasks.for_each(|(task, ((dw, grad), w))| {
        vectorized(
            #[inline(always)]
            || {
                for (_, grid, span) in spans.of_task(task * TASK, w.len()) {
                    let (w, grad, dw) = (&w[span.clone()], &grad[span.clone()], &mut dw[span]);
                    for ((dw, &g), &w) in dw.iter_mut().zip(grad).zip(w) {
                        *dw = pass(grid, margin, grid.position(w), g);
                    }
                }
            },
        );
    });
}

/// Learned scale (LSQ, LSQ+): dw as [`clipped`], and the gradients of every scale and bias.
///
/// `w`, `grad` and `dw` are `[rows, cols]`. Sums run in a fixed order.
///
/// # Panics
/// When a length is not what the shape and the format say.
pub fn learned(
    format: Format,
    w: &[f32],
    rows: usize,
    cols: usize,
    scales: &Scales,
    grad: &[f32],
    dw: &mut [f32],
) -> ScaleGradients {
    clipped(format, w, rows, cols, scales, grad, dw);
    sums(format, Spans::new(format, w.len(), rows, cols, scales), w, grad, contribution)
}

/// What `contribution` makes of a grid, an element of `x` and its gradient, summed up for each group.
fn sums(
    format: Format,
    spans: Spans,
    x: &[f32],
    grad: &[f32],
    contribution: impl Fn(Grid, f32, f32) -> (f32, f32) + Sync,
) -> ScaleGradients {
    let mut sums = vec![(0f32, 0f32); x.len().div_ceil(spans.len)];
    let tasks =
        sums.par_chunks_mut(TASK / spans.len).zip(grad.par_chunks(TASK)).zip(x.par_chunks(TASK)).enumerate();
    tasks.for_each(|(task, ((sums, grad), x))| {
        vectorized(
            #[inline(always)]
            || {
                for (sum, (_, grid, span)) in sums.iter_mut().zip(spans.of_task(task * TASK, x.len())) {
                    *sum = span_sums(grid, &x[span.clone()], &grad[span], &contribution);
                }
            },
        );
    });
    let groups = spans.groups();
    let per_group = |part: fn(&(f32, f32)) -> f32| -> Vec<f32> {
        let total = |spans: &[(f32, f32)]| spans.iter().map(|s| f64::from(part(s))).sum::<f64>() as f32;
        sums.chunks(sums.len().div_ceil(groups).max(1)).map(total).collect()
    };
    ScaleGradients {
        scale: per_group(|s| s.0),
        bias: if format.has_bias() { per_group(|s| s.1) } else { Vec::new() },
    }
}

/// Frozen codes: the gradients of scales and biases alone, ds = Σ G·q and db = Σ G.
///
/// `codes` and `grad` are `[rows, cols]`. Sums run in a fixed order.
///
/// # Panics
/// When a length is not what the shape and the format say.
pub fn of_codes(format: Format, codes: &[f32], rows: usize, cols: usize, grad: &[f32]) -> ScaleGradients {
    let groups = format.groups(rows, cols);
    // A grid of steps of 1: only where its groups lie is asked.
    let unit =
        Scales { scale: vec![1.0; groups], bias: vec![0.0; if format.has_bias() { groups } else { 0 }] };
    assert_eq!(grad.len(), codes.len(), "gradients of a [{rows}, {cols}] matrix");
    sums(
        format,
        Spans::new(format, codes.len(), rows, cols, &unit),
        codes,
        grad,
        #[inline(always)]
        |_, code, g| (g * code, g),
    )
}

/// How far beyond the outermost codes dw still passes, in steps of the grid.
fn margin(format: Format) -> f32 {
    if format.is_ternary() { 0.5 } else { 0.0 }
}

#[inline(always)]
fn pass(grid: Grid, margin: f32, u: f32, g: f32) -> f32 {
    if (u >= grid.lo - margin) & (u <= grid.hi + margin) { g } else { 0.0 }
}

/// Contributions of one span to ds and db, summed in eight lanes and then in order.
#[inline(always)]
fn span_sums(
    grid: Grid,
    x: &[f32],
    grad: &[f32],
    contribution: &impl Fn(Grid, f32, f32) -> (f32, f32),
) -> (f32, f32) {
    const LANES: usize = 8;
    let (mut ds, mut db) = ([0f32; LANES], [0f32; LANES]);
    let (whole_x, rest_x) = x.as_chunks::<LANES>();
    let (whole_g, rest_g) = grad.as_chunks::<LANES>();
    for (x, g) in whole_x.iter().zip(whole_g) {
        for lane in 0..LANES {
            let (s, b) = contribution(grid, x[lane], g[lane]);
            ds[lane] += s;
            db[lane] += b;
        }
    }
    let rest = rest_x.iter().zip(rest_g).map(|(&x, &g)| contribution(grid, x, g));
    let (rest_s, rest_b) = rest.fold((0.0, 0.0), |sum, c| (sum.0 + c.0, sum.1 + c.1));
    (ds.into_iter().sum::<f32>() + rest_s, db.into_iter().sum::<f32>() + rest_b)
}

/// What one weight adds to ds and db.
#[inline(always)]
fn contribution(grid: Grid, w: f32, g: f32) -> (f32, f32) {
    let (u, q) = (grid.position(w), grid.code(w));
    let inside = (u >= grid.lo) & (u <= grid.hi);
    (g * if inside { q - u } else { q }, if inside { 0.0 } else { g })
}

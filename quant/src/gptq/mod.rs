//! GPTQ (arXiv 2210.17323): rounding column by column, each column's error made good in the columns behind it.
//!
//! Knows no model: what the inputs of a matrix look like comes as their second moments. Grids are chosen and codes taken by
//! the crate's one arithmetic, so that the result is packed as it is. Invariants: rows don't influence each other, and no
//! result depends on the number of threads.

mod feedback;

use rayon::prelude::*;

pub use feedback::Feedback;

use crate::{
    Format, ScaleRule, Scales,
    grid::{Grid, Spans, TASK, assert_shape},
    simd::vectorized,
};

/// Rows that lie beside each other in the registers of one task.
const LANES: usize = 16;

/// A matrix after [`gptq`].
#[derive(Debug, Clone, PartialEq)]
pub struct Rounded {
    /// The grid of each group, as it is stored.
    pub scales: Scales,
    /// `[rows, cols]`, each on the grid of its group. [`crate::pack`] takes them as they are, as long as f32 tells a grid's steps apart
    /// beside its bias.
    pub values: Vec<f32>,
}

impl Rounded {
    /// Weights that round to these values and are as near to `w` as that allows: where training goes on from. A weight that rounds
    /// here by itself stays; another is moved into the cell of its code, a twentieth of a step behind the edge.
    ///
    /// # Panics
    /// When `w` or the values are of another shape.
    pub fn latent(&self, format: Format, w: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        /// From the middle of a cell, in steps of the grid.
        const REACH: f32 = 0.45;
        let spans = Spans::new(format, w.len(), rows, cols, &self.scales);
        assert_eq!(self.values.len(), w.len(), "rounded values of a [{rows}, {cols}] matrix");
        let mut latent = self.values.clone();
        let tasks = latent.par_chunks_mut(TASK).zip(w.par_chunks(TASK)).enumerate();
        tasks.for_each(|(task, (latent, w))| {
            for (_, grid, span) in spans.of_task(task * TASK, w.len()) {
                for (latent, &w) in latent[span.clone()].iter_mut().zip(&w[span]) {
                    let code = grid.code(*latent);
                    *latent = if grid.code(w) == code {
                        w
                    } else {
                        grid.value(code + (grid.position(w) - code).clamp(-REACH, REACH))
                    };
                }
            }
        });
        latent
    }
}

/// Rounds `w` `[rows, cols]` so that its products with the inputs behind `feedback` change little.
///
/// Columns are rounded in order. The grid of a group is chosen by `rule` when its first column's turn has come, from the weights as
/// the errors before it have left them; a format with one scale for the tensor has it chosen at the start. With inputs that don't
/// correlate this is plain rounding by `rule`.
///
/// # Panics
/// When the format doesn't fit `cols`, or `w` or `feedback` are of another shape.
pub fn gptq(
    format: Format,
    rule: ScaleRule,
    w: &[f32],
    rows: usize,
    cols: usize,
    feedback: &Feedback,
) -> Rounded {
    assert_shape(format, w.len(), rows, cols);
    assert_eq!(feedback.cols(), cols, "feedback of the inputs of a [{rows}, {cols}] matrix");
    let tensor = format.group_len().is_none().then(|| Scales::choose(format, rule, w, rows, cols));
    let grids = Grids { format, rule, tensor };
    let mut values = vec![0.0; w.len()];
    let panels = values.par_chunks_mut(LANES * cols).zip(w.par_chunks(LANES * cols));
    let scales: Vec<Scales> = panels.map(|(values, w)| panel(&grids, w, cols, feedback, values)).collect();
    let scales = grids.tensor.unwrap_or_else(|| Scales {
        scale: scales.iter().flat_map(|s| &s.scale).copied().collect(),
        bias: scales.iter().flat_map(|s| &s.bias).copied().collect(),
    });
    Rounded { scales, values }
}

/// How the grids of a matrix come about.
struct Grids {
    format: Format,
    rule: ScaleRule,
    /// The one grid of a format that has one for the tensor.
    tensor: Option<Scales>,
}

impl Grids {
    /// The grids of the rows in `w`, `[rows, len]`, whose columns are one group.
    fn choose(&self, w: &[f32], rows: usize, len: usize) -> Vec<Grid> {
        let levels = self.format.levels();
        if let Some(Scales { scale, .. }) = &self.tensor {
            return vec![Grid::new(levels, scale[0], 0.0); rows];
        }
        let Scales { scale, bias } = Scales::choose(self.format, self.rule, w, rows, len);
        let bias = |row: usize| bias.get(row).copied().unwrap_or(0.0);
        scale.iter().enumerate().map(|(row, &scale)| Grid::new(levels, scale, bias(row))).collect()
    }
}

/// Rounds up to [`LANES`] rows of `w` into `values`; returns their scales and biases, rows in order.
fn panel(grids: &Grids, w: &[f32], cols: usize, feedback: &Feedback, values: &mut [f32]) -> Scales {
    let rows = w.len() / cols;
    // Column after column, the rows beside each other: an error then meets a column in one register.
    let mut columns = vec![[0f32; LANES]; cols];
    for (row, w) in w.chunks_exact(cols).enumerate() {
        columns.iter_mut().zip(w).for_each(|(column, &w)| column[row] = w);
    }
    let len = grids.format.group_len().unwrap_or(cols);
    let mut chosen: Vec<Vec<Grid>> = Vec::with_capacity(cols / len);
    for first in (0..cols).step_by(len) {
        let group: Vec<f32> =
            (0..rows).flat_map(|row| columns[first..first + len].iter().map(move |c| c[row])).collect();
        let grids = grids.choose(&group, rows, len);
        vectorized(
            #[inline(always)]
            || {
                for j in first..first + len {
                    round_column(&mut columns[j..], &grids, feedback.behind(j));
                }
            },
        );
        chosen.push(grids);
    }
    for (row, values) in values.chunks_exact_mut(cols).enumerate() {
        values.iter_mut().zip(&columns).for_each(|(value, column)| *value = column[row]);
    }
    let in_order = |part: fn(&Grid) -> f32| -> Vec<f32> {
        (0..rows).flat_map(|row| chosen.iter().map(move |group| part(&group[row]))).collect()
    };
    let bias = if grids.format.has_bias() { in_order(|grid| grid.bias) } else { Vec::new() };
    Scales { scale: in_order(|grid| grid.scale), bias }
}

/// Rounds the first of `columns` and spreads its error over the others, `behind[k]` times for the one k places on.
#[inline(always)]
fn round_column(columns: &mut [[f32; LANES]], grids: &[Grid], behind: &[f32]) {
    let Some((column, others)) = columns.split_first_mut() else { return };
    let mut errors = [0f32; LANES];
    for ((weight, error), grid) in column.iter_mut().zip(&mut errors).zip(grids) {
        let value = grid.value(grid.code(*weight));
        *error = *weight - value;
        *weight = value;
    }
    for (other, &share) in others.iter_mut().zip(behind) {
        for lane in 0..LANES {
            other[lane] -= errors[lane] * share;
        }
    }
}

//! Inputs that matrices multiply: what a task makes of its panels, for many tokens or for one.
//!
//! Knows no threads and no buffers. Invariant: an output's bits depend on neither the number of tokens nor that of panels.

use super::Product;
use super::inputs::Inputs;
use super::pool::Tile;
use qat_quant::kernels::{Isa, PANEL};

/// Panels that are computed one after the other for one token, at the most. More bring nothing measurable, and would make
/// threads wait longer for the last task of a job.
pub(super) const AT_ONCE: usize = 4;

/// The prepared input of products.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub isa: Isa,
    pub inputs: &'a Inputs,
    /// What the inputs were prepared from.
    pub x: &'a [f32],
    pub tokens: usize,
}

impl Operand<'_> {
    /// The outputs of a tile, with their bias: each row of sixteen becomes `combine(row, outputs)`.
    pub(super) fn multiply(
        &self,
        product: &Product<'_>,
        tile: &mut Tile<'_>,
        combine: impl Fn(&mut [f32; PANEL], &[f32; PANEL]),
    ) {
        let first = tile.first()[1] / PANEL;
        if self.tokens == 1 {
            self.panels_of_token(product, first, tile.row(0), combine);
        } else {
            self.panel(product, first, tile, combine);
        }
    }

    /// Panels from number `first` on, of one token.
    fn panels_of_token(
        &self,
        product: &Product<'_>,
        first: usize,
        row: &mut [f32],
        combine: impl Fn(&mut [f32; PANEL], &[f32; PANEL]),
    ) {
        let mut outputs = [[0.0; PANEL]; AT_ONCE];
        let outputs = &mut outputs[..row.len().div_ceil(PANEL)];
        product.matrix.panels_of_token(self.isa, first, self.inputs, self.x, outputs);
        if let Some(bias) = product.bias {
            let biases = &bias[first * PANEL..];
            outputs.as_flattened_mut().iter_mut().zip(biases).for_each(|(output, bias)| *output += bias);
        }
        for (row, outputs) in row.chunks_mut(PANEL).zip(outputs) {
            update(row, outputs, &combine);
        }
    }

    /// Panel `index`, for all tokens.
    fn panel(
        &self,
        product: &Product<'_>,
        index: usize,
        tile: &mut Tile<'_>,
        combine: impl Fn(&mut [f32; PANEL], &[f32; PANEL]),
    ) {
        let bias = product.bias.map(|bias| {
            let mut lanes = [0.0; PANEL];
            let bias = &bias[index * PANEL..bias.len().min((index + 1) * PANEL)];
            lanes[..bias.len()].copy_from_slice(bias);
            lanes
        });
        let combine = |row: &mut [f32; PANEL], outputs: &[f32; PANEL]| match bias {
            None => combine(row, outputs),
            Some(bias) => combine(row, &std::array::from_fn(|lane| outputs[lane] + bias[lane])),
        };
        product.matrix.panel(self.isa, index, self.inputs, self.x, 0..self.tokens, &mut |token, outputs| {
            update(tile.row(token), outputs, combine);
        });
    }
}

/// Makes `combine(row, outputs)` of a row, which is shorter than a panel at the end of a matrix.
#[inline(always)]
fn update(row: &mut [f32], outputs: &[f32; PANEL], combine: impl Fn(&mut [f32; PANEL], &[f32; PANEL])) {
    // Of known length, so that a row is a few registers rather than a call of memcpy.
    if let Ok(row) = row.try_into() {
        combine(row, outputs);
    } else {
        let mut lanes = [0.0; PANEL];
        lanes[..row.len()].copy_from_slice(row);
        combine(&mut lanes, outputs);
        row.copy_from_slice(&lanes[..row.len()]);
    }
}

/// A [`combine`](Operand::multiply) that keeps the outputs.
pub(super) fn keep(row: &mut [f32; PANEL], outputs: &[f32; PANEL]) {
    *row = *outputs;
}

/// One that adds them to what is there.
pub(super) fn add(row: &mut [f32; PANEL], outputs: &[f32; PANEL]) {
    *row = std::array::from_fn(|lane| row[lane] + outputs[lane]);
}

//! A forward pass as a flat list of operations over numbered buffers.
//!
//! Knows who follows whom and nothing of how it is done. A [`Program`] is made once for a model: recorded (`record.rs`),
//! fused (`fuse.rs`), and its values put into as few buffers as their lives allow. Invariant: two values that are needed
//! at the same time have different buffers.

use crate::model::{Gate, Sight};

/// Most matrices that are multiplied by one input in one operation.
pub(crate) const MOST: usize = 3;

/// A matrix as far as a plan knows it.
pub(crate) trait Weight: Copy {
    /// Outputs.
    fn rows(&self) -> usize;

    /// Inputs.
    fn cols(&self) -> usize;

    /// Bytes of the weights in memory.
    fn bytes(&self) -> usize;
}

/// A value of `[tokens, width]`: while recording, each its own; in a finished program, the number of its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Value(pub usize);

/// A matrix with its bias.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<'m, W> {
    pub matrix: W,
    /// `[rows]`
    pub bias: Option<&'m [f32]>,
}

/// An RMS norm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm<'m> {
    /// `[width]`
    pub weight: &'m [f32],
    /// Added to the mean square.
    pub eps: f32,
}

/// An RMS norm over each head and a rotation of it, as a model has them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Turn<'m> {
    pub norm: Option<Norm<'m>>,
    /// Which rotation.
    pub rotation: Option<usize>,
}

/// What becomes of the outputs of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Epilogue {
    /// They are stored, each in its value.
    Store,
    /// They are added to what stands in the first value.
    Add,
    /// Of two, what the gate makes of the first, times the second, is left in the first; the second is scratch.
    Gate(Gate),
}

/// One step of a pass.
#[derive(Debug, Clone)]
pub(crate) enum Op<'m, W> {
    /// Rows of a table, times `scale`.
    Embed { table: W, scale: f32, out: Value },
    /// RMS norm of each row.
    Norm { x: Value, norm: Norm<'m>, out: Value },
    /// Products of one input, normed first if there is a norm, with up to [`MOST`] matrices.
    Products {
        x: Value,
        norm: Option<Norm<'m>>,
        products: Vec<Product<'m, W>>,
        outs: Vec<Value>,
        epilogue: Epilogue,
    },
    /// Norm and rotation of the heads of each row, in place.
    Turn { x: Value, heads: usize, turn: Turn<'m> },
    /// Turns `q` and `k`, takes `k` and `v` into the cache of the layer, attends to what `sight` says.
    Attention { layer: usize, q: Value, k: Value, v: Value, turns: [Turn<'m>; 2], sight: Sight, out: Value },
    /// A short convolution over `x` and what the layer has seen before; the kernel is `[width, taps]`.
    ShortConv { layer: usize, x: Value, kernel: &'m [f32], width: usize, out: Value },
    /// `gate = by(gate) · up`.
    Gate { by: Gate, gate: Value, up: Value, width: usize },
    /// `to += from`.
    Add { to: Value, from: Value, width: usize },
}

/// A list of operations, and the widths of the buffers they work on.
#[derive(Debug, Clone)]
pub(crate) struct Program<'m, W> {
    pub ops: Vec<Op<'m, W>>,
    /// Width of each buffer.
    pub widths: Vec<usize>,
    /// Where the input stands, if it is not token ids.
    pub input: Option<Value>,
    /// Where the result stands.
    pub output: Value,
}

impl<W> Op<'_, W> {
    /// Shows every value that the operation reads or writes.
    pub(crate) fn visit(&mut self, see: &mut dyn FnMut(&mut Value)) {
        match self {
            Self::Embed { out, .. } => see(out),
            Self::Norm { x, out, .. } | Self::ShortConv { x, out, .. } => [x, out].into_iter().for_each(see),
            Self::Products { x, outs, .. } => std::iter::once(x).chain(outs).for_each(see),
            Self::Turn { x, .. } => see(x),
            Self::Attention { q, k, v, out, .. } => [q, k, v, out].into_iter().for_each(see),
            Self::Gate { gate: a, up: b, .. } | Self::Add { to: a, from: b, .. } => {
                [a, b].into_iter().for_each(see)
            }
        }
    }
}

impl<'m, W: Weight> Program<'m, W> {
    /// Puts the values of `ops`, whose widths are given, into buffers that are used again as soon as nobody needs what
    /// is in them.
    pub(crate) fn new(
        mut ops: Vec<Op<'m, W>>,
        widths: &[usize],
        input: Option<Value>,
        output: Value,
    ) -> Self {
        let mut last_use = vec![0; widths.len()];
        for (at, op) in ops.iter_mut().enumerate() {
            op.visit(&mut |value| last_use[value.0] = at);
        }
        last_use[output.0] = usize::MAX;
        let mut buffers =
            Buffers { of_value: vec![None; widths.len()], widths: Vec::new(), free: Vec::new() };
        let input = input.map(|input| buffers.place(input, widths));
        for (at, op) in ops.iter_mut().enumerate() {
            let mut ending = Vec::new();
            op.visit(&mut |value| {
                if last_use[value.0] == at && !ending.contains(value) {
                    ending.push(*value);
                }
                *value = buffers.place(*value, widths);
            });
            for value in ending {
                buffers.free.extend(buffers.of_value[value.0]);
            }
        }
        let output = buffers.place(output, widths);
        Self { ops, widths: buffers.widths, input, output }
    }

    /// The widest input of a product.
    pub(crate) fn widest_input(&self) -> usize {
        let widths = self.ops.iter().map(|op| match op {
            Op::Products { products, .. } => products.first().map_or(0, |p| p.matrix.cols()),
            _ => 0,
        });
        widths.max().unwrap_or(0)
    }

    /// Bytes of the weights that a pass of one token reads.
    pub(crate) fn weight_bytes(&self) -> usize {
        let norm = |norm: &Option<Norm<'_>>| norm.map_or(0, |norm| size_of_val(norm.weight));
        let turn = |turn: &Turn<'_>| norm(&turn.norm);
        let of_op = |op: &Op<'_, W>| match op {
            Op::Embed { table, .. } => table.bytes() / table.rows(),
            Op::Norm { norm: n, .. } => norm(&Some(*n)),
            Op::Products { products, norm: n, .. } => {
                let product = |p: &Product<'_, W>| p.matrix.bytes() + p.bias.map_or(0, size_of_val);
                products.iter().map(product).sum::<usize>() + norm(n)
            }
            Op::Turn { turn: t, .. } => turn(t),
            Op::Attention { turns, .. } => turns.iter().map(turn).sum(),
            Op::ShortConv { kernel, .. } => size_of_val(*kernel),
            Op::Gate { .. } | Op::Add { .. } => 0,
        };
        self.ops.iter().map(of_op).sum()
    }
}

/// Which value is where, while a program is laid out.
struct Buffers {
    of_value: Vec<Option<usize>>,
    widths: Vec<usize>,
    free: Vec<usize>,
}

impl Buffers {
    /// The buffer of `value`: the one it has, or the free one whose width is nearest, or a new one.
    fn place(&mut self, value: Value, widths: &[usize]) -> Value {
        if let Some(buffer) = self.of_value[value.0] {
            return Value(buffer);
        }
        let width = widths[value.0];
        let nearest = (0..self.free.len()).min_by_key(|at| self.widths[self.free[*at]].abs_diff(width));
        let buffer = match nearest {
            Some(at) => self.free.swap_remove(at),
            None => {
                self.widths.push(0);
                self.widths.len() - 1
            }
        };
        self.widths[buffer] = self.widths[buffer].max(width);
        self.of_value[value.0] = Some(buffer);
        Value(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of nothing.
    impl Weight for () {
        fn rows(&self) -> usize {
            0
        }

        fn cols(&self) -> usize {
            0
        }

        fn bytes(&self) -> usize {
            0
        }
    }

    #[test]
    fn values_share_a_buffer_only_when_their_lives_do_not_meet() {
        let add = |to, from| -> Op<'_, ()> { Op::Add { to: Value(to), from: Value(from), width: 1 } };
        // 0 lives throughout, 1 until it is added, 2 begins there, 3 after 1 has ended.
        let program =
            Program::new(vec![add(0, 1), add(2, 0), add(3, 2), add(0, 3)], &[8, 4, 6, 5], None, Value(0));
        let mut seen = Vec::new();
        for mut op in program.ops.clone() {
            op.visit(&mut |value| seen.push(value.0));
        }
        assert_eq!(seen, [0, 1, 1, 0, 2, 1, 0, 2]);
        assert_eq!(program.widths, [8, 6, 5]);
        assert_eq!(program.output, Value(0));
    }
}

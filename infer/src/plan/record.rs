//! The decoder's forward function, run once to write down what it asks for.
//!
//! Computes nothing. Invariant: what is recorded is what [`Decoder::forward`] says, in its order; an operation in place
//! gives back the value it took.

use super::fuse::fuse;
use super::program::{Epilogue, MOST, Norm, Op, Product, Program, Turn, Value, Weight};
use crate::model::{AttentionShape, Decoder, Exec, Gate, Linear, Rope, Sight};
use crate::{Error, Result};

/// A matrix that a model keeps, seen by a plan as what its executor multiplies by.
pub(crate) trait Matrix {
    /// What operations refer to.
    type View<'m>: Weight
    where
        Self: 'm;

    /// The matrix as operations refer to it.
    ///
    /// # Errors
    /// When the matrix can't be used.
    fn view(&self) -> Result<Self::View<'_>>;
}

/// A model as two programs, and what they refer to by number.
#[derive(Debug, Clone)]
pub(crate) struct Plan<'m, W> {
    /// From ids to normed hidden states.
    pub body: Program<'m, W>,
    /// From hidden states to logits.
    pub head: Program<'m, W>,
    /// The rotary frequencies that [`Turn`]s name.
    pub ropes: Vec<Rope>,
    /// Width of the logits.
    pub vocab: usize,
}

impl<'m, W: Weight> Plan<'m, W> {
    /// The plan of a model, with operations fused where that pays.
    ///
    /// # Errors
    /// When a matrix can't be used.
    pub(crate) fn new<M: Matrix<View<'m> = W> + 'm>(decoder: &'m Decoder<M, Vec<f32>>) -> Result<Self> {
        Self::with(decoder, fuse)
    }

    /// The plan of a model, its operations as they were recorded: the specification of the fused one.
    #[cfg(test)]
    pub(crate) fn unfused<M: Matrix<View<'m> = W> + 'm>(decoder: &'m Decoder<M, Vec<f32>>) -> Result<Self> {
        Self::with(decoder, |ops| ops)
    }

    fn with<M: Matrix<View<'m> = W> + 'm>(
        decoder: &'m Decoder<M, Vec<f32>>,
        fuse: impl Fn(Vec<Op<'m, W>>) -> Vec<Op<'m, W>>,
    ) -> Result<Self> {
        let decoder = decoder.as_ref();
        let mut body = Recorder::<M>::new();
        let hidden = decoder.forward(&mut body, &[])?;
        let mut head = Recorder::<M>::new();
        let input = head.value(decoder.config.hidden_size);
        let logits = decoder.logits(&mut head, &input)?;
        Ok(Self {
            body: Program::new(fuse(body.ops), &body.widths, None, hidden),
            head: Program::new(fuse(head.ops), &head.widths, Some(input), logits),
            ropes: body.ropes,
            vocab: decoder.config.vocab_size,
        })
    }
}

/// Writes operations down.
struct Recorder<'m, M: Matrix + 'm> {
    ops: Vec<Op<'m, M::View<'m>>>,
    widths: Vec<usize>,
    ropes: Vec<Rope>,
}

impl<'m, M: Matrix + 'm> Recorder<'m, M> {
    fn new() -> Self {
        Self { ops: Vec::new(), widths: Vec::new(), ropes: Vec::new() }
    }

    fn value(&mut self, width: usize) -> Value {
        self.widths.push(width);
        Value(self.widths.len() - 1)
    }

    fn products(&mut self, x: Value, products: Vec<Product<'m, M::View<'m>>>) -> Vec<Value> {
        let outs: Vec<Value> = products.iter().map(|p| self.value(p.matrix.rows())).collect();
        let (norm, epilogue) = (None, Epilogue::Store);
        self.ops.push(Op::Products { x, norm, products, outs: outs.clone(), epilogue });
        outs
    }
}

impl<'m, M: Matrix + 'm> Exec for Recorder<'m, M> {
    type T = Value;
    type M = &'m M;
    type V = &'m Vec<f32>;
    type Error = Error;

    fn embed(&mut self, table: &&'m M, _: &[u32], scale: f32) -> Result<Value> {
        let table = table.view()?;
        let out = self.value(table.cols());
        self.ops.push(Op::Embed { table, scale, out });
        Ok(out)
    }

    fn rms_norm(&mut self, x: &Value, weight: &&'m Vec<f32>, eps: f32) -> Result<Value> {
        let out = self.value(self.widths[x.0]);
        self.ops.push(Op::Norm { x: *x, norm: Norm { weight, eps }, out });
        Ok(out)
    }

    fn linears<const N: usize>(
        &mut self,
        x: &Value,
        linears: [&Linear<&'m M, &'m Vec<f32>>; N],
    ) -> Result<[Value; N]> {
        const { assert!(N <= MOST) };
        let product = |linear: &Linear<&'m M, &'m Vec<f32>>| {
            Ok(Product { matrix: linear.weight.view()?, bias: linear.bias.map(Vec::as_slice) })
        };
        let products = linears.into_iter().map(product).collect::<Result<Vec<_>>>()?;
        let outs = self.products(*x, products);
        Ok(std::array::from_fn(|at| outs[at]))
    }

    fn unembed(&mut self, x: &Value, table: &&'m M) -> Result<Value> {
        let outs = self.products(*x, vec![Product { matrix: table.view()?, bias: None }]);
        Ok(outs[0])
    }

    fn head_norm(&mut self, x: Value, weight: &&'m Vec<f32>, heads: usize, eps: f32) -> Result<Value> {
        let turn = Turn { norm: Some(Norm { weight, eps }), rotation: None };
        self.ops.push(Op::Turn { x, heads, turn });
        Ok(x)
    }

    fn rope(&mut self, x: Value, heads: usize, rope: &Rope) -> Result<Value> {
        let known = self.ropes.iter().position(|known| known == rope);
        let rotation = known.unwrap_or_else(|| {
            self.ropes.push(rope.clone());
            self.ropes.len() - 1
        });
        self.ops.push(Op::Turn { x, heads, turn: Turn { norm: None, rotation: Some(rotation) } });
        Ok(x)
    }

    fn attention(
        &mut self,
        layer: usize,
        q: Value,
        k: Value,
        v: Value,
        _: &AttentionShape,
        sight: Sight,
    ) -> Result<Value> {
        let out = self.value(self.widths[q.0]);
        self.ops.push(Op::Attention { layer, q, k, v, turns: [Turn::default(); 2], sight, out });
        Ok(out)
    }

    fn short_conv(&mut self, layer: usize, x: Value, kernel: &&'m Vec<f32>) -> Result<Value> {
        let width = self.widths[x.0] / 3;
        let out = self.value(width);
        self.ops.push(Op::ShortConv { layer, x, kernel, width, out });
        Ok(out)
    }

    fn gate(&mut self, by: Gate, gate: Value, up: Value) -> Result<Value> {
        self.ops.push(Op::Gate { by, gate, up, width: self.widths[gate.0] });
        Ok(gate)
    }

    fn add(&mut self, a: Value, b: Value) -> Result<Value> {
        self.ops.push(Op::Add { to: a, from: b, width: self.widths[a.0] });
        Ok(a)
    }
}

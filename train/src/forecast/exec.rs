//! The decoder carried out on sizes: what each operation of training takes, what it keeps for the backward pass, and what that takes.
//!
//! Every operation here stands for the one of `crate::ops` with its name, on the CPU or in kernels, and knows of it only how many bytes it
//! holds when. Knows no values. Invariant: a block lives exactly as long as its tensor would.

use std::convert::Infallible;

use qat_infer::model::{AttentionShape, Exec, Gate, Linear, Rope, Sight};

use super::{
    heap::{Block, Heap, Part, Place},
    tape::{Gradient, Id, Node, Tape},
};
use crate::ops::gpu::Path;

/// Bytes of an f32.
pub(super) const FLOAT: u64 = 4;
/// Rows of partial gradients of a norm's weight on a GPU.
const NORM_PARTIALS: u64 = 1024;
/// Scores of attention on a GPU that are in memory at a time, unless those of one key head are more.
const SCORES: u64 = 1 << 25;

/// A tensor's number, and where its elements are.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub id: Id,
    pub block: Block,
    pub elements: u64,
}

/// A matrix as the forward pass sees it.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    pub value: Value,
    pub rows: u64,
    pub cols: u64,
    /// Its inputs are rounded per token.
    pub int8_inputs: bool,
    /// What it makes is rounded as a cache of keys and values does.
    pub cached: bool,
}

/// Executes a decoder over `windows` of `ctx` tokens.
#[derive(Debug)]
pub(super) struct SizeExec<'a> {
    pub heap: &'a Heap,
    pub tape: &'a Tape,
    pub path: Path,
    pub windows: u64,
    pub ctx: u64,
    /// Bytes of an element of what lies between operations, and of a matrix that is multiplied by.
    pub element: u64,
    /// Whether the matrices of the layer at hand round keys and values.
    pub cached: bool,
}

/// Where tensors of this path lie.
pub(super) fn place(path: Path) -> Place {
    match path {
        Path::Cpu => Place::Host,
        Path::Kernels => Place::Device,
    }
}

impl SizeExec<'_> {
    fn tokens(&self) -> u64 {
        self.windows * self.ctx
    }

    pub fn on_cpu(&self) -> bool {
        self.path == Path::Cpu
    }

    /// A new tensor of so many elements.
    pub fn make(&self, part: Part, elements: u64) -> Value {
        let block = self.heap.take(place(self.path), part, elements * self.element);
        Value { id: self.tape.id(), block, elements }
    }

    fn activation(&self, elements: u64) -> Value {
        self.make(Part::Activations, elements)
    }

    /// A matrix in the type that is computed in, where it has another one.
    pub fn operand(&self, matrix: &Value) -> Value {
        if matrix.block.bytes() == matrix.elements * self.element {
            return matrix.clone();
        }
        let copy = self.make(Part::Rounded, matrix.elements);
        self.write(&copy, &[(matrix, Gradient::of_variable(matrix.elements))], [], 0);
        copy
    }

    /// Writes down that `value` was made of `inputs`, each with the gradient that comes back to it; until then `kept` is held, and
    /// meanwhile so many elements of `scratch`.
    pub fn write(
        &self,
        value: &Value,
        inputs: &[(&Value, Gradient)],
        kept: impl IntoIterator<Item = Block>,
        scratch: u64,
    ) {
        let inputs = inputs.iter().map(|(input, gradient)| (input.id, *gradient)).collect();
        let kept = kept.into_iter().collect();
        self.tape.write(Node { value: value.id, inputs, kept, scratch: scratch * self.element, again: None });
    }

    fn like(&self, value: &Value) -> Gradient {
        Gradient::New(Part::Activations, value.elements * self.element)
    }

    /// An elementwise operation whose backward pass reads its inputs and, since the CPU's record keeps it, holds its value.
    fn kept_values<'v>(
        &self,
        inputs: impl IntoIterator<Item = &'v Value>,
        value: &Value,
        on_gpu: bool,
    ) -> Vec<Block> {
        let inputs = inputs.into_iter().map(|input| input.block.clone());
        match self.path {
            Path::Cpu => inputs.chain([value.block.clone()]).collect(),
            Path::Kernels if on_gpu => inputs.collect(),
            Path::Kernels => Vec::new(),
        }
    }

    fn norm(&self, x: &Value, weight: &Value) -> Value {
        let (y, width) = (self.activation(x.elements), weight.elements);
        let partials = if self.on_cpu() { 0 } else { (x.elements / width).min(NORM_PARTIALS) * width };
        let inputs = [(x, self.like(x)), (weight, Gradient::of_variable(width))];
        self.write(&y, &inputs, self.kept_values([x, weight], &y, true), partials);
        y
    }

    /// `x · Wᵀ`, by itself.
    pub fn product(&self, x: &Value, matrix: &Matrix, part: Part) -> Value {
        let operand = self.operand(&matrix.value);
        let y = self.make(part, x.elements / matrix.cols * matrix.rows);
        let weights = Gradient::New(Part::Gradients, operand.block.bytes());
        let kept = [x.block.clone(), operand.block.clone()];
        self.write(&y, &[(x, self.like(x)), (&operand, weights)], kept, 0);
        y
    }

    fn rounded(&self, x: &Value) -> Value {
        let y = self.activation(x.elements);
        self.write(&y, &[(x, Gradient::Same)], self.kept_values([x], &y, false), 0);
        y
    }

    /// Keys or values as a cache gives them back; nothing of them is kept.
    fn as_cached(&self, x: Value) -> Value {
        if !self.cached {
            return x;
        }
        let y = self.activation(x.elements);
        self.write(&y, &[(&x, Gradient::Same)], [], 0);
        y
    }

    fn attention_on_cpu(&self, [q, k, v]: [&Value; 3]) -> Value {
        // Made head by head, then put in the order of tokens: held twice.
        let by_head = self.activation(q.elements);
        let y = self.activation(q.elements);
        drop(by_head);
        let inputs = [q, k, v].map(|x| (x, self.like(x)));
        self.write(&y, &inputs, self.kept_values([q, k, v], &y, true), q.elements);
        y
    }

    fn attention_on_gpu(&self, qkv: [&Value; 3], shape: &AttentionShape) -> Value {
        let units = self.windows * shape.kv_heads as u64;
        let of_unit = (shape.heads / shape.kv_heads) as u64 * self.ctx * self.ctx;
        let scores = (SCORES / of_unit).clamp(1, units) * of_unit;
        let by_head = qkv.map(|x| self.activation(x.elements));
        let chunk = self.activation(scores);
        let mixed = self.activation(qkv[0].elements);
        drop(chunk);
        let y = self.activation(qkv[0].elements);
        drop(mixed);
        // Weights and their gradient; the gradients of all three, and that of the value, by head.
        let scratch = 2 * scores + qkv.iter().map(|x| x.elements).sum::<u64>() + qkv[0].elements;
        let inputs = qkv.map(|x| (x, self.like(x)));
        self.write(&y, &inputs, by_head.map(|x| x.block), scratch);
        y
    }
}

impl Exec for SizeExec<'_> {
    type T = Value;
    type M = Matrix;
    type V = Value;
    type Error = Infallible;

    fn embed(&mut self, table: &Matrix, _: &[u32], _: f32) -> Result<Value, Infallible> {
        let y = self.activation(self.tokens() * table.cols);
        let gradient = Gradient::of_variable(table.rows * table.cols);
        self.write(&y, &[(&table.value, gradient)], self.kept_values([&table.value], &y, true), 0);
        Ok(y)
    }

    fn rms_norm(&mut self, x: &Value, weight: &Value, _: f32) -> Result<Value, Infallible> {
        Ok(self.norm(x, weight))
    }

    fn linears<const N: usize>(
        &mut self,
        x: &Value,
        linears: [&Linear<Matrix, Value>; N],
    ) -> Result<[Value; N], Infallible> {
        self.cached = linears.iter().any(|linear| linear.weight.cached);
        let rounded = linears.iter().any(|linear| linear.weight.int8_inputs).then(|| self.rounded(x));
        Ok(linears.map(|linear| {
            let input = rounded.as_ref().filter(|_| linear.weight.int8_inputs).unwrap_or(x);
            let y = self.product(input, &linear.weight, Part::Activations);
            let Some(bias) = &linear.bias else { return y };
            let biased = self.activation(y.elements);
            let of_bias = Gradient::of_variable(bias.elements);
            self.write(&biased, &[(&y, Gradient::Same), (bias, of_bias)], [], 0);
            biased
        }))
    }

    fn unembed(&mut self, x: &Value, table: &Matrix) -> Result<Value, Infallible> {
        Ok(self.product(x, table, Part::Logits))
    }

    fn head_norm(&mut self, x: Value, weight: &Value, _: usize, _: f32) -> Result<Value, Infallible> {
        Ok(self.norm(&x, weight))
    }

    fn rope(&mut self, x: Value, _: usize, _: &Rope) -> Result<Value, Infallible> {
        let y = self.activation(x.elements);
        self.write(&y, &[(&x, self.like(&x))], self.kept_values([&x], &y, false), 0);
        Ok(y)
    }

    fn attention(
        &mut self,
        _: usize,
        q: Value,
        k: Value,
        v: Value,
        shape: &AttentionShape,
        _: Sight,
    ) -> Result<Value, Infallible> {
        let (k, v) = (self.as_cached(k), self.as_cached(v));
        Ok(match self.path {
            Path::Cpu => self.attention_on_cpu([&q, &k, &v]),
            Path::Kernels => self.attention_on_gpu([&q, &k, &v], shape),
        })
    }

    fn short_conv(&mut self, _: usize, x: Value, kernel: &Value) -> Result<Value, Infallible> {
        let y = self.activation(x.elements / 3);
        let of_kernel = Gradient::of_variable(kernel.elements);
        let inputs = [(&x, self.like(&x)), (kernel, of_kernel)];
        self.write(&y, &inputs, self.kept_values([&x, kernel], &y, true), 0);
        Ok(y)
    }

    fn gate(&mut self, _: Gate, gate: Value, up: Value) -> Result<Value, Infallible> {
        let y = self.activation(gate.elements);
        let inputs = [(&gate, self.like(&gate)), (&up, self.like(&up))];
        self.write(&y, &inputs, self.kept_values([&gate, &up], &y, true), 0);
        Ok(y)
    }

    fn add(&mut self, a: Value, b: Value) -> Result<Value, Infallible> {
        let y = self.activation(a.elements);
        self.write(&y, &[(&a, Gradient::Same), (&b, Gradient::Same)], [], 0);
        Ok(y)
    }
}

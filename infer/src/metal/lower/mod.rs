//! A program of the plan becomes calls of kernels.
//!
//! With one token an operation is one call: norm, rounding, products and what is done with them; or the turning of query and
//! key, the writing of the cache and attention. With more tokens, inputs are normed and rounded by a call of their own,
//! and so are queries and keys turned before attention. Matrices that are stored differently are multiplied by in
//! different calls.
//!
//! Knows the places of the kernels' arguments, no device. Invariant: what a call touches is bound with its length, so that
//! the list knows who waits for whom.

mod attention;
mod products;

use qat_quant::kernels::metal::{Dispatch, Gather};

use super::buffers::WORD;
use super::kernels::{Argmax, Elementwise, ShortConv, TopK};
use super::list::{Access, Argument, Binding, Call, List, Span};
use super::matrix::Matrix;
use super::record::{Script, Tail};
use crate::model::Gate;
use crate::plan::{Norm, Op, Program, Value, Weight as _};
use crate::{Error, Result};

pub(super) use attention::attention_kernel;

/// Which of the two programs is lowered.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// From ids to hidden states.
    Body,
    /// From hidden states that the body left, from row `first` on, to logits.
    Head { first: usize },
}

/// A list in the making.
pub(super) struct Lowering<'s, 'm> {
    script: &'s Script<'m>,
    part: Part,
    tokens: usize,
    /// Positions before the first of them.
    past: usize,
    layer: Option<usize>,
    pub(super) list: List,
}

impl<'s, 'm> Lowering<'s, 'm> {
    /// A list for `tokens` rows.
    ///
    /// # Panics
    /// When there are none, or more than there is room for.
    pub(super) fn new(script: &'s Script<'m>, part: Part, tokens: usize, past: usize) -> Self {
        let most = if matches!(part, Part::Body) { script.options.pass() } else { script.options.logit_rows };
        assert!((1..=most).contains(&tokens), "{tokens} rows in buffers for {most}");
        Self { script, part, tokens, past, layer: None, list: List::default() }
    }

    /// The same, going on where `list` ends.
    pub(super) fn after(self, list: List) -> Self {
        Self { list, ..self }
    }

    /// Appends the calls of a program.
    pub(super) fn program(&mut self, program: &Program<'m, &'m Matrix>) -> Result<()> {
        for (at, op) in program.ops.iter().enumerate() {
            // A layer begins with the products that its attention or convolution reads.
            if let Some(Op::Attention { layer, .. } | Op::ShortConv { layer, .. }) = program.ops.get(at + 1) {
                self.layer = Some(*layer);
            }
            match op {
                Op::Embed { table, scale, out } => self.embed(table, *scale, *out)?,
                Op::Norm { x, norm, out } => {
                    // The one after the last layer belongs to none.
                    if at + 1 == program.ops.len() {
                        self.layer = None;
                    }
                    self.norm(*x, *norm, *out)?;
                }
                Op::Products { x, norm, products, outs, epilogue } => {
                    self.products(*x, *norm, products, outs, *epilogue)?;
                }
                Op::Attention { layer, q, k, v, turns, sight, out } => {
                    self.attention((*layer, *sight), [*q, *k, *v], turns, *out)?;
                }
                Op::ShortConv { layer, x, kernel, width, out } => {
                    self.short_conv(*layer, *x, kernel, *width, *out)?;
                }
                Op::Gate { by, gate, up, width } => self.gate(*by, [*gate, *up], *width),
                Op::Add { to, from, width } => self.combine("add", Elementwise::Add, [*to, *from], *width),
                Op::Turn { .. } => {
                    return Err(Error::Invalid(
                        "heads that are turned elsewhere than before attention: \
                         Metal has no kernel for that; use --device cpu"
                            .into(),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Appends what is done with the logits of one token.
    pub(super) fn choose(&mut self, tail: Tail) {
        let Script { buffers, plan, options, .. } = self.script;
        let logits = self.value(plan.head.output, plan.vocab);
        match tail {
            Tail::Nothing | Tail::Logits => {}
            Tail::Argmax => {
                let (vocab, text) = (plan.vocab as u32, options.context as u32 + 1);
                let spans = [
                    (0, logits, Access::Read),
                    (2, buffers.words(buffers.ids, 1), Access::Write),
                    (3, buffers.whole(buffers.text), Access::ReadWrite),
                    (4, buffers.whole(buffers.step), Access::ReadWrite),
                ];
                self.call("argmax", Argmax { vocab, text, advance: true }.dispatch(), 1, spans);
            }
            Tail::Top(k) => {
                let [values, ids] = buffers.top.map(|top| buffers.words(top, k as usize));
                let spans = [(0, logits, Access::Read), (2, values, Access::Write), (3, ids, Access::Write)];
                self.call("top k", TopK { vocab: plan.vocab as u32, k }.dispatch(), 1, spans);
            }
        }
    }

    fn embed(&mut self, table: &Matrix, factor: f32, out: Value) -> Result<()> {
        let buffers = &self.script.buffers;
        let kernel = Gather {
            storage: table.storage(),
            rows: table.rows() as u32,
            cols: table.cols() as u32,
            tensor_scale: table.tensor_scale(),
            factor,
            tokens: self.tokens as u32,
        };
        let spans = [
            (0, buffers.words(buffers.ids, self.tokens), Access::Read),
            (2, self.value(out, table.cols()), Access::Write),
            (3, self.matrix(table)?, Access::Read),
        ];
        self.call("embed", kernel.dispatch(), 1, spans);
        Ok(())
    }

    /// A norm by itself: of what no product reads.
    fn norm(&mut self, x: Value, norm: Norm<'_>, out: Value) -> Result<()> {
        let width = norm.weight.len();
        let (x, out) = (self.value(x, width), self.value(out, width));
        self.norm_rows("norm", x, width, Some(norm), false, out)
    }

    /// A convolution, and what its layer remembers.
    fn short_conv(&mut self, layer: usize, x: Value, kernel: &[f32], width: usize, out: Value) -> Result<()> {
        let buffers = &self.script.buffers;
        let Some(recent) = buffers.recent.get(&layer) else {
            return Err(Error::Invalid(format!("layer {layer} convolves, and has nothing to remember by")));
        };
        let taps = (kernel.len() / width) as u32;
        let dispatch = ShortConv { width: width as u32, taps, tokens: self.tokens as u32 }.dispatch();
        let spans = [
            (0, self.value(x, 3 * width), Access::Read),
            (1, self.vector(kernel)?, Access::Read),
            (2, self.value(out, width), Access::Write),
            (3, buffers.whole(*recent), Access::ReadWrite),
            (4, buffers.whole(buffers.step), Access::Read),
        ];
        self.call("convolution", dispatch, 5, spans);
        Ok(())
    }

    /// `gate = by(gate) · up`, row by row.
    pub(super) fn gate(&mut self, by: Gate, values: [Value; 2], width: usize) {
        let (label, kernel) = match by {
            Gate::Silu => ("swiglu", Elementwise::Swiglu),
            Gate::Relu2 => ("relu²", Elementwise::Relu2),
            Gate::GeluTanh => ("gelu", Elementwise::Gelu),
        };
        self.combine(label, kernel, values, width);
    }

    /// `a = combine(a, b)`, row by row.
    fn combine(&mut self, label: &str, kernel: Elementwise, [a, b]: [Value; 2], width: usize) {
        let spans = [(0, self.value(a, width), Access::ReadWrite), (1, self.value(b, width), Access::Read)];
        self.call(label, kernel.dispatch((self.tokens * width) as u32), 2, spans);
    }

    /// Appends a call whose shape is bound at `shape_place`.
    pub(super) fn call(
        &mut self,
        label: &str,
        dispatch: Dispatch,
        shape_place: u16,
        spans: impl IntoIterator<Item = (u16, Span, Access)>,
    ) {
        let Dispatch { launch, shape, bytes_read, bytes_written } = dispatch;
        let mut bindings = vec![Binding { place: shape_place, argument: Argument::Bytes(shape) }];
        let buffers = spans.into_iter();
        bindings.extend(
            buffers
                .map(|(place, span, access)| Binding { place, argument: Argument::Buffer { span, access } }),
        );
        bindings.sort_by_key(|binding| binding.place);
        let (label, layer) = (label.to_owned(), self.layer);
        self.list.push(Call { label, layer, launch, bindings, barrier: false, bytes_read, bytes_written });
    }

    /// The rows of a value that is `width` wide.
    pub(super) fn value(&self, value: Value, width: usize) -> Span {
        let Script { buffers, plan, .. } = self.script;
        match self.part {
            Part::Body => buffers.words(buffers.body[value.0], self.tokens * width),
            Part::Head { first } if plan.head.input == Some(value) => {
                let rows = buffers.words(buffers.body[plan.body.output.0], self.tokens * width);
                Span { offset: (first * width) as u64 * WORD, ..rows }
            }
            Part::Head { .. } => buffers.words(buffers.head[value.0], self.tokens * width),
        }
    }

    fn matrix(&self, matrix: &Matrix) -> Result<Span> {
        let span = self.script.buffers.matrix(matrix);
        span.ok_or_else(|| Error::tensor(matrix.name(), "is in none of the model's buffers"))
    }

    pub(super) fn vector(&self, vector: &[f32]) -> Result<Span> {
        let span = self.script.buffers.vector(vector);
        span.ok_or_else(|| Error::Invalid("a norm or bias is in none of the model's buffers".into()))
    }
}

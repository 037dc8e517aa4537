//! The decoder's one forward function, run once to write down the graph that it asks for.
//!
//! Computes nothing. Invariants: what is recorded is what [`Decoder::forward`](crate::model::Decoder::forward) says, in its
//! order; a node has the name of the tensor that it works with, without its `.weight`, so that a reader finds one by the
//! other.

use std::collections::BTreeMap;

use super::graph::{Dim, Graph, elements};
use super::proto::{INT32, INT64, NodeProto};
use super::weights::{Matrix, Vector, Writer};
use crate::model::{AttentionShape, Exec, Gate, Linear, Rope, Sight};
use crate::{Error, Result};

const BATCH: Dim = Dim::Named("batch_size");
const TOKENS: Dim = Dim::Named("sequence_length");
/// Name of the tokens of a call.
const IDS: &str = "input_ids";
/// Name of the mask over what was seen and what is given: ones, and zeros before the beginning of a shorter sequence.
const MASK: &str = "attention_mask";
/// Name of the result.
const LOGITS: &str = "logits";
/// Name of the last position that is seen, per sequence.
const LAST_POSITION: &str = "attention_mask/last_position";
/// Name of the head of a model whose head is its embedding.
pub(super) const TIED_HEAD: &str = "lm_head";
/// Name of the number of positions that are seen.
const POSITIONS: &str = "attention_mask/positions";

/// An activation, `[batch, tokens, width]`.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub name: String,
    pub width: usize,
    /// The rotation that attention is to do.
    rope: Option<usize>,
}

/// Writes operations down.
pub(super) struct Recorder<'a> {
    pub(super) graph: Graph,
    pub(super) writer: Writer<'a>,
    /// Longest context for which there are angles.
    context: usize,
    ropes: Vec<Rope>,
    /// Activations rounded to 8 bits, by the name of what they are rounded from.
    pub(super) rounded: BTreeMap<String, String>,
    /// Sums that nobody has asked for yet, by name: a norm that follows computes both in one node.
    sums: BTreeMap<String, [String; 2]>,
}

impl<'a> Recorder<'a> {
    pub fn new(writer: Writer<'a>, context: usize) -> Self {
        let mut recorder = Self {
            graph: Graph::default(),
            writer,
            context,
            ropes: Vec::new(),
            rounded: BTreeMap::new(),
            sums: BTreeMap::new(),
        };
        recorder.graph.input(IDS, INT64, &[BATCH, TOKENS]);
        recorder.graph.input(MASK, INT64, &[BATCH, Dim::Named("total_sequence_length")]);
        recorder.positions();
        recorder
    }

    /// The graph whose result is `logits`.
    pub fn finish(mut self, logits: &Value) -> Graph {
        self.graph.rename(&logits.name, LOGITS);
        let floats = self.floats();
        self.graph.output(LOGITS, floats, &[BATCH, TOKENS, Dim::Fixed(logits.width)]);
        self.graph
    }

    /// How the graph's floats are numbered.
    pub(super) fn floats(&self) -> i32 {
        elements(self.writer.float)
    }

    /// What attention asks about the mask.
    fn positions(&mut self) {
        let graph = &mut self.graph;
        let ones = graph.integers(&[1], false);
        let one = graph.integers(&[1], true);
        let int32 = i64::from(INT32);
        let nodes = [
            NodeProto::onnx("ReduceSum", "attention_mask/sum").reads(&[MASK, &ones]).int("keepdims", 0),
            NodeProto::onnx("Sub", "attention_mask/last").reads(&["attention_mask/sum", &ones]),
            NodeProto::onnx("Cast", LAST_POSITION).reads(&["attention_mask/last"]).int("to", int32),
            NodeProto::onnx("Shape", "attention_mask/shape").reads(&[MASK]),
            NodeProto::onnx("Gather", "attention_mask/length")
                .reads(&["attention_mask/shape", &one])
                .int("axis", 0),
            NodeProto::onnx("Cast", POSITIONS).reads(&["attention_mask/length"]).int("to", int32),
        ];
        for node in nodes {
            let output = node.name.clone().unwrap_or_default();
            graph.push(node.gives(&[&output]));
        }
    }

    /// Appends `node`, whose one output `[batch, tokens, width]` has the node's name.
    pub(super) fn push(&mut self, node: NodeProto, width: usize) -> Value {
        let name = node.name.clone().unwrap_or_default();
        self.graph.push(node.gives(&[&name]));
        Value { name, width, rope: None }
    }

    /// The name of `x`, which is there when this returns.
    fn name(&mut self, x: &Value) -> String {
        if let Some([a, b]) = self.sums.remove(&x.name) {
            self.graph.push(NodeProto::onnx("Add", &x.name).reads(&[&a, &b]).gives(&[&x.name]));
        }
        x.name.clone()
    }

    fn vector(&mut self, vector: &Vector) -> String {
        let floats = self.floats();
        self.graph.external(&vector.name, floats, &[vector.len], vector.at);
        vector.name.clone()
    }

    /// An RMS norm over the last dimension of `x`.
    fn norm(&mut self, x: &str, weight: &Vector, eps: f32, node: &str) -> NodeProto {
        let weight = self.vector(weight);
        // Statistics in f32, whatever the graph's floats.
        NodeProto::onnx("SimplifiedLayerNormalization", node)
            .reads(&[x, &weight])
            .float("epsilon", eps)
            .int("axis", -1)
            .int("stash_type", 1)
    }

    /// Writes the cosines and sines of a rotation, `[context, head_dim / 2]` each, and gives its number.
    fn begin_rope(&mut self, rope: &Rope) -> Result<usize> {
        let number = self.ropes.len();
        let pairs = rope.pairs();
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            (0..self.context).flat_map(|at| rope.angles(at, self.context)).unzip();
        let floats = self.floats();
        for (name, values) in angles(number).iter().zip([cos, sin]) {
            let at = self.writer.floats(name, &values)?;
            self.graph.external(name, floats, &[self.context, pairs], at);
        }
        self.ropes.push(rope.clone());
        Ok(number)
    }
}

/// The names of the cosines and sines of the rotation `number`.
fn angles(number: usize) -> [String; 2] {
    ["cos_cache", "sin_cache"].map(|name| match number {
        0 => name.to_owned(),
        _ => format!("{name}.{number}"),
    })
}

/// The name of the module that the tensor `name` belongs to.
pub(super) fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

impl Exec for Recorder<'_> {
    type T = Value;
    type M = Matrix;
    type V = Vector;
    type Error = Error;

    fn embed(&mut self, table: &Matrix, _: &[u32], _: f32) -> Result<Value> {
        Ok(self.rows(table, IDS, module(&table.name)))
    }

    fn rms_norm(&mut self, x: &Value, weight: &Vector, eps: f32) -> Result<Value> {
        let node = module(&weight.name).to_owned();
        match self.sums.remove(&x.name) {
            Some([a, b]) => {
                let weight = self.vector(weight);
                self.graph.push(
                    NodeProto::microsoft("SkipSimplifiedLayerNormalization", &node)
                        .reads(&[&a, &b, &weight])
                        .gives(&[&node, "", "", &x.name])
                        .float("epsilon", eps),
                );
                Ok(Value { name: node, width: x.width, rope: None })
            }
            None => {
                let norm = self.norm(&x.name, weight, eps, &node);
                Ok(self.push(norm, x.width))
            }
        }
    }

    fn linears<const N: usize>(
        &mut self,
        x: &Value,
        linears: [&Linear<Matrix, Vector>; N],
    ) -> Result<[Value; N]> {
        let x = self.name(x);
        Ok(linears.map(|linear| {
            let product = self.product(&x, &linear.weight, module(&linear.weight.name));
            let Some(bias) = &linear.bias else { return product };
            let name = self.vector(bias);
            let sum = NodeProto::onnx("Add", &format!("{name}/sum")).reads(&[&product.name, &name]);
            self.push(sum, product.width)
        }))
    }

    fn unembed(&mut self, x: &Value, table: &Matrix) -> Result<Value> {
        let x = self.name(x);
        Ok(self.product(&x, table, TIED_HEAD))
    }

    fn head_norm(&mut self, x: Value, weight: &Vector, heads: usize, eps: f32) -> Result<Value> {
        let (x_name, node) = (self.name(&x), module(&weight.name).to_owned());
        // A head each row: the norm is over the last dimension.
        let split = self.graph.integers(&[0, -1, (x.width / heads) as i64], false);
        let joined = self.graph.integers(&[0, -1, x.width as i64], false);
        let apart = NodeProto::onnx("Reshape", &format!("{node}/heads")).reads(&[&x_name, &split]);
        let apart = self.push(apart, x.width);
        let norm = self.norm(&apart.name, weight, eps, &node);
        let normed = self.push(norm, x.width);
        let together = NodeProto::onnx("Reshape", &format!("{node}/row")).reads(&[&normed.name, &joined]);
        Ok(self.push(together, x.width))
    }

    fn rope(&mut self, x: Value, _: usize, rope: &Rope) -> Result<Value> {
        let known = self.ropes.iter().position(|known| known == rope);
        let number = match known {
            Some(number) => number,
            None => self.begin_rope(rope)?,
        };
        Ok(Value { rope: Some(number), ..x })
    }

    fn attention(
        &mut self,
        layer: usize,
        q: Value,
        k: Value,
        v: Value,
        shape: &AttentionShape,
        sight: Sight,
    ) -> Result<Value> {
        let &AttentionShape { heads, kv_heads, head_dim } = shape;
        if q.rope != k.rope {
            return Err(Error::Invalid("onnx: queries and keys that are turned differently".into()));
        }
        let names = [&q, &k, &v].map(|x| self.name(x));
        let floats = self.floats();
        let cache =
            |side: &str| (format!("past_key_values.{layer}.{side}"), format!("present.{layer}.{side}"));
        let caches = ["key", "value"].map(cache);
        for (past, present) in &caches {
            let dims = |tokens| [BATCH, Dim::Fixed(kv_heads), Dim::Named(tokens), Dim::Fixed(head_dim)];
            self.graph.input(past, floats, &dims("past_sequence_length"));
            self.graph.output(present, floats, &dims("total_sequence_length"));
        }
        let [(past_k, present_k), (past_v, present_v)] = &caches;
        let angles = q.rope.map_or([String::new(), String::new()], angles);
        let node = format!("model.layers.{layer}.self_attn");
        self.graph.push(
            NodeProto::microsoft("GroupQueryAttention", &node)
                .reads(&[
                    &names[0],
                    &names[1],
                    &names[2],
                    past_k,
                    past_v,
                    LAST_POSITION,
                    POSITIONS,
                    &angles[0],
                    &angles[1],
                ])
                .gives(&[&node, present_k, present_v])
                .int("num_heads", heads as i64)
                .int("kv_num_heads", kv_heads as i64)
                .float("scale", sight.scale)
                .int("do_rotary", i64::from(q.rope.is_some()))
                .int("rotary_interleaved", 0),
        );
        Ok(Value { name: node, width: q.width, rope: None })
    }

    fn short_conv(&mut self, _: usize, _: Value, kernel: &Vector) -> Result<Value> {
        Err(Error::tensor(&kernel.name, "is a short convolution, which the graphs of onnxruntime-genai lack"))
    }

    fn gate(&mut self, by: Gate, gate: Value, up: Value) -> Result<Value> {
        let [gate_name, up_name] = [&gate, &up].map(|x| self.name(x));
        // One of the gate, and what it is multiplied by to become open.
        let (first, factor) = match by {
            Gate::Silu => {
                let node = NodeProto::onnx("Sigmoid", &format!("{gate_name}/sigmoid")).reads(&[&gate_name]);
                (gate_name.clone(), self.push(node, gate.width).name)
            }
            Gate::Relu2 => {
                let node = NodeProto::onnx("Relu", &format!("{gate_name}/relu")).reads(&[&gate_name]);
                let relu = self.push(node, gate.width).name;
                (relu.clone(), relu)
            }
            Gate::GeluTanh => {
                return Err(Error::Invalid("onnx: no model with a gate of GELU is written".into()));
            }
        };
        let open = NodeProto::onnx("Mul", &format!("{gate_name}/{}", by.name())).reads(&[&first, &factor]);
        let open = self.push(open, gate.width).name;
        Ok(self.push(
            NodeProto::onnx("Mul", &format!("{gate_name}/gated")).reads(&[&open, &up_name]),
            gate.width,
        ))
    }

    fn add(&mut self, a: Value, b: Value) -> Result<Value> {
        let names = [&a, &b].map(|x| self.name(x));
        let sum = format!("{}/residual", names[1]);
        self.sums.insert(sum.clone(), names);
        Ok(Value { name: sum, width: a.width, rope: None })
    }
}

//! What is recorded where a matrix comes in: products with it, and rows of it.
//!
//! Knows the operators that read codes. Invariant: inputs are rounded where the model was trained with rounded inputs, by the
//! same arithmetic, and nowhere else: onnxruntime's own rounding to 8 bits (`accuracy_level` 4, with a scale for each block of
//! columns) is not what was trained.

use qat_quant::kernels::FloatType;

use super::data::Extent;
use super::grid::{BITS, HIGH};
use super::proto::{NodeProto, UINT8};
use super::record::{Recorder, Value};
use super::weights::{Codes, Held, Matrix};
use crate::files::Activations;

/// Largest code of an activation of 8 bits.
const INT8_MAX: f32 = 127.0;

/// What is done with a matrix of codes.
#[derive(Clone, Copy)]
enum Operator<'a> {
    /// The named activations are multiplied by its transpose.
    Multiply(&'a str),
    /// The rows of the named ids are taken.
    Gather(&'a str),
}

/// A matrix of codes of 4 bits: all of its matrix's, or half of them.
struct Part<'a> {
    matrix: &'a Matrix,
    /// Columns that share a scale.
    block: usize,
    /// Name of the scales.
    scales: &'a str,
    /// How the name of the codes ends.
    suffix: &'a str,
    codes: Extent,
    zeros: Option<Extent>,
}

impl Recorder<'_> {
    /// `x · Wᵀ`, by a node `node`.
    pub(super) fn product(&mut self, x: &str, matrix: &Matrix, node: &str) -> Value {
        let x = match matrix.activations {
            Activations::Float => x.to_owned(),
            Activations::Int8Token => self.rounded(x, matrix.cols),
        };
        match &matrix.held {
            Held::Codes { block, scales, codes } => {
                self.by_codes(matrix, (*block, *scales, codes), Operator::Multiply(&x), node)
            }
            Held::Floats(at) => {
                self.graph.external(&matrix.name, self.floats(), &[matrix.rows, matrix.cols], *at);
                // onnxruntime turns it once, when it loads the file. Without `perm`, the dimensions are reversed.
                let turned =
                    NodeProto::onnx("Transpose", &format!("{node}/transposed")).reads(&[&matrix.name]);
                let turned = self.push(turned, matrix.rows).name;
                self.push(NodeProto::onnx("MatMul", node).reads(&[&x, &turned]), matrix.rows)
            }
        }
    }

    /// The rows `ids` of a table, by a node `node`.
    pub(super) fn rows(&mut self, table: &Matrix, ids: &str, node: &str) -> Value {
        match &table.held {
            Held::Codes { block, scales, codes } => {
                self.by_codes(table, (*block, *scales, codes), Operator::Gather(ids), node)
            }
            Held::Floats(at) => {
                self.graph.external(&table.name, self.floats(), &[table.rows, table.cols], *at);
                let rows = NodeProto::onnx("Gather", node).reads(&[&table.name, ids]).int("axis", 0);
                self.push(rows, table.cols)
            }
        }
    }

    /// What `operator` makes of a matrix of codes: of its halves each, and of their sum, if it has such.
    fn by_codes(
        &mut self,
        matrix: &Matrix,
        (block, scales, codes): (usize, Extent, &Codes),
        operator: Operator<'_>,
        node: &str,
    ) -> Value {
        let name = format!("{}_scales", matrix.name);
        self.graph.external(&name, self.floats(), &[matrix.rows, matrix.cols / block], scales);
        let part = |suffix, codes, zeros| Part { matrix, block, scales: &name, suffix, codes, zeros };
        match codes {
            Codes::Whole(at) => self.part(&part("Q4", *at, None), operator, node),
            Codes::Halves { high, low, zeros } => {
                let high = self.part(&part("Q4_high", *high, None), operator, &format!("{node}/high"));
                let low = self.part(&part("Q4_low", *low, Some(*zeros)), operator, &format!("{node}/low"));
                let worth = self.graph.number(f32::from(HIGH), self.writer.float);
                let scaled = NodeProto::onnx("Mul", &format!("{node}/high16")).reads(&[&high.name, &worth]);
                let scaled = self.push(scaled, high.width);
                self.push(NodeProto::onnx("Add", node).reads(&[&scaled.name, &low.name]), high.width)
            }
        }
    }

    fn part(&mut self, part: &Part<'_>, operator: Operator<'_>, node: &str) -> Value {
        let &Part { matrix: &Matrix { ref name, rows, cols, .. }, block, scales, .. } = part;
        let zeros = part.zeros.map(|at| {
            let zeros = format!("{name}_zeros");
            // Two to a byte, each row's from a new byte on.
            self.graph.external(&zeros, UINT8, &[rows, (cols / block).div_ceil(2)], at);
            zeros
        });
        // Both operators may read the same bytes, each under dimensions of its own.
        let codes = format!("{name}_{}", part.suffix);
        let (proto, width) = match operator {
            Operator::Multiply(x) => {
                self.graph.external(&codes, UINT8, &[rows, cols / block, block / 2], part.codes);
                let product = NodeProto::microsoft("MatMulNBits", node)
                    .reads(&[x, &codes, scales])
                    .int("K", cols as i64)
                    .int("N", rows as i64)
                    .int("accuracy_level", 0);
                (product, rows)
            }
            Operator::Gather(ids) => {
                let table = format!("{codes}_table");
                self.graph.external(&table, UINT8, &[rows, cols / 2], part.codes);
                let gather = NodeProto::microsoft("GatherBlockQuantized", node)
                    .reads(&[&table, ids, scales])
                    .int("gather_axis", 0)
                    .int("quantize_axis", 1);
                (gather, cols)
            }
        };
        let mut proto = proto.int("bits", BITS as i64).int("block_size", block as i64);
        proto.input.extend(zeros);
        self.push(proto, width)
    }

    /// The name of `x` rounded to 8 bits with a scale per token, as [`qat_quant::int8_tokens`] does it.
    fn rounded(&mut self, x: &str, width: usize) -> String {
        if let Some(name) = self.rounded.get(x) {
            return name.clone();
        }
        let float = self.writer.float;
        let last = self.graph.integers(&[-1], false);
        let most = self.graph.number(INT8_MAX, float);
        // What a row of zeros has in place of its peak.
        let least = self.graph.number(
            match float {
                // 127 times the least number above 0, so that the scale is one.
                FloatType::F16 => 127.0 * 2_f32.powi(-24),
                FloatType::F32 | FloatType::BF16 => 2_f32.powi(-119),
            },
            float,
        );
        let name = format!("{x}/int8");
        let mut step = |op: &str, suffix: &str, inputs: &[&str]| {
            let node = NodeProto::onnx(op, &format!("{name}{suffix}")).reads(inputs);
            self.push(node, width).name
        };
        let size = step("Abs", "/abs", &[x]);
        let peak = step("ReduceMax", "/peak", &[&size, &last]);
        let peak = step("Max", "/least", &[&peak, &least]);
        let scale = step("Div", "/scale", &[&peak, &most]);
        let ratio = match float {
            // f16 can't hold 127 / peak for peaks below 0.002.
            FloatType::F16 => step("Div", "/ratio", &[x, &scale]),
            FloatType::F32 | FloatType::BF16 => {
                let inverse = step("Div", "/inverse", &[&most, &peak]);
                step("Mul", "/ratio", &[x, &inverse])
            }
        };
        // Halves go to the even neighbour.
        let code = step("Round", "/code", &[&ratio]);
        let value = step("Mul", "", &[&code, &scale]);
        self.rounded.insert(x.to_owned(), value.clone());
        value
    }
}

//! Reads what was written, by the way that onnxruntime takes: from a node to its constants to their bytes.
//!
//! Knows the operators' layouts from their documentation, and nothing of the writer's. Invariant: whatever the bytes of the
//! file, the answer is a tensor of the shape that was asked for or a message.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost::Message;
use qat_quant::kernels::FloatType;
use rayon::prelude::*;

use super::data::DATA_FILE;
use super::genai::MODEL_FILE;
use super::graph::MICROSOFT;
use super::proto::{EXTERNAL, FLOAT, FLOAT16, ModelProto, NodeProto, TensorProto, UINT8};
use super::record::{TIED_HEAD, module};
use crate::export::ReadBack;
use crate::files::{Bytes, Mapped, load_floats};
use crate::model::{Param, Role};
use crate::{Error, Result};

/// Longest `model.onnx`: nodes and names of thousands of layers; the weights are elsewhere.
const MAX_MODEL: usize = 1 << 26;

/// An exported model, opened.
#[derive(Debug)]
pub(super) struct Written {
    path: PathBuf,
    nodes: BTreeMap<String, NodeProto>,
    constants: BTreeMap<String, TensorProto>,
    data: Mapped,
    tied: bool,
}

/// A constant: its element type, its dimensions and its bytes, which agree.
struct Constant {
    elements: i32,
    dims: Vec<usize>,
    bytes: Bytes,
}

impl Written {
    /// Opens the model in `dir`; whether its head is its embedding is known from its config.
    ///
    /// # Errors
    /// The file is none of ONNX, names something twice, or is longer than any graph.
    pub fn open(dir: &Path, tied: bool) -> Result<Self> {
        let path = dir.join(MODEL_FILE);
        let bytes = Mapped::open(&path)?;
        if bytes.len() > MAX_MODEL {
            let problem = format!("is {} bytes long; want at most {MAX_MODEL}, without weights", bytes.len());
            return Err(Error::file(&path, problem));
        }
        let model =
            ModelProto::decode(&*bytes).map_err(|e| Error::file(&path, format!("is no ONNX file: {e}")))?;
        let graph = model.graph.unwrap_or_default();
        let nodes = by_name(graph.node, |node| node.name.as_deref()).map_err(|e| Error::file(&path, e))?;
        let constants =
            by_name(graph.initializer, |tensor| tensor.name.as_deref()).map_err(|e| Error::file(&path, e))?;
        let data = Mapped::open(&dir.join(DATA_FILE))?;
        Ok(Self { path, nodes, constants, data, tied })
    }

    fn problem(&self, name: &str, problem: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("{name}: {problem}"))
    }

    /// The node `name`, which is one of the operators `ops`.
    pub(super) fn node(&self, name: &str, ops: &[&str]) -> Result<&NodeProto> {
        let node = self.nodes.get(name).ok_or_else(|| self.problem(name, "no such node"))?;
        let op = node.op_type.as_deref().unwrap_or_default();
        if ops.contains(&op) {
            return Ok(node);
        }
        Err(self.problem(name, format!("want a node {}, found {op:?}", ops.join(" or "))))
    }

    /// The constant that `node` reads as its input `at`.
    fn input(&self, node: &NodeProto, at: usize) -> Result<Constant> {
        let name = input_name(node, at);
        let tensor = self.constants.get(name).ok_or_else(|| {
            let node = node.name.as_deref().unwrap_or_default();
            self.problem(node, format!("its input {at}, {name:?}, is no constant"))
        })?;
        self.constant(tensor).map_err(|problem| self.problem(name, problem))
    }

    fn constant(&self, tensor: &TensorProto) -> Result<Constant, String> {
        let elements = tensor.data_type.unwrap_or_default();
        let size = match elements {
            UINT8 => 1,
            FLOAT16 => 2,
            FLOAT => 4,
            other => return Err(format!("elements of type {other}; want {UINT8}, {FLOAT16} or {FLOAT}")),
        };
        let dims: Option<Vec<usize>> = tensor.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        let dims = dims.ok_or_else(|| format!("dimensions {:?}; want none below 0", tensor.dims))?;
        let want = dims.iter().try_fold(size, |n: usize, &dim| n.checked_mul(dim));
        let text = |key: &str| {
            let entry = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key));
            entry.and_then(|entry| entry.value.as_deref()).unwrap_or_default()
        };
        if tensor.data_location != Some(EXTERNAL) || text("location") != DATA_FILE {
            return Err(format!("lies in {:?}; want {DATA_FILE}", text("location")));
        }
        let number = |key: &str| {
            text(key).parse::<usize>().map_err(|e| format!("{key} {:?} of its data: {e}", text(key)))
        };
        let (offset, length) = (number("offset")?, number("length")?);
        if want != Some(length) {
            return Err(format!("dimensions {dims:?} with {length} bytes of data"));
        }
        let bytes = offset.checked_add(length).and_then(|end| self.data.slice(offset..end));
        let bytes = bytes.ok_or_else(|| {
            format!("{length} bytes at {offset} of a file of {}; is it cut off?", self.data.len())
        })?;
        Ok(Constant { elements, dims, bytes })
    }

    /// The floats of the constant that `node` reads as its input `at`, which has the dimensions `dims`.
    pub(super) fn floats(&self, node: &NodeProto, at: usize, dims: &[usize]) -> Result<Vec<f32>> {
        let constant = self.input(node, at)?;
        let name = &node.input[at];
        let float = match constant.elements {
            FLOAT => FloatType::F32,
            FLOAT16 => FloatType::F16,
            _ => return Err(self.problem(name, "want floats, found bytes")),
        };
        if constant.dims != dims {
            return Err(self.problem(name, format!("want dimensions {dims:?}, found {:?}", constant.dims)));
        }
        load_floats(float, &constant.bytes).map_err(|problem| self.problem(name, problem))
    }

    /// The bytes of the constant that `node` reads as its input `at`, which has the dimensions `dims`.
    fn bytes(&self, node: &NodeProto, at: usize, dims: &[usize]) -> Result<Bytes> {
        let constant = self.input(node, at)?;
        if (constant.elements, &*constant.dims) == (UINT8, dims) {
            return Ok(constant.bytes);
        }
        let problem = format!("want bytes {dims:?}, found type {} {:?}", constant.elements, constant.dims);
        Err(self.problem(&node.input[at], problem))
    }

    fn attribute(&self, node: &NodeProto, name: &str) -> Result<usize> {
        let found = node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some(name));
        let value = found.and_then(|attribute| attribute.i).and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| {
            self.problem(node.name.as_deref().unwrap_or_default(), format!("no attribute {name}"))
        })
    }

    /// The matrix `[rows, cols]` that the node `name` multiplies by.
    pub(super) fn product(&self, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
        let node = self.node(name, &["MatMulNBits", "MatMul", "Add"])?;
        match node.op_type.as_deref() {
            Some("MatMul") => self.floats(self.node(input_name(node, 1), &["Transpose"])?, 0, &shape),
            Some("Add") => {
                self.halves(node, |half| self.multiplied(self.node(half, &["MatMulNBits"])?, shape))
            }
            _ => Ok(self.multiplied(node, shape)?.values()),
        }
    }

    /// The table `[rows, cols]` that the node `name` takes rows from.
    fn table(&self, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
        let node = self.node(name, &["GatherBlockQuantized", "Gather", "Add"])?;
        match node.op_type.as_deref() {
            Some("Gather") => self.floats(node, 0, &shape),
            Some("Add") => {
                self.halves(node, |half| self.gathered(self.node(half, &["GatherBlockQuantized"])?, shape))
            }
            _ => Ok(self.gathered(node, shape)?.values()),
        }
    }

    /// The values of the codes whose halves `sum` adds: one as it is, one times 16.
    fn halves(&self, sum: &NodeProto, read: impl Fn(&str) -> Result<Coded>) -> Result<Vec<f32>> {
        let times = self.node(input_name(sum, 0), &["Mul"])?;
        let factor = self.constants.get(input_name(times, 1)).and_then(|tensor| tensor.raw_data.as_deref());
        // 16 as an f32 and as an f16.
        if !matches!(factor, Some([0, 0, 0x80, 0x41] | [0, 0x4c])) {
            return Err(self.problem(sum.name.as_deref().unwrap_or_default(), "want a half times 16"));
        }
        let (mut high, low) = (read(input_name(times, 0))?, read(input_name(sum, 1))?);
        if high.scales != low.scales || high.block != low.block {
            return Err(self.problem(input_name(sum, 1), "has other scales than its other half"));
        }
        high.codes.par_iter_mut().zip(&low.codes).for_each(|(high, low)| *high = *high * 16 + low);
        Ok(high.values())
    }

    /// What a `MatMulNBits` multiplies by.
    fn multiplied(&self, node: &NodeProto, [rows, cols]: [usize; 2]) -> Result<Coded> {
        let (k, n) = (self.attribute(node, "K")?, self.attribute(node, "N")?);
        if (n, k) != (rows, cols) {
            let name = node.name.as_deref().unwrap_or_default();
            return Err(self.problem(name, format!("want {rows} × {cols}, found {n} × {k}")));
        }
        let block = self.block(node, cols)?;
        self.coded(node, [1, 2, 3], &[rows, cols / block, block / 2], [rows, cols], block)
    }

    /// What a `GatherBlockQuantized` takes rows from.
    fn gathered(&self, node: &NodeProto, [rows, cols]: [usize; 2]) -> Result<Coded> {
        let axes = (self.attribute(node, "gather_axis")?, self.attribute(node, "quantize_axis")?);
        if axes != (0, 1) {
            let problem = format!("want rows gathered, of blocks along columns; found axes {axes:?}");
            return Err(self.problem(node.name.as_deref().unwrap_or_default(), problem));
        }
        let block = self.block(node, cols)?;
        self.coded(node, [0, 2, 3], &[rows, cols / 2], [rows, cols], block)
    }

    /// The codes, less their zero points, of the inputs `[codes, scales, zero points]` of `node`.
    fn coded(
        &self,
        node: &NodeProto,
        inputs: [usize; 3],
        dims: &[usize],
        [rows, cols]: [usize; 2],
        block: usize,
    ) -> Result<Coded> {
        let blocks = cols / block;
        let bytes = self.bytes(node, inputs[0], dims)?;
        let scales = self.floats(node, inputs[1], &[rows, blocks])?;
        let zeros = match input_name(node, inputs[2]) {
            "" => None,
            _ => Some(self.bytes(node, inputs[2], &[rows, blocks.div_ceil(2)])?),
        };
        // Two to a byte, the first in the low half; each row begins a byte.
        let nibble = |bytes: &[u8], per_row: usize, row: usize, at: usize| {
            let byte = bytes[row * per_row + at / 2];
            i16::from(if at.is_multiple_of(2) { byte & 15 } else { byte >> 4 })
        };
        let mut codes = vec![0; rows * cols];
        codes.par_chunks_mut(cols).enumerate().for_each(|(row, codes)| {
            for (col, code) in codes.iter_mut().enumerate() {
                let zero = zeros.as_ref().map_or(8, |z| nibble(z, blocks.div_ceil(2), row, col / block));
                *code = nibble(&bytes, cols / 2, row, col) - zero;
            }
        });
        Ok(Coded { block, codes, scales })
    }

    /// The columns that share a scale, of an operator whose codes have 4 bits.
    fn block(&self, node: &NodeProto, cols: usize) -> Result<usize> {
        let (bits, block) = (self.attribute(node, "bits")?, self.attribute(node, "block_size")?);
        let name = node.name.as_deref().unwrap_or_default();
        if node.domain.as_deref() != Some(MICROSOFT) {
            return Err(self.problem(name, format!("want the domain {MICROSOFT}")));
        }
        if bits != 4 || !matches!(block, 16 | 32 | 64 | 128 | 256) || !cols.is_multiple_of(block) {
            let problem = format!("codes of {bits} bits in blocks of {block} in rows of {cols}");
            return Err(self.problem(name, problem));
        }
        Ok(block)
    }
}

/// A matrix of codes, less their zero points.
struct Coded {
    block: usize,
    codes: Vec<i16>,
    /// One for each `block` codes.
    scales: Vec<f32>,
}

impl Coded {
    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.codes.len()];
        let blocks =
            values.par_chunks_mut(self.block).zip(self.codes.par_chunks(self.block)).zip(&self.scales);
        blocks.for_each(|((values, codes), scale)| {
            values.iter_mut().zip(codes).for_each(|(value, code)| *value = scale * f32::from(*code));
        });
        values
    }
}

/// The name of the input `at` of `node`; none is the empty one.
fn input_name(node: &NodeProto, at: usize) -> &str {
    node.input.get(at).map_or("", String::as_str)
}

impl ReadBack for Written {
    fn values(&self, param: &Param) -> Result<Vec<f32>> {
        let node = module(&param.name);
        match (param.role, &*param.shape) {
            (Role::Embedding, &[rows, cols]) => {
                let table = self.table(node, [rows, cols])?;
                if self.tied && self.product(TIED_HEAD, [rows, cols])? != table {
                    return Err(self.problem(TIED_HEAD, "is not the embedding that it is tied to"));
                }
                Ok(table)
            }
            (_, &[rows, cols]) => self.product(node, [rows, cols]),
            (Role::Bias, shape) => {
                self.floats(self.node(&format!("{}/sum", param.name), &["Add"])?, 1, shape)
            }
            (_, shape) => {
                let node =
                    self.node(node, &["SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"])?;
                // The weight is the last input: what is normed, or both terms of it, come first.
                self.floats(node, node.input.len().saturating_sub(1), shape)
            }
        }
    }

    fn float(&self, param: &Param) -> Result<FloatType> {
        match self.constants.get(&param.name).and_then(|tensor| tensor.data_type) {
            Some(FLOAT) => Ok(FloatType::F32),
            Some(FLOAT16) => Ok(FloatType::F16),
            _ => Err(self.problem(&param.name, "no such floats")),
        }
    }
}

fn by_name<T>(list: Vec<T>, name: impl Fn(&T) -> Option<&str>) -> Result<BTreeMap<String, T>, String> {
    let mut map = BTreeMap::new();
    for item in list {
        let name = name(&item).unwrap_or_default().to_owned();
        if map.contains_key(&name) {
            return Err(format!("{name:?} is there twice"));
        }
        map.insert(name, item);
    }
    Ok(map)
}

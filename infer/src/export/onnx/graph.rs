//! A graph in the making: nodes by what they read and give, constants, inputs and outputs.
//!
//! Knows the operators' domains and no model. Invariant: a constant is listed once under its name.

use std::collections::BTreeSet;

use half::f16;
use qat_quant::kernels::FloatType;

use super::data::{DATA_FILE, Extent};
use super::proto::{
    ATTRIBUTE_FLOAT, ATTRIBUTE_INT, AttributeProto, DimensionProto, EXTERNAL, FLOAT, FLOAT16, GraphProto,
    INT64, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};

/// Version of the representation: the one that opset 22 came with.
const IR_VERSION: i64 = 10;
/// Version of ONNX's own operators.
const OPSET: i64 = 22;
/// Domain of onnxruntime's operators, of which there is one version.
pub(super) const MICROSOFT: &str = "com.microsoft";

/// A size in the type of an input or output.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dim {
    /// The same in every call.
    Fixed(usize),
    /// Given anew in every call.
    Named(&'static str),
}

/// Nodes and what they work on.
#[derive(Debug, Default)]
pub(super) struct Graph {
    proto: GraphProto,
    constants: BTreeSet<String>,
}

impl Graph {
    /// Appends a node, which reads only what is there already.
    pub fn push(&mut self, node: NodeProto) {
        self.proto.node.push(node);
    }

    /// The constant `name` whose elements lie in the data file.
    pub fn external(&mut self, name: &str, elements: i32, dims: &[usize], at: Extent) {
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        self.constant(TensorProto {
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type: Some(elements),
            name: Some(name.to_owned()),
            raw_data: None,
            external_data: vec![
                entry("location", DATA_FILE.to_owned()),
                entry("offset", at.offset.to_string()),
                entry("length", at.len.to_string()),
            ],
            data_location: Some(EXTERNAL),
        });
    }

    /// A constant of integers, which gives its name: a list, or one number of no dimension.
    pub fn integers(&mut self, values: &[i64], scalar: bool) -> String {
        let list: Vec<String> = values.iter().map(i64::to_string).collect();
        let name =
            if scalar { format!("int64/{}", list.join(",")) } else { format!("int64/[{}]", list.join(",")) };
        let dims = if scalar { Vec::new() } else { vec![values.len() as i64] };
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.inline(name, INT64, dims, bytes)
    }

    /// A constant of one float, which gives its name.
    pub fn number(&mut self, value: f32, float: FloatType) -> String {
        let bytes = match float {
            FloatType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            FloatType::F32 | FloatType::BF16 => value.to_le_bytes().to_vec(),
        };
        self.inline(format!("float/{value:e}"), elements(float), Vec::new(), bytes)
    }

    fn inline(&mut self, name: String, elements: i32, dims: Vec<i64>, bytes: Vec<u8>) -> String {
        self.constant(TensorProto {
            dims,
            data_type: Some(elements),
            name: Some(name.clone()),
            raw_data: Some(bytes),
            external_data: Vec::new(),
            data_location: None,
        });
        name
    }

    fn constant(&mut self, tensor: TensorProto) {
        if self.constants.insert(tensor.name.clone().unwrap_or_default()) {
            self.proto.initializer.push(tensor);
        }
    }

    /// An input of the graph.
    pub fn input(&mut self, name: &str, elements: i32, dims: &[Dim]) {
        self.proto.input.push(value_info(name, elements, dims));
    }

    /// An output of the graph.
    pub fn output(&mut self, name: &str, elements: i32, dims: &[Dim]) {
        self.proto.output.push(value_info(name, elements, dims));
    }

    /// Renames what a node gives and nobody has read yet.
    pub fn rename(&mut self, from: &str, to: &str) {
        let outputs = self.proto.node.iter_mut().flat_map(|node| &mut node.output);
        outputs.filter(|output| *output == from).for_each(|output| to.clone_into(output));
    }

    /// The whole file.
    pub fn into_model(mut self) -> ModelProto {
        self.proto.name = Some("main_graph".to_owned());
        let opset = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.to_owned()),
            version: Some(version),
        };
        ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some(env!("CARGO_PKG_NAME").to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(self.proto),
            opset_import: vec![opset("", OPSET), opset(MICROSOFT, 1)],
        }
    }
}

impl NodeProto {
    /// An operation of ONNX's own.
    pub fn onnx(op: &str, name: &str) -> Self {
        Self { op_type: Some(op.to_owned()), name: Some(name.to_owned()), ..Self::default() }
    }

    /// An operation of onnxruntime's.
    pub fn microsoft(op: &str, name: &str) -> Self {
        Self { domain: Some(MICROSOFT.to_owned()), ..Self::onnx(op, name) }
    }

    /// The names of its inputs.
    pub fn reads(mut self, inputs: &[&str]) -> Self {
        self.input = inputs.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// The names of its outputs.
    pub fn gives(mut self, outputs: &[&str]) -> Self {
        self.output = outputs.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// An integer among its attributes.
    pub fn int(mut self, name: &str, value: i64) -> Self {
        self.attribute.push(AttributeProto {
            name: Some(name.to_owned()),
            i: Some(value),
            r#type: Some(ATTRIBUTE_INT),
            ..AttributeProto::default()
        });
        self
    }

    /// A float among its attributes.
    pub fn float(mut self, name: &str, value: f32) -> Self {
        self.attribute.push(AttributeProto {
            name: Some(name.to_owned()),
            f: Some(value),
            r#type: Some(ATTRIBUTE_FLOAT),
            ..AttributeProto::default()
        });
        self
    }
}

/// How ONNX numbers a float type that a graph computes in.
pub(super) fn elements(float: FloatType) -> i32 {
    match float {
        FloatType::F16 => FLOAT16,
        // The exporter refuses bfloat16, for which onnxruntime has no kernels on a CPU.
        FloatType::F32 | FloatType::BF16 => FLOAT,
    }
}

fn value_info(name: &str, elements: i32, dims: &[Dim]) -> ValueInfoProto {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(size) => DimensionProto { value: Some(*size as i64), param: None },
        Dim::Named(name) => DimensionProto { value: None, param: Some((*name).to_owned()) },
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor_type = TensorTypeProto { elem_type: Some(elements), shape: Some(shape) };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

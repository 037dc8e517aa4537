//! What the graph says: the decoder's operations, in the names that a reader of the file sees.

use std::fmt::Write as _;

use super::*;
use crate::export::onnx::proto::{GraphProto, NodeProto};
use crate::shared::shared;

fn node(node: &NodeProto) -> String {
    let op = node.op_type.as_deref().unwrap_or_default();
    let list = |names: &[String]| {
        names.iter().map(|n| if n.is_empty() { "_" } else { n }).collect::<Vec<_>>().join(", ")
    };
    format!("{} = {op}({})", list(&node.output), list(&node.input))
}

fn listing(graph: &GraphProto) -> String {
    let mut text = String::new();
    for n in &graph.node {
        let _ = writeln!(text, "{}", node(n));
    }
    text
}

fn attribute(graph: &GraphProto, node: &str, name: &str) -> Option<i64> {
    let node = graph.node.iter().find(|n| n.name.as_deref() == Some(node))?;
    node.attribute.iter().find(|a| a.name.as_deref() == Some(name))?.i
}

/// A model of one layer.
fn one_layer(family: &str, tied: bool, format: &str) -> GraphProto {
    let mut config = config(family, tied);
    config["num_hidden_layers"] = json!(1);
    Exported::new(&config, all(format)).model().graph.expect("a graph")
}

const LLAMA: &str = "\
attention_mask/sum = ReduceSum(attention_mask, int64/[1])
attention_mask/last = Sub(attention_mask/sum, int64/[1])
attention_mask/last_position = Cast(attention_mask/last)
attention_mask/shape = Shape(attention_mask)
attention_mask/length = Gather(attention_mask/shape, int64/1)
attention_mask/positions = Cast(attention_mask/length)
model.embed_tokens = GatherBlockQuantized(model.embed_tokens.weight_Q4_table, input_ids, model.embed_tokens.weight_scales)
model.layers.0.input_layernorm = SimplifiedLayerNormalization(model.embed_tokens, model.layers.0.input_layernorm.weight)
model.layers.0.self_attn.q_proj = MatMulNBits(model.layers.0.input_layernorm, model.layers.0.self_attn.q_proj.weight_Q4, model.layers.0.self_attn.q_proj.weight_scales)
model.layers.0.self_attn.k_proj = MatMulNBits(model.layers.0.input_layernorm, model.layers.0.self_attn.k_proj.weight_Q4, model.layers.0.self_attn.k_proj.weight_scales)
model.layers.0.self_attn.v_proj = MatMulNBits(model.layers.0.input_layernorm, model.layers.0.self_attn.v_proj.weight_Q4, model.layers.0.self_attn.v_proj.weight_scales)
model.layers.0.self_attn, present.0.key, present.0.value = GroupQueryAttention(model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj, model.layers.0.self_attn.v_proj, past_key_values.0.key, past_key_values.0.value, attention_mask/last_position, attention_mask/positions, cos_cache, sin_cache)
model.layers.0.self_attn.o_proj = MatMulNBits(model.layers.0.self_attn, model.layers.0.self_attn.o_proj.weight_Q4, model.layers.0.self_attn.o_proj.weight_scales)
model.layers.0.post_attention_layernorm, _, _, model.layers.0.self_attn.o_proj/residual = SkipSimplifiedLayerNormalization(model.embed_tokens, model.layers.0.self_attn.o_proj, model.layers.0.post_attention_layernorm.weight)
model.layers.0.mlp.gate_proj = MatMulNBits(model.layers.0.post_attention_layernorm, model.layers.0.mlp.gate_proj.weight_Q4, model.layers.0.mlp.gate_proj.weight_scales)
model.layers.0.mlp.up_proj = MatMulNBits(model.layers.0.post_attention_layernorm, model.layers.0.mlp.up_proj.weight_Q4, model.layers.0.mlp.up_proj.weight_scales)
model.layers.0.mlp.gate_proj/sigmoid = Sigmoid(model.layers.0.mlp.gate_proj)
model.layers.0.mlp.gate_proj/silu = Mul(model.layers.0.mlp.gate_proj, model.layers.0.mlp.gate_proj/sigmoid)
model.layers.0.mlp.gate_proj/gated = Mul(model.layers.0.mlp.gate_proj/silu, model.layers.0.mlp.up_proj)
model.layers.0.mlp.down_proj = MatMulNBits(model.layers.0.mlp.gate_proj/gated, model.layers.0.mlp.down_proj.weight_Q4, model.layers.0.mlp.down_proj.weight_scales)
model.norm, _, _, model.layers.0.mlp.down_proj/residual = SkipSimplifiedLayerNormalization(model.layers.0.self_attn.o_proj/residual, model.layers.0.mlp.down_proj, model.norm.weight)
logits = MatMulNBits(model.norm, model.embed_tokens.weight_Q4, model.embed_tokens.weight_scales)
";

/// What two matrices with the same rounded input read.
const INT8: &str = "\
model.layers.0.post_attention_layernorm/int8/abs = Abs(model.layers.0.post_attention_layernorm)
model.layers.0.post_attention_layernorm/int8/peak = ReduceMax(model.layers.0.post_attention_layernorm/int8/abs, int64/[-1])
model.layers.0.post_attention_layernorm/int8/least = Max(model.layers.0.post_attention_layernorm/int8/peak, float/1.5046328e-36)
model.layers.0.post_attention_layernorm/int8/scale = Div(model.layers.0.post_attention_layernorm/int8/least, float/1.27e2)
model.layers.0.post_attention_layernorm/int8/inverse = Div(float/1.27e2, model.layers.0.post_attention_layernorm/int8/least)
model.layers.0.post_attention_layernorm/int8/ratio = Mul(model.layers.0.post_attention_layernorm, model.layers.0.post_attention_layernorm/int8/inverse)
model.layers.0.post_attention_layernorm/int8/code = Round(model.layers.0.post_attention_layernorm/int8/ratio)
model.layers.0.post_attention_layernorm/int8 = Mul(model.layers.0.post_attention_layernorm/int8/code, model.layers.0.post_attention_layernorm/int8/scale)
model.layers.0.mlp.gate_proj = MatMulNBits(model.layers.0.post_attention_layernorm/int8, model.layers.0.mlp.gate_proj.weight_Q4, model.layers.0.mlp.gate_proj.weight_scales)
model.layers.0.mlp.up_proj = MatMulNBits(model.layers.0.post_attention_layernorm/int8, model.layers.0.mlp.up_proj.weight_Q4, model.layers.0.mlp.up_proj.weight_scales)";

#[test]
fn a_llama_is_this_graph() {
    let graph = one_layer("llama", true, "int4-g32");
    assert_eq!(listing(&graph), LLAMA);
}

#[test]
fn inputs_are_rounded_where_the_model_was_trained_so() {
    let choose = |param: &Param| {
        let activations = match param.name.as_str() {
            "model.layers.0.mlp.gate_proj.weight" | "model.layers.0.mlp.up_proj.weight" => {
                Activations::Int8Token
            }
            _ => Activations::Float,
        };
        Some(("ternary-tensor".parse().expect("a format"), activations))
    };
    let graph = Exported::new(&config("llama", true), choose).model().graph.expect("a graph");
    let rounding: Vec<String> = graph.node.iter().map(node).filter(|line| line.contains("/int8")).collect();
    assert_eq!(rounding.join("\n"), INT8);
    // Never by the operator, whose blocks are not tokens.
    let products = graph.node.iter().filter(|node| node.op_type.as_deref() == Some("MatMulNBits"));
    for product in products {
        assert_eq!(attribute(&graph, product.name.as_deref().unwrap_or_default(), "accuracy_level"), Some(0));
    }
}

#[test]
fn the_reader_understands_what_another_builder_wrote() {
    let (Some(dir), Some(fixture)) =
        (shared("reference-exports/onnx-llama_untied-int4"), shared("fixtures/llama_untied"))
    else {
        return;
    };
    let written = Written::open(&dir, false).expect("opens");
    let source = crate::files::TensorFiles::open(&fixture).expect("a fixture");
    for (node, name, shape) in [
        ("/model/layers.1/attn/o_proj/MatMul_Q4", "model.layers.1.self_attn.o_proj.weight", [128, 128]),
        ("/model/layers.0/mlp/down_proj/MatMul_Q4", "model.layers.0.mlp.down_proj.weight", [128, 256]),
        ("/lm_head/MatMul_Q4", "lm_head.weight", [512, 128]),
    ] {
        let rounded = written.product(node, shape).expect("a matrix");
        let values = source.f32(name, &shape).expect("a tensor");
        for (rounded, values) in rounded.chunks(32).zip(values.chunks(32)) {
            // Sixteen steps span a block from −8 to 7: one is at most an eighth of the largest, and rounding is off by half
            // of one, or by a whole one at the end that the grid lacks.
            let step = values.iter().fold(0.0_f32, |max, v| max.max(v.abs())) / 7.0;
            let far = rounded.iter().zip(values).find(|(a, b)| (*a - *b).abs() > step);
            assert!(far.is_none(), "{name}: {far:?}, step {step}");
        }
    }
}

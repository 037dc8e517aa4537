//! The names of tensors: ours, which are Hugging Face's, and llama.cpp's.
//!
//! Knows no values but the order of rows. For the architecture `llama`, llama.cpp turns neighbours (elements 2j and 2j + 1 of a head) where
//! Hugging Face turns halves (j and j + d/2), so that its rows of q and k lie in another order. Whole rows move: blocks stay as they are.

use crate::model::{Config, Family, Part};

/// The tensors outside of the layers.
const OUTSIDE: [(&str, &str); 4] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("model.embedding_norm", "token_embd_norm"),
    ("lm_head", "output"),
];

/// The matrices of a layer that are several of ours.
const FUSED: [(&str, &str); 2] = [("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")];

/// What llama.cpp calls a tensor of a layer.
fn in_layer(part: Part, family: Family) -> &'static str {
    match part {
        Part::PostAttentionNorm if family == Family::Gemma3 => "post_attention_norm",
        Part::Norm => "attn_norm",
        Part::Q => "attn_q",
        Part::K => "attn_k",
        Part::V => "attn_v",
        Part::QNorm => "attn_q_norm",
        Part::KNorm => "attn_k_norm",
        Part::SubNorm => "attn_sub_norm",
        Part::O => "attn_output",
        Part::ConvIn => "shortconv.in_proj",
        Part::Conv => "shortconv.conv",
        Part::ConvOut => "shortconv.out_proj",
        Part::PostAttentionNorm | Part::PreMlpNorm => "ffn_norm",
        Part::Gate => "ffn_gate",
        Part::Up => "ffn_up",
        Part::MlpSubNorm => "ffn_sub_norm",
        Part::Down => "ffn_down",
        Part::PostMlpNorm => "post_ffw_norm",
    }
}

/// The factors of llama-3's scaling of rotary frequencies, `[head_dim / 2]`.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";
/// The factors of long rope for texts beyond the original context and for those within it, `[rotary_dim / 2]`.
pub(crate) const ROPE_LONG: &str = "rope_factors_long.weight";
pub(crate) const ROPE_SHORT: &str = "rope_factors_short.weight";
/// The embedding table.
pub(crate) const EMBEDDING: &str = "token_embd.weight";
/// The head of an untied model.
pub(crate) const HEAD: &str = "output.weight";

/// llama.cpp's name of the tensor that Hugging Face calls `name` in a model of `family`, if it has one.
pub(crate) fn gguf_name(name: &str, family: Family) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    if let Some((_, theirs)) = OUTSIDE.into_iter().find(|(ours, _)| *ours == module) {
        return Some(format!("{theirs}.{kind}"));
    }
    let (layer, theirs) = match Part::of(name) {
        Some((layer, part)) => (layer, in_layer(part, family)),
        None => {
            let (layer, module) = module.strip_prefix("model.layers.")?.split_once('.')?;
            let (_, theirs) = FUSED.into_iter().find(|(ours, _)| *ours == module)?;
            (layer.parse().ok()?, theirs)
        }
    };
    Some(format!("blk.{layer}.{theirs}.{kind}"))
}

/// llama.cpp's name of a tensor of the layer `index`.
pub(crate) fn in_block(index: usize, tensor: &str) -> String {
    format!("blk.{index}.{tensor}")
}

/// The order in which llama.cpp's tools write tensors: those outside of the layers by name, then layer by layer.
pub(crate) fn place(name: &str) -> (Option<usize>, &str) {
    let inside = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match inside.and_then(|(index, rest)| Some((index.parse().ok()?, rest))) {
        Some((index, rest)) => (Some(index), rest),
        None => (None, name),
    }
}

/// How the rows of a tensor lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Width of the heads whose halves are interleaved; none where rows lie as in a Hugging Face file.
    interleaved: Option<usize>,
}

impl Rows {
    /// The rows of the tensor that Hugging Face calls `name`.
    pub fn of(name: &str, config: &Config) -> Self {
        let turned = matches!(Part::of(name), Some((_, Part::Q | Part::K)));
        Self { interleaved: (turned && config.family == Family::Llama).then_some(config.head_dim) }
    }

    /// Whether they lie as in a Hugging Face file.
    pub fn plain(self) -> bool {
        self.interleaved.is_none()
    }

    /// The row of the file that is row `row` of the Hugging Face tensor.
    fn in_file(self, row: usize) -> usize {
        let Some(dim) = self.interleaved else { return row };
        let (head, at) = (row / dim, row % dim);
        let (half, pair) = (at / (dim / 2), at % (dim / 2));
        head * dim + 2 * pair + half
    }

    /// `rows`, runs of `len` elements in Hugging Face's order, in the file's.
    pub fn in_file_order<T: Copy>(self, rows: &[T], len: usize) -> Vec<T> {
        let mut out = rows.to_vec();
        for (row, from) in rows.chunks_exact(len).enumerate() {
            out[self.in_file(row) * len..][..len].copy_from_slice(from);
        }
        out
    }

    /// `rows`, runs of `len` elements in the file's order, in Hugging Face's.
    pub fn in_our_order<T: Copy>(self, rows: &[T], len: usize) -> Vec<T> {
        let from = |row: usize| &rows[self.in_file(row) * len..][..len];
        (0..rows.len() / len).flat_map(from).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_llama_cpp() {
        for (ours, theirs) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
            ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
            ("model.layers.3.feed_forward.w3.weight", "blk.3.ffn_up.weight"),
            ("model.layers.3.conv.conv.weight", "blk.3.shortconv.conv.weight"),
            ("model.embedding_norm.weight", "token_embd_norm.weight"),
        ] {
            assert_eq!(gguf_name(ours, Family::Llama).as_deref(), Some(theirs));
        }
        for (ours, theirs) in [
            ("post_attention_layernorm", "post_attention_norm"),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ] {
            let name = gguf_name(&format!("model.layers.7.{ours}.weight"), Family::Gemma3);
            assert_eq!(name, Some(format!("blk.7.{theirs}.weight")));
        }
        let norm = "model.layers.7.post_attention_layernorm.weight";
        assert_eq!(gguf_name(norm, Family::Phi3).as_deref(), Some("blk.7.ffn_norm.weight"));
        let fused = "model.layers.7.self_attn.qkv_proj.weight";
        assert_eq!(gguf_name(fused, Family::Phi3).as_deref(), Some("blk.7.attn_qkv.weight"));
        assert_eq!(gguf_name("model.layers.0.convolution.weight", Family::Lfm2), None);
        assert_eq!(gguf_name("rotary", Family::Llama), None);
    }

    #[test]
    fn halves_of_a_head_are_interleaved_and_come_apart_again() {
        // Two heads of width 4: pairs (0, 2), (1, 3) of each become neighbours.
        let rows = Rows { interleaved: Some(4) };
        let there = rows.in_file_order(&[0, 1, 2, 3, 4, 5, 6, 7], 1);
        assert_eq!(there, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(rows.in_our_order(&there, 1), [0, 1, 2, 3, 4, 5, 6, 7]);
        let wide: Vec<u8> = (0..24).collect();
        assert_eq!(rows.in_our_order(&rows.in_file_order(&wide, 3), 3), wide);
        assert_eq!(Rows { interleaved: None }.in_file_order(&wide, 3), wide);
    }

    #[test]
    fn tensors_outside_of_the_layers_come_first_and_layers_in_order() {
        let mut names = ["blk.10.ffn_up.weight", "blk.2.attn_q.weight", "token_embd.weight", "output.weight"];
        names.sort_by_key(|name| place(name));
        assert_eq!(
            names,
            ["output.weight", "token_embd.weight", "blk.2.attn_q.weight", "blk.10.ffn_up.weight"]
        );
    }
}

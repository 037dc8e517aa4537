//! The tensors of a model: what each is called in a Hugging Face file, its shape and its role.
//!
//! Knows no values. Invariant: [`params`] lists exactly what [`Decoder::build`] asks for, in the same order, because it
//! *is* what it asks for.

use std::convert::Infallible;

use super::{Config, Decoder, Family};

/// Name of the embedding table.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the head of an untied model.
pub const HEAD: &str = "lm_head.weight";

/// Name of the norm after the last layer.
pub fn norm(family: Family) -> &'static str {
    match family {
        Family::Lfm2 => "model.embedding_norm.weight",
        _ => "model.norm.weight",
    }
}

/// A module of a layer, whatever a family calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Norm before attention or convolution.
    Norm,
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Norm of each query head.
    QNorm,
    /// Norm of each key head.
    KNorm,
    /// Norm of what attention gives.
    SubNorm,
    /// Output of attention.
    O,
    /// Input of a convolution.
    ConvIn,
    /// The taps of a convolution.
    Conv,
    /// Output of a convolution.
    ConvOut,
    /// Norm behind attention: of what the MLP reads or, where there are [norms behind](Config::post_norms), of what attention gives.
    PostAttentionNorm,
    /// Norm of what the MLP reads, where there are norms behind.
    PreMlpNorm,
    /// Gate of the MLP.
    Gate,
    /// What the gate is multiplied by.
    Up,
    /// Norm of what the gate gives.
    MlpSubNorm,
    /// Output of the MLP.
    Down,
    /// Norm of what the MLP gives.
    PostMlpNorm,
}

impl Part {
    /// Every part, in the order the forward pass meets them.
    pub const ALL: [Self; 18] = [
        Self::Norm,
        Self::Q,
        Self::K,
        Self::V,
        Self::QNorm,
        Self::KNorm,
        Self::SubNorm,
        Self::O,
        Self::ConvIn,
        Self::Conv,
        Self::ConvOut,
        Self::PostAttentionNorm,
        Self::PreMlpNorm,
        Self::Gate,
        Self::Up,
        Self::MlpSubNorm,
        Self::Down,
        Self::PostMlpNorm,
    ];

    /// The module's name in a Hugging Face file of `family`, behind `model.layers.N`.
    pub fn module(self, family: Family) -> &'static str {
        match (family, self) {
            (Family::Lfm2, Self::Norm) => "operator_norm",
            (Family::Lfm2, Self::QNorm) => "self_attn.q_layernorm",
            (Family::Lfm2, Self::KNorm) => "self_attn.k_layernorm",
            (Family::Lfm2, Self::O) => "self_attn.out_proj",
            (Family::Lfm2, Self::PostAttentionNorm) => "ffn_norm",
            (Family::Lfm2, Self::Gate) => "feed_forward.w1",
            (Family::Lfm2, Self::Up) => "feed_forward.w3",
            (Family::Lfm2, Self::Down) => "feed_forward.w2",
            (_, Self::Norm) => "input_layernorm",
            (_, Self::Q) => "self_attn.q_proj",
            (_, Self::K) => "self_attn.k_proj",
            (_, Self::V) => "self_attn.v_proj",
            (_, Self::QNorm) => "self_attn.q_norm",
            (_, Self::KNorm) => "self_attn.k_norm",
            (_, Self::SubNorm) => "self_attn.attn_sub_norm",
            (_, Self::O) => "self_attn.o_proj",
            (_, Self::ConvIn) => "conv.in_proj",
            (_, Self::Conv) => "conv.conv",
            (_, Self::ConvOut) => "conv.out_proj",
            (_, Self::PostAttentionNorm) => "post_attention_layernorm",
            (_, Self::PreMlpNorm) => "pre_feedforward_layernorm",
            (_, Self::Gate) => "mlp.gate_proj",
            (_, Self::Up) => "mlp.up_proj",
            (_, Self::MlpSubNorm) => "mlp.ffn_sub_norm",
            (_, Self::Down) => "mlp.down_proj",
            (_, Self::PostMlpNorm) => "post_feedforward_layernorm",
        }
    }

    /// The layer and the part that a Hugging Face file, of whichever family, has under `name`; none for what is outside of
    /// the layers or unknown.
    pub fn of(name: &str) -> Option<(usize, Self)> {
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (module, _) = rest.rsplit_once('.')?;
        let named = |part: &Self| Family::ALL.into_iter().any(|family| part.module(family) == module);
        Some((layer.parse().ok()?, Self::ALL.into_iter().find(named)?))
    }

    /// Whether it is a matrix whose outputs are added to the residual stream.
    pub fn writes_residual(self) -> bool {
        matches!(self, Self::O | Self::ConvOut | Self::Down)
    }
}

/// What a tensor is for; rules of quantization are written in these terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The table of token embeddings (also the head, when tied).
    Embedding,
    /// The head of an untied model.
    Head,
    /// A matrix inside a layer.
    Projection,
    /// The weight of a norm.
    Norm,
    /// The bias of a projection.
    Bias,
    /// The taps of a short convolution.
    Conv,
}

/// One tensor a model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Hugging Face's name.
    pub name: String,
    /// `[out, in]` of a matrix, `[len]` of a vector, `[channels, 1, taps]` of a convolution.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
}

impl Param {
    /// The table of token embeddings of a model of this shape.
    pub fn embedding(config: &Config) -> Self {
        let shape = vec![config.vocab_size, config.hidden_size];
        Self { name: EMBEDDING.to_owned(), shape, role: Role::Embedding }
    }

    /// Layer and part of a tensor inside of the layers.
    pub fn part(&self) -> Option<(usize, Part)> {
        Part::of(&self.name)
    }

    /// The module that a matrix belongs to: its name without `.weight`.
    pub fn module(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }
}

/// Gives a decoder its tensors, in whatever representation an executor works with.
pub trait Weights {
    /// A matrix.
    type M;
    /// A vector.
    type V;
    /// What can go wrong.
    type Error;

    /// The matrix that `param` describes.
    fn matrix(&mut self, param: &Param) -> Result<Self::M, Self::Error>;

    /// The vector that `param` describes.
    fn vector(&mut self, param: &Param) -> Result<Self::V, Self::Error>;
}

/// Name of a tensor of a layer: `model.layers.{layer}.{module}.{kind}`, the kind `weight` or `bias`.
pub fn in_layer(layer: usize, module: &str, kind: &str) -> String {
    format!("model.layers.{layer}.{module}.{kind}")
}

/// Every tensor of a model, in the order the forward pass meets them.
pub fn params(config: &Config) -> Vec<Param> {
    let mut list = Vec::new();
    match Decoder::build(config.clone(), &mut Collector(&mut list)) {
        Ok(_) => list,
        Err(never) => match never {},
    }
}

/// Weights that are only written down.
struct Collector<'a>(&'a mut Vec<Param>);

impl Weights for Collector<'_> {
    type M = ();
    type V = ();
    type Error = Infallible;

    fn matrix(&mut self, param: &Param) -> Result<(), Infallible> {
        self.0.push(param.clone());
        Ok(())
    }

    fn vector(&mut self, param: &Param) -> Result<(), Infallible> {
        self.0.push(param.clone());
        Ok(())
    }
}

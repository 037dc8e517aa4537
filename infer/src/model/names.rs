//! The tensors of a model: what each is called in a Hugging Face file, its shape and its role.
//!
//! Knows no values. Invariant: [`params`] lists exactly what [`Decoder::build`] asks for, in the same order, because it
//! *is* what it asks for.

use std::convert::Infallible;

use super::{Config, Decoder};

/// Name of the embedding table.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the norm after the last layer.
pub const NORM: &str = "model.norm.weight";
/// Name of the head of an untied model.
pub const HEAD: &str = "lm_head.weight";

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
}

/// One tensor a model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Hugging Face's name.
    pub name: String,
    /// `[out, in]` of a matrix, `[len]` of a vector.
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

/// Name of a tensor of a layer: `model.layers.{layer}.{module}.{kind}`.
pub fn in_layer(layer: usize, module: &str, kind: &str) -> String {
    format!("model.layers.{layer}.{module}.{kind}")
}

/// The name under which a file that `has` some tensors holds `param`: its own or, for the embedding of a tied model
/// saved by its head only (tinystories-656k is), the head's.
pub fn stored_name<'a>(param: &'a Param, config: &Config, has: impl Fn(&str) -> bool) -> &'a str {
    let by_head =
        param.role == Role::Embedding && config.tie_word_embeddings && !has(&param.name) && has(HEAD);
    if by_head { HEAD } else { &param.name }
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

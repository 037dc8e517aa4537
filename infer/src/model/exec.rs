//! The vocabulary of operations that a decoder is written in, and nothing about who carries them out.
//!
//! An executor chooses what an activation (`T`), a matrix (`M`) and a vector (`V`) are: slices and packed blocks on the
//! CPU, tensors and latent weights with a fake quantizer in training. Operations that use up an argument take it by
//! value, so that an executor may work in place. The shapes below are those of one sequence; an executor that carries a
//! batch puts its own axis in front.

use super::{Gate, Linear, Rope};

/// Heads of an attention: `heads` queries share `kv_heads` keys and values in consecutive groups of `heads / kv_heads`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// What a query sees, and how its scores are scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sight {
    /// What scores are multiplied by.
    pub scale: f32,
    /// Tokens that a token sees, its own included; all before it where there is none.
    pub window: Option<usize>,
}

impl Sight {
    /// Everything before, scores divided by the root of `width`.
    pub fn all(width: usize) -> Self {
        Self { scale: 1.0 / (width as f32).sqrt(), window: None }
    }

    /// The first position that the token at `position` sees.
    #[inline(always)]
    pub fn first(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Carries out the operations of a [`Decoder`](super::Decoder).
///
/// The positions of the tokens are the executor's: it knows what it has seen before. Every operation may fail (a device
/// is lost, a cache is full, an id is not in the vocabulary); the decoder passes the error on.
pub trait Exec {
    /// Activations, `[tokens, width]`.
    type T;
    /// A matrix, `[out, in]`; an embedding is one with a row per token id.
    type M;
    /// A vector: the weight of a norm or a bias.
    type V;
    /// What can go wrong.
    type Error;

    /// Rows `ids` of the table, times `scale`: `[tokens, hidden]`. Begins a forward pass.
    fn embed(&mut self, table: &Self::M, ids: &[u32], scale: f32) -> Result<Self::T, Self::Error>;

    /// `x / sqrt(mean(x²) + eps) · weight` over each row.
    fn rms_norm(&mut self, x: &Self::T, weight: &Self::V, eps: f32) -> Result<Self::T, Self::Error>;

    /// `x · Wᵀ + b` for several matrices with the same input, which is prepared (say, quantized) once: `[tokens, out]` each.
    fn linears<const N: usize>(
        &mut self,
        x: &Self::T,
        linears: [&Linear<Self::M, Self::V>; N],
    ) -> Result<[Self::T; N], Self::Error>;

    /// `x · tableᵀ`: the logits of a model whose head is its embedding.
    fn unembed(&mut self, x: &Self::T, table: &Self::M) -> Result<Self::T, Self::Error>;

    /// RMS norm of each of the `heads` parts of a row, all with the same weight `[head_dim]` (qk-norm).
    fn head_norm(
        &mut self,
        x: Self::T,
        weight: &Self::V,
        heads: usize,
        eps: f32,
    ) -> Result<Self::T, Self::Error>;

    /// Turns what turns of each of the `heads` parts of a row by its position.
    fn rope(&mut self, x: Self::T, heads: usize, rope: &Rope) -> Result<Self::T, Self::Error>;

    /// Causal softmax attention to what `sight` says, also over what layer `layer` has seen before.
    /// `q`: `[tokens, heads · head_dim]`, `k` and `v`: `[tokens, kv_heads · head_dim]` → like `q`.
    fn attention(
        &mut self,
        layer: usize,
        q: Self::T,
        k: Self::T,
        v: Self::T,
        shape: &AttentionShape,
        sight: Sight,
    ) -> Result<Self::T, Self::Error>;

    /// A causal convolution of each channel over the last tokens, gated before and behind, also over what layer `layer` has
    /// seen before. `x`: `[tokens, 3 · width]`, of which the thirds are b, c and u; `kernel`: `[width, taps]`, the last tap
    /// for the token itself → `c[t] · Σⱼ kernel[j] · b[t − (taps − 1) + j] · u[t − (taps − 1) + j]`, `[tokens, width]`.
    fn short_conv(&mut self, layer: usize, x: Self::T, kernel: &Self::V) -> Result<Self::T, Self::Error>;

    /// `by(gate) · up`, elementwise.
    fn gate(&mut self, by: Gate, gate: Self::T, up: Self::T) -> Result<Self::T, Self::Error>;

    /// `a + b`, elementwise.
    fn add(&mut self, a: Self::T, b: Self::T) -> Result<Self::T, Self::Error>;

    /// Told what stands in the residual stream behind layer `layer`; most executors don't care.
    fn behind_layer(&mut self, _layer: usize, _x: &Self::T) {}
}

//! What brings the tokens of a text together in a layer: attention, or a short convolution.
//!
//! Knows no norm before it and no residual stream. Invariant: which of the two a layer has, and with which norms, is the
//! config's word, taken when the layer is built.

use super::decoder::param;
use super::{AttentionShape, Config, Exec, Family, Linear, Part, Role, Ropes, Sight, Weights, names};

/// One or the other.
#[derive(Debug, Clone)]
pub enum Mixer<M, V> {
    /// Every token looks at all before it.
    Attention(Attention<M, V>),
    /// Every token looks at the last few.
    Conv(ShortConv<M, V>),
}

/// Softmax attention with grouped key/value heads.
#[derive(Debug, Clone)]
pub struct Attention<M, V> {
    /// Queries, `[heads · head_dim, hidden]`.
    pub q: Linear<M, V>,
    /// Keys, `[kv_heads · head_dim, hidden]`.
    pub k: Linear<M, V>,
    /// Values, `[kv_heads · head_dim, hidden]`.
    pub v: Linear<M, V>,
    /// Norm of each query head, `[head_dim]`.
    pub q_norm: Option<V>,
    /// Norm of each key head, `[head_dim]`.
    pub k_norm: Option<V>,
    /// Norm of what attention gives, `[heads · head_dim]`.
    pub sub_norm: Option<V>,
    /// Output, `[hidden, heads · head_dim]`.
    pub o: Linear<M, V>,
}

/// A gated causal convolution of each channel (LFM2).
#[derive(Debug, Clone)]
pub struct ShortConv<M, V> {
    /// Gates and input, `[3 · hidden, hidden]`.
    pub input: Linear<M, V>,
    /// Weights of the last tokens, `[hidden, 1, taps]`.
    pub kernel: V,
    /// Output, `[hidden, hidden]`.
    pub output: Linear<M, V>,
}

impl<M, V> Mixer<M, V> {
    /// The same, borrowed.
    pub fn as_ref(&self) -> Mixer<&M, &V> {
        match self {
            Self::Attention(a) => Mixer::Attention(Attention {
                q: a.q.as_ref(),
                k: a.k.as_ref(),
                v: a.v.as_ref(),
                q_norm: a.q_norm.as_ref(),
                k_norm: a.k_norm.as_ref(),
                sub_norm: a.sub_norm.as_ref(),
                o: a.o.as_ref(),
            }),
            Self::Conv(c) => Mixer::Conv(ShortConv {
                input: c.input.as_ref(),
                kernel: &c.kernel,
                output: c.output.as_ref(),
            }),
        }
    }

    /// Attention, if it is that.
    pub fn attention(&self) -> Option<&Attention<M, V>> {
        match self {
            Self::Attention(attention) => Some(attention),
            Self::Conv(_) => None,
        }
    }

    /// The matrices with their biases, in the order the forward pass meets them.
    pub fn linears(&self) -> Vec<&Linear<M, V>> {
        match self {
            Self::Attention(a) => vec![&a.q, &a.k, &a.v, &a.o],
            Self::Conv(c) => vec![&c.input, &c.output],
        }
    }

    /// The same, to be changed.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear<M, V>> {
        match self {
            Self::Attention(a) => vec![&mut a.q, &mut a.k, &mut a.v, &mut a.o],
            Self::Conv(c) => vec![&mut c.input, &mut c.output],
        }
    }

    /// The norms, and the taps of a convolution.
    pub fn vectors(&self) -> Vec<&V> {
        match self {
            Self::Attention(a) => [&a.q_norm, &a.k_norm, &a.sub_norm].into_iter().flatten().collect(),
            Self::Conv(c) => vec![&c.kernel],
        }
    }

    /// What layer `index` adds to the residual stream, from its normed content `x`.
    pub(super) fn forward<X: Exec<M = M, V = V>>(
        &self,
        exec: &mut X,
        (config, ropes): (&Config, &Ropes),
        index: usize,
        x: X::T,
    ) -> Result<X::T, X::Error> {
        match self {
            Self::Attention(attention) => attention.forward(exec, (config, ropes), index, &x),
            Self::Conv(conv) => {
                let [gated] = exec.linears(&x, [&conv.input])?;
                let mixed = exec.short_conv(index, gated, &conv.kernel)?;
                exec.linears(&mixed, [&conv.output]).map(|[out]| out)
            }
        }
    }

    /// Asks for every tensor of the mixer of a layer, in the order the forward pass meets them.
    pub(super) fn build<W: Weights<M = M, V = V>>(
        config: &Config,
        source: &mut LayerSource<'_, W>,
    ) -> Result<Self, W::Error> {
        let (hidden, q_size, kv_size) = (config.hidden_size, config.q_size(), config.kv_size());
        if let Some(taps) = config.taps(source.index) {
            return Ok(Self::Conv(ShortConv {
                input: source.linear(Part::ConvIn, [3 * hidden, hidden], false)?,
                kernel: source.kernel(hidden, taps)?,
                output: source.linear(Part::ConvOut, [hidden, hidden], false)?,
            }));
        }
        Ok(Self::Attention(Attention {
            q: source.linear(Part::Q, [q_size, hidden], config.qkv_bias)?,
            k: source.linear(Part::K, [kv_size, hidden], config.qkv_bias)?,
            v: source.linear(Part::V, [kv_size, hidden], config.qkv_bias)?,
            q_norm: source.norm_if(config.qk_norm, Part::QNorm, config.head_dim)?,
            k_norm: source.norm_if(config.qk_norm, Part::KNorm, config.head_dim)?,
            sub_norm: source.norm_if(config.sub_norms, Part::SubNorm, q_size)?,
            o: source.linear(Part::O, [hidden, q_size], config.o_bias)?,
        }))
    }
}

impl<M, V> Attention<M, V> {
    fn forward<X: Exec<M = M, V = V>>(
        &self,
        exec: &mut X,
        (config, ropes): (&Config, &Ropes),
        index: usize,
        x: &X::T,
    ) -> Result<X::T, X::Error> {
        let Config { heads, kv_heads, head_dim, rms_norm_eps: eps, .. } = *config;
        let (rope, window) = (ropes.of(config, index), config.window(index));
        let [mut q, mut k, v] = exec.linears(x, [&self.q, &self.k, &self.v])?;
        if let Some(weight) = &self.q_norm {
            q = exec.head_norm(q, weight, heads, eps)?;
        }
        if let Some(weight) = &self.k_norm {
            k = exec.head_norm(k, weight, kv_heads, eps)?;
        }
        let q = exec.rope(q, heads, rope)?;
        let k = exec.rope(k, kv_heads, rope)?;
        let shape = AttentionShape { heads, kv_heads, head_dim };
        let sight = Sight { window, ..Sight::all(config.query_scalar) };
        let mut mixed = exec.attention(index, q, k, v, &shape, sight)?;
        if let Some(weight) = &self.sub_norm {
            mixed = exec.rms_norm(&mixed, weight, eps)?;
        }
        exec.linears(&mixed, [&self.o]).map(|[out]| out)
    }
}

/// The tensors of one layer, by part.
pub(super) struct LayerSource<'a, W> {
    pub family: Family,
    pub index: usize,
    pub weights: &'a mut W,
}

impl<W: Weights> LayerSource<'_, W> {
    fn name(&self, part: Part, kind: &str) -> String {
        names::in_layer(self.index, part.module(self.family), kind)
    }

    pub fn norm(&mut self, part: Part, len: usize) -> Result<W::V, W::Error> {
        let name = self.name(part, "weight");
        self.weights.vector(&param(&name, [len], Role::Norm))
    }

    pub fn norm_if(&mut self, has: bool, part: Part, len: usize) -> Result<Option<W::V>, W::Error> {
        has.then(|| self.norm(part, len)).transpose()
    }

    fn kernel(&mut self, channels: usize, taps: usize) -> Result<W::V, W::Error> {
        let name = self.name(Part::Conv, "weight");
        self.weights.vector(&param(&name, [channels, 1, taps], Role::Conv))
    }

    pub fn linear(
        &mut self,
        part: Part,
        shape: [usize; 2],
        has_bias: bool,
    ) -> Result<Linear<W::M, W::V>, W::Error> {
        let weight = self.name(part, "weight");
        let weight = self.weights.matrix(&param(&weight, shape, Role::Projection))?;
        let bias = match has_bias {
            true => {
                let name = self.name(part, "bias");
                Some(self.weights.vector(&param(&name, [shape[0]], Role::Bias))?)
            }
            false => None,
        };
        Ok(Linear { weight, bias })
    }
}

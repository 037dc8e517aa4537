//! The one decoder: Llama, Qwen2 and Qwen3 as a single forward function over an [`Exec`]'s operations.
//!
//! Knows no storage, no device, no positions and no gradients. Invariant: no branch here depends on who executes; the
//! only choices are the model's own (a bias or none, qk-norm or none, tied or not), made when it was built.

use super::{AttentionShape, Config, Exec, Param, Role, Rope, Weights, names};

/// A matrix `[out, in]` with an optional bias `[out]`.
#[derive(Debug, Clone)]
pub struct Linear<M, V> {
    /// The matrix.
    pub weight: M,
    /// The bias.
    pub bias: Option<V>,
}

/// One layer: attention and a gated MLP, each behind its norm and added to the residual stream.
#[derive(Debug, Clone)]
pub struct Layer<M, V> {
    /// Norm before attention, `[hidden]`.
    pub attn_norm: V,
    /// Queries, `[heads · head_dim, hidden]`.
    pub q: Linear<M, V>,
    /// Keys, `[kv_heads · head_dim, hidden]`.
    pub k: Linear<M, V>,
    /// Values, `[kv_heads · head_dim, hidden]`.
    pub v: Linear<M, V>,
    /// Output of attention, `[hidden, heads · head_dim]`.
    pub o: Linear<M, V>,
    /// Norm of each query head, `[head_dim]`.
    pub q_norm: Option<V>,
    /// Norm of each key head, `[head_dim]`.
    pub k_norm: Option<V>,
    /// Norm before the MLP, `[hidden]`.
    pub mlp_norm: V,
    /// Gate, `[intermediate, hidden]`.
    pub gate: Linear<M, V>,
    /// Up, `[intermediate, hidden]`.
    pub up: Linear<M, V>,
    /// Down, `[hidden, intermediate]`.
    pub down: Linear<M, V>,
}

/// A whole model.
#[derive(Debug, Clone)]
pub struct Decoder<M, V> {
    /// What it was built from.
    pub config: Config,
    /// Rotary frequencies, from `config`.
    pub rope: Rope,
    /// Token embeddings, `[vocab, hidden]`.
    pub embed: M,
    /// Layers, first to last.
    pub layers: Vec<Layer<M, V>>,
    /// Norm after the last layer, `[hidden]`.
    pub norm: V,
    /// `[vocab, hidden]`; none when the embedding serves as head.
    pub head: Option<Linear<M, V>>,
}

impl<M, V> Linear<M, V> {
    /// The same, borrowed.
    pub fn as_ref(&self) -> Linear<&M, &V> {
        Linear { weight: &self.weight, bias: self.bias.as_ref() }
    }
}

impl<M, V> Layer<M, V> {
    /// The same, borrowed.
    pub fn as_ref(&self) -> Layer<&M, &V> {
        Layer {
            attn_norm: &self.attn_norm,
            q: self.q.as_ref(),
            k: self.k.as_ref(),
            v: self.v.as_ref(),
            o: self.o.as_ref(),
            q_norm: self.q_norm.as_ref(),
            k_norm: self.k_norm.as_ref(),
            mlp_norm: &self.mlp_norm,
            gate: self.gate.as_ref(),
            up: self.up.as_ref(),
            down: self.down.as_ref(),
        }
    }

    /// The matrices with their biases.
    pub fn linears(&self) -> [&Linear<M, V>; 7] {
        let Self { q, k, v, o, gate, up, down, .. } = self;
        [q, k, v, o, gate, up, down]
    }

    /// The norms.
    pub fn norms(&self) -> impl Iterator<Item = &V> {
        [&self.attn_norm, &self.mlp_norm].into_iter().chain(&self.q_norm).chain(&self.k_norm)
    }

    /// The matrices.
    pub fn matrices_mut(&mut self) -> [&mut M; 7] {
        let Self { q, k, v, o, gate, up, down, .. } = self;
        [q, k, v, o, gate, up, down].map(|linear| &mut linear.weight)
    }
}

impl<M, V> Decoder<M, V> {
    /// The same, borrowed: a decoder for executors that keep references to what they multiply with.
    pub fn as_ref(&self) -> Decoder<&M, &V> {
        Decoder {
            config: self.config.clone(),
            rope: self.rope.clone(),
            embed: &self.embed,
            layers: self.layers.iter().map(Layer::as_ref).collect(),
            norm: &self.norm,
            head: self.head.as_ref().map(Linear::as_ref),
        }
    }

    /// The matrices, in the order the forward pass meets them.
    pub fn matrices(&self) -> impl Iterator<Item = &M> {
        let layers = self.layers.iter().flat_map(Layer::linears).chain(&self.head);
        std::iter::once(&self.embed).chain(layers.map(|linear| &linear.weight))
    }

    /// The norms and biases.
    pub fn vectors(&self) -> impl Iterator<Item = &V> {
        let biases = self.layers.iter().flat_map(Layer::linears).chain(&self.head);
        let norms = self.layers.iter().flat_map(Layer::norms).chain([&self.norm]);
        norms.chain(biases.filter_map(|linear| linear.bias.as_ref()))
    }

    /// The matrices, in the order the forward pass meets them.
    pub fn matrices_mut(&mut self) -> impl Iterator<Item = &mut M> {
        let layers = self.layers.iter_mut().flat_map(Layer::matrices_mut);
        std::iter::once(&mut self.embed).chain(layers).chain(self.head.as_mut().map(|head| &mut head.weight))
    }

    /// Asks `weights` for every tensor that `config` implies, in the order the forward pass meets them.
    ///
    /// # Errors
    /// The first one that `weights` gives.
    pub fn build<W: Weights<M = M, V = V>>(config: Config, weights: &mut W) -> Result<Self, W::Error> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embed = weights.matrix(&Param::embedding(&config))?;
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(Layer::build(&config, index, weights)?);
        }
        let norm = weights.vector(&param(names::NORM, [hidden], Role::Norm))?;
        let head = if config.tie_word_embeddings {
            None
        } else {
            let weight = weights.matrix(&param(names::HEAD, [vocab, hidden], Role::Head))?;
            Some(Linear { weight, bias: None })
        };
        Ok(Self { rope: Rope::new(&config), config, embed, layers, norm, head })
    }

    /// Hidden states after the last norm, `[tokens, hidden]`, of tokens that continue what `exec` has seen.
    ///
    /// # Errors
    /// The first one that `exec` gives.
    pub fn forward<X: Exec<M = M, V = V>>(&self, exec: &mut X, ids: &[u32]) -> Result<X::T, X::Error> {
        let mut x = exec.embed(&self.embed, ids)?;
        for index in 0..self.layers.len() {
            x = self.layer(exec, index, x)?;
        }
        exec.rms_norm(&x, &self.norm, self.config.rms_norm_eps)
    }

    /// What stands in the residual stream behind layer `index`, when `x` stands before it.
    ///
    /// # Panics
    /// There is no such layer.
    ///
    /// # Errors
    /// The first one that `exec` gives.
    pub fn layer<X: Exec<M = M, V = V>>(
        &self,
        exec: &mut X,
        index: usize,
        x: X::T,
    ) -> Result<X::T, X::Error> {
        self.layers[index].forward(exec, (&self.config, &self.rope), index, x)
    }

    /// Logits `[tokens, vocab]` of hidden states that [`forward`](Self::forward) gave, or of some of their rows.
    ///
    /// # Errors
    /// The first one that `exec` gives.
    pub fn logits<X: Exec<M = M, V = V>>(&self, exec: &mut X, hidden: &X::T) -> Result<X::T, X::Error> {
        match &self.head {
            Some(head) => exec.linears(hidden, [head]).map(|[logits]| logits),
            None => exec.unembed(hidden, &self.embed),
        }
    }
}

impl<M, V> Layer<M, V> {
    /// What stands in the residual stream behind it, the layer `index` of a model of this shape with these angles, when `x` stands
    /// before it.
    ///
    /// # Errors
    /// The first one that `exec` gives.
    pub fn forward<X: Exec<M = M, V = V>>(
        &self,
        exec: &mut X,
        (config, rope): (&Config, &Rope),
        index: usize,
        x: X::T,
    ) -> Result<X::T, X::Error> {
        let attended = self.attend(exec, (config, rope), index, &x)?;
        let x = exec.add(x, attended)?;
        let mixed = self.mlp(exec, config.rms_norm_eps, &x)?;
        let x = exec.add(x, mixed)?;
        exec.behind_layer(index, &x);
        Ok(x)
    }

    fn attend<X: Exec<M = M, V = V>>(
        &self,
        exec: &mut X,
        (config, rope): (&Config, &Rope),
        index: usize,
        x: &X::T,
    ) -> Result<X::T, X::Error> {
        let Config { heads, kv_heads, head_dim, rms_norm_eps: eps, .. } = *config;
        let x = exec.rms_norm(x, &self.attn_norm, eps)?;
        let [mut q, mut k, v] = exec.linears(&x, [&self.q, &self.k, &self.v])?;
        if let Some(weight) = &self.q_norm {
            q = exec.head_norm(q, weight, heads, eps)?;
        }
        if let Some(weight) = &self.k_norm {
            k = exec.head_norm(k, weight, kv_heads, eps)?;
        }
        let q = exec.rope(q, heads, rope)?;
        let k = exec.rope(k, kv_heads, rope)?;
        let mixed = exec.attention(index, q, k, v, &AttentionShape { heads, kv_heads, head_dim })?;
        exec.linears(&mixed, [&self.o]).map(|[out]| out)
    }

    fn mlp<X: Exec<M = M, V = V>>(&self, exec: &mut X, eps: f32, x: &X::T) -> Result<X::T, X::Error> {
        let x = exec.rms_norm(x, &self.mlp_norm, eps)?;
        let [gate, up] = exec.linears(&x, [&self.gate, &self.up])?;
        let gated = exec.swiglu(gate, up)?;
        exec.linears(&gated, [&self.down]).map(|[out]| out)
    }

    /// Asks `weights` for every tensor of layer `index` of a model of this shape, in the order the forward pass meets them.
    ///
    /// # Errors
    /// The first one that `weights` gives.
    pub fn build<W: Weights<M = M, V = V>>(
        config: &Config,
        index: usize,
        weights: &mut W,
    ) -> Result<Self, W::Error> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_size, kv_size) = (config.q_size(), config.kv_size());
        let mut source = LayerSource { index, weights };
        Ok(Self {
            attn_norm: source.norm("input_layernorm", hidden)?,
            q: source.linear("self_attn.q_proj", [q_size, hidden], config.qkv_bias)?,
            k: source.linear("self_attn.k_proj", [kv_size, hidden], config.qkv_bias)?,
            v: source.linear("self_attn.v_proj", [kv_size, hidden], config.qkv_bias)?,
            q_norm: source.head_norm("self_attn.q_norm", config)?,
            k_norm: source.head_norm("self_attn.k_norm", config)?,
            o: source.linear("self_attn.o_proj", [hidden, q_size], config.o_bias)?,
            mlp_norm: source.norm("post_attention_layernorm", hidden)?,
            gate: source.linear("mlp.gate_proj", [inner, hidden], config.mlp_bias)?,
            up: source.linear("mlp.up_proj", [inner, hidden], config.mlp_bias)?,
            down: source.linear("mlp.down_proj", [hidden, inner], config.mlp_bias)?,
        })
    }
}

/// The tensors of one layer, by module name.
struct LayerSource<'a, W> {
    index: usize,
    weights: &'a mut W,
}

impl<W: Weights> LayerSource<'_, W> {
    fn norm(&mut self, module: &str, len: usize) -> Result<W::V, W::Error> {
        self.weights.vector(&param(&names::in_layer(self.index, module, "weight"), [len], Role::Norm))
    }

    fn head_norm(&mut self, module: &str, config: &Config) -> Result<Option<W::V>, W::Error> {
        config.qk_norm.then(|| self.norm(module, config.head_dim)).transpose()
    }

    fn linear(
        &mut self,
        module: &str,
        shape: [usize; 2],
        has_bias: bool,
    ) -> Result<Linear<W::M, W::V>, W::Error> {
        let name = |kind| names::in_layer(self.index, module, kind);
        let weight = self.weights.matrix(&param(&name("weight"), shape, Role::Projection))?;
        let bias = match has_bias {
            true => Some(self.weights.vector(&param(&name("bias"), [shape[0]], Role::Bias))?),
            false => None,
        };
        Ok(Linear { weight, bias })
    }
}

fn param<const N: usize>(name: &str, shape: [usize; N], role: Role) -> Param {
    Param { name: name.to_owned(), shape: shape.to_vec(), role }
}

//! The one decoder: every [`Family`](super::Family) as a single forward function over an [`Exec`]'s operations.
//!
//! Knows no storage, no device, no positions and no gradients. Invariant: no branch here depends on who executes; the
//! only choices are the model's own (a bias or none, a norm or none, tied or not, attention or a convolution), made when it
//! was built.

use super::mixer::LayerSource;
use super::{Config, Exec, Mixer, Param, Part, Role, Ropes, Weights, names};

/// A matrix `[out, in]` with an optional bias `[out]`.
#[derive(Debug, Clone)]
pub struct Linear<M, V> {
    /// The matrix.
    pub weight: M,
    /// The bias.
    pub bias: Option<V>,
}

/// One layer: a mixer of tokens and a gated MLP, each behind its norm and added to the residual stream.
#[derive(Debug, Clone)]
pub struct Layer<M, V> {
    /// Norm before the mixer, `[hidden]`.
    pub norm: V,
    /// What brings tokens together.
    pub mixer: Mixer<M, V>,
    /// Norm of what the mixer gives, `[hidden]`.
    pub post_norm: Option<V>,
    /// Norm before the MLP, `[hidden]`.
    pub mlp_norm: V,
    /// Gate, `[intermediate, hidden]`.
    pub gate: Linear<M, V>,
    /// Up, `[intermediate, hidden]`.
    pub up: Linear<M, V>,
    /// Norm of what the gate gives, `[intermediate]`.
    pub mlp_sub_norm: Option<V>,
    /// Down, `[hidden, intermediate]`.
    pub down: Linear<M, V>,
    /// Norm of what the MLP gives, `[hidden]`.
    pub mlp_post_norm: Option<V>,
}

/// A whole model.
#[derive(Debug, Clone)]
pub struct Decoder<M, V> {
    /// What it was built from.
    pub config: Config,
    /// Rotary frequencies, from `config`.
    pub ropes: Ropes,
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
            norm: &self.norm,
            mixer: self.mixer.as_ref(),
            post_norm: self.post_norm.as_ref(),
            mlp_norm: &self.mlp_norm,
            gate: self.gate.as_ref(),
            up: self.up.as_ref(),
            mlp_sub_norm: self.mlp_sub_norm.as_ref(),
            down: self.down.as_ref(),
            mlp_post_norm: self.mlp_post_norm.as_ref(),
        }
    }

    /// The matrices with their biases, in the order the forward pass meets them.
    pub fn linears(&self) -> impl Iterator<Item = &Linear<M, V>> {
        self.mixer.linears().into_iter().chain([&self.gate, &self.up, &self.down])
    }

    /// The norms, and the taps of a convolution.
    pub fn vectors(&self) -> impl Iterator<Item = &V> {
        let norms = [&self.norm, &self.mlp_norm].into_iter().chain(&self.mlp_sub_norm);
        norms.chain(&self.post_norm).chain(&self.mlp_post_norm).chain(self.mixer.vectors())
    }

    /// The matrices, in the order the forward pass meets them.
    pub fn matrices_mut(&mut self) -> impl Iterator<Item = &mut M> {
        let Self { mixer, gate, up, down, .. } = self;
        mixer.linears_mut().into_iter().chain([gate, up, down]).map(|linear| &mut linear.weight)
    }
}

impl<M, V> Decoder<M, V> {
    /// The same, borrowed: a decoder for executors that keep references to what they multiply with.
    pub fn as_ref(&self) -> Decoder<&M, &V> {
        Decoder {
            config: self.config.clone(),
            ropes: self.ropes.clone(),
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

    /// The norms, biases and taps of convolutions.
    pub fn vectors(&self) -> impl Iterator<Item = &V> {
        let biases = self.layers.iter().flat_map(Layer::linears).chain(&self.head);
        let norms = self.layers.iter().flat_map(Layer::vectors).chain([&self.norm]);
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
        let norm = weights.vector(&param(names::norm(config.family), [hidden], Role::Norm))?;
        let head = if config.tie_word_embeddings {
            None
        } else {
            let weight = weights.matrix(&param(names::HEAD, [vocab, hidden], Role::Head))?;
            Some(Linear { weight, bias: None })
        };
        Ok(Self { ropes: Ropes::new(&config), config, embed, layers, norm, head })
    }

    /// Hidden states after the last norm, `[tokens, hidden]`, of tokens that continue what `exec` has seen.
    ///
    /// # Errors
    /// The first one that `exec` gives.
    pub fn forward<X: Exec<M = M, V = V>>(&self, exec: &mut X, ids: &[u32]) -> Result<X::T, X::Error> {
        let mut x = exec.embed(&self.embed, ids, self.config.embedding_scale())?;
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
        self.layers[index].forward(exec, (&self.config, &self.ropes), index, x)
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
        (config, ropes): (&Config, &Ropes),
        index: usize,
        x: X::T,
    ) -> Result<X::T, X::Error> {
        let normed = exec.rms_norm(&x, &self.norm, config.rms_norm_eps)?;
        let mut mixed = self.mixer.forward(exec, (config, ropes), index, normed)?;
        if let Some(weight) = &self.post_norm {
            mixed = exec.rms_norm(&mixed, weight, config.rms_norm_eps)?;
        }
        let x = exec.add(x, mixed)?;
        let gated = self.mlp(exec, config, &x)?;
        let x = exec.add(x, gated)?;
        exec.behind_layer(index, &x);
        Ok(x)
    }

    fn mlp<X: Exec<M = M, V = V>>(&self, exec: &mut X, config: &Config, x: &X::T) -> Result<X::T, X::Error> {
        let x = exec.rms_norm(x, &self.mlp_norm, config.rms_norm_eps)?;
        let [gate, up] = exec.linears(&x, [&self.gate, &self.up])?;
        let mut gated = exec.gate(config.gate, gate, up)?;
        if let Some(weight) = &self.mlp_sub_norm {
            gated = exec.rms_norm(&gated, weight, config.rms_norm_eps)?;
        }
        let [out] = exec.linears(&gated, [&self.down])?;
        match &self.mlp_post_norm {
            Some(weight) => exec.rms_norm(&out, weight, config.rms_norm_eps),
            None => Ok(out),
        }
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
        let mut source = LayerSource { family: config.family, index, weights };
        Ok(Self {
            norm: source.norm(Part::Norm, hidden)?,
            mixer: Mixer::build(config, &mut source)?,
            post_norm: source.norm_if(config.post_norms, Part::PostAttentionNorm, hidden)?,
            mlp_norm: match config.post_norms {
                true => source.norm(Part::PreMlpNorm, hidden)?,
                false => source.norm(Part::PostAttentionNorm, hidden)?,
            },
            gate: source.linear(Part::Gate, [inner, hidden], config.mlp_bias)?,
            up: source.linear(Part::Up, [inner, hidden], config.mlp_bias)?,
            mlp_sub_norm: source.norm_if(config.sub_norms, Part::MlpSubNorm, inner)?,
            down: source.linear(Part::Down, [hidden, inner], config.mlp_bias)?,
            mlp_post_norm: source.norm_if(config.post_norms, Part::PostMlpNorm, hidden)?,
        })
    }
}

pub(super) fn param<const N: usize>(name: &str, shape: [usize; N], role: Role) -> Param {
    Param { name: name.to_owned(), shape: shape.to_vec(), role }
}

//! The numbers and switches that make one decoder of a family: a checked plan, in which nothing is optional
//! that the forward function needs.
//!
//! Knows no JSON (see `hf_config`), no tensor and no device. Invariant: a `Config` that came through
//! [`Config::check`] has positive sizes, an even head, whole groups of query heads, and products that fit `usize`.

/// Which published architecture the model follows; it decides tensor names' presence and defaults, not the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 1–3 and what copies it (SmolLM2, TinyLlama): no biases unless asked for.
    Llama,
    /// Qwen2 and Qwen2.5: always a bias on q, k and v, never elsewhere.
    Qwen2,
    /// Qwen3: RMS norm on every query and key head.
    Qwen3,
    /// BitNet b1.58: a norm before every output projection (SubLN), ReLU² in the gate, ternary projections.
    BitNet,
    /// LFM2 and LFM2.5: short convolutions where most layers of other families attend; RMS norm on query and key heads.
    Lfm2,
    /// Phi-3, Phi-3.5 and Phi-4: q, k and v in one tensor of the file, gate and up in another; long rope, windows.
    Phi3,
    /// The text part of Gemma 3: most layers see a window, norms also behind attention and MLP, GELU in the gate.
    Gemma3,
}

impl Family {
    /// All families, in the order error messages list them.
    pub const ALL: [Self; 7] =
        [Self::Llama, Self::Qwen2, Self::Qwen3, Self::BitNet, Self::Lfm2, Self::Phi3, Self::Gemma3];

    /// The `model_type` of Hugging Face's config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::BitNet => "bitnet",
            Self::Lfm2 => "lfm2",
            Self::Phi3 => "phi3",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// The class in `architectures` of Hugging Face's config.json.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::BitNet => "BitNetForCausalLM",
            Self::Lfm2 => "Lfm2ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }

    /// What its MLPs make of their gates.
    pub fn gate(self) -> Gate {
        match self {
            Self::BitNet => Gate::Relu2,
            Self::Gemma3 => Gate::GeluTanh,
            Self::Llama | Self::Qwen2 | Self::Qwen3 | Self::Lfm2 | Self::Phi3 => Gate::Silu,
        }
    }

    /// Queries and keys are RMS-normed per head before rotation.
    pub fn has_qk_norm(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Lfm2 | Self::Gemma3)
    }
}

/// What a gated MLP makes of its gate before it multiplies by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gate {
    /// `x · σ(x)`
    Silu,
    /// `max(x, 0)²`
    Relu2,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))`, the GELU that PyTorch calls `tanh`.
    GeluTanh,
}

impl Gate {
    /// How Hugging Face spells it in `hidden_act`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Relu2 => "relu2",
            Self::GeluTanh => "gelu_pytorch_tanh",
        }
    }
}

/// Layers in which a token sees itself and the last of those before it, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sliding {
    /// Tokens that are seen, a token's own included.
    pub window: usize,
    /// Which layers see no more than that, first to last.
    pub layers: Vec<bool>,
}

/// Layers that convolve instead of attending: of each channel, the last `taps` tokens are weighed and summed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShortConvs {
    /// Tokens that a convolution sees, its own included.
    pub taps: usize,
    /// Which layers convolve, first to last.
    pub layers: Vec<bool>,
}

/// How rotary frequencies are stretched for contexts longer than those of pre-training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as trained (`rope_type: "default"`).
    None,
    /// Every frequency divided by `factor` (`rope_type: "linear"`).
    Linear {
        /// How many times longer the context became.
        factor: f64,
    },
    /// Llama 3.1: long waves divided by `factor`, short ones kept, a ramp between (`rope_type: "llama3"`).
    Llama3 {
        /// Division of the long waves.
        factor: f64,
        /// Waves longer than `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Waves shorter than `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of pre-training, in tokens.
        original_context: usize,
    },
    /// LongRoPE (arXiv 2402.13753): each frequency divided by a factor of its own, and by another one in contexts longer than that
    /// of pre-training (`rope_type: "longrope"`, in older configs `"su"`).
    LongRope {
        /// Divisions in contexts up to `original_context`, `[rotary_dim / 2]`.
        short: Vec<f64>,
        /// Divisions in longer ones, `[rotary_dim / 2]`.
        long: Vec<f64>,
        /// Context of pre-training, in tokens.
        original_context: usize,
        /// What cosines and sines are multiplied by, where the config says it; else it follows from the contexts.
        attention_factor: Option<f64>,
    },
}

/// One decoder, ready to be built. Sizes are counts of elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Published architecture.
    pub family: Family,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the gated MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Elements of a head that turn with the position, its first; even.
    pub rotary_dim: usize,
    /// Scores are divided by the root of this: the width of a head, but in some models of Gemma 3.
    pub query_scalar: usize,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square before the root in every RMS norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Base of the rotary frequencies in layers that see a window, where it is another one; nothing stretches those.
    pub local_rope_theta: Option<f64>,
    /// The layers that see a window, in a model that has some.
    pub sliding: Option<Sliding>,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// o has a bias.
    pub o_bias: bool,
    /// gate, up and down have biases.
    pub mlp_bias: bool,
    /// Queries and keys are RMS-normed per head before rotation.
    pub qk_norm: bool,
    /// What the MLP makes of its gate.
    pub gate: Gate,
    /// What attention and the gate give is RMS-normed before it is projected back (SubLN).
    pub sub_norms: bool,
    /// What attention and the MLP give is RMS-normed before it is added to the residual stream.
    pub post_norms: bool,
    /// The layers that convolve, in a model that has some.
    pub short_convs: Option<ShortConvs>,
    /// Token that begins a text, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// Largest sizes accepted. An order of magnitude above any published model; they keep every product of two sizes
/// inside `usize` on 64-bit machines and turn a corrupt file into a message rather than an allocation failure.
const CAPS: [(&str, usize); 7] = [
    ("vocab_size", 1 << 24),
    ("hidden_size", 1 << 18),
    ("intermediate_size", 1 << 20),
    ("num_hidden_layers", 1 << 12),
    ("num_attention_heads", 1 << 12),
    ("head_dim", 1 << 14),
    ("max_position_embeddings", 1 << 26),
];

/// Most tokens that a short convolution sees; published models have 3.
const MOST_TAPS: usize = 64;

impl Config {
    /// Width of the queries and of attention's output: `heads · head_dim`.
    pub fn q_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the keys and of the values: `kv_heads · head_dim`.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Tokens that layer `index` weighs and sums, if it is one that convolves; else it attends.
    pub fn taps(&self, index: usize) -> Option<usize> {
        let convs = self.short_convs.as_ref()?;
        convs.layers.get(index).copied().unwrap_or(false).then_some(convs.taps)
    }

    /// Tokens that a token sees in layer `index`, its own included, where these are fewer than the model's whole context.
    pub fn window(&self, index: usize) -> Option<usize> {
        let Sliding { window, layers } = self.sliding.as_ref()?;
        let slides = layers.get(index).copied().unwrap_or(false);
        (slides && *window < self.max_position_embeddings).then_some(*window)
    }

    /// What embeddings are multiplied by before the first layer.
    pub fn embedding_scale(&self) -> f32 {
        match self.family {
            Family::Gemma3 => (self.hidden_size as f32).sqrt(),
            _ => 1.0,
        }
    }

    /// What the file of a norm's weight lacks: Gemma keeps its norms' distance from 1.
    pub fn norm_offset(&self) -> f32 {
        if self.family == Family::Gemma3 { 1.0 } else { 0.0 }
    }

    /// Layers that attend, and so have keys and values.
    pub fn attention_layers(&self) -> usize {
        (0..self.layers).filter(|index| self.taps(*index).is_none()).count()
    }

    /// Checks what the forward function relies on.
    ///
    /// # Errors
    /// A sentence that names the key (in Hugging Face's spelling), the value and what is wanted.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.layers,
            self.heads,
            self.head_dim,
            self.max_position_embeddings,
        ];
        for ((key, cap), size) in CAPS.into_iter().zip(sizes) {
            if size == 0 || size > cap {
                return Err(format!("{key}: {size} is out of range; want 1 to {cap}"));
            }
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "num_key_value_heads: {} does not divide num_attention_heads = {}",
                self.kv_heads, self.heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim: {} is odd; rotary embedding turns pairs", self.head_dim));
        }
        if !self.rotary_dim.is_multiple_of(2) || !(2..=self.head_dim).contains(&self.rotary_dim) {
            return Err(format!(
                "partial_rotary_factor: turns {} elements of a head of {}; want an even number of them",
                self.rotary_dim, self.head_dim
            ));
        }
        if !(1..=1 << 14).contains(&self.query_scalar) {
            return Err(format!(
                "query_pre_attn_scalar: {} is out of range; want 1 to 16384",
                self.query_scalar
            ));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(format!("rms_norm_eps: {} is not a positive number", self.rms_norm_eps));
        }
        let thetas = [("rope_theta", Some(self.rope_theta)), ("rope_local_base_freq", self.local_rope_theta)];
        for (key, theta) in thetas {
            if let Some(theta) = theta.filter(|theta| !(theta.is_finite() && *theta > 0.0)) {
                return Err(format!("{key}: {theta} is not a positive number"));
            }
        }
        if self.sub_norms && self.q_size() != self.hidden_size {
            return Err(format!(
                "head_dim: {} heads of {} (num_attention_heads of head_dim) are not hidden_size = {} wide, as the norm behind attention is",
                self.heads, self.head_dim, self.hidden_size
            ));
        }
        self.check_convolutions()?;
        self.check_windows()?;
        self.rope_scaling.check(self.rotary_dim)
    }

    fn check_kinds(&self, kinds: &[bool]) -> Result<(), String> {
        if kinds.len() == self.layers {
            return Ok(());
        }
        let named = kinds.len();
        Err(format!("layer_types: names {named} layers; num_hidden_layers is {}", self.layers))
    }

    fn check_windows(&self) -> Result<(), String> {
        let Some(Sliding { window, layers }) = &self.sliding else { return Ok(()) };
        if *window == 0 {
            return Err("sliding_window: 0 is out of range; want at least 1, a token itself".into());
        }
        self.check_kinds(layers)
    }

    fn check_convolutions(&self) -> Result<(), String> {
        let Some(ShortConvs { taps, layers }) = &self.short_convs else { return Ok(()) };
        if !(2..=MOST_TAPS).contains(taps) {
            return Err(format!("conv_L_cache: {taps} is out of range; want 2 to {MOST_TAPS}"));
        }
        self.check_kinds(layers)
    }
}

impl RopeScaling {
    fn check(&self, rotary_dim: usize) -> Result<(), String> {
        let at_least_one = |factor: f64| {
            if factor.is_finite() && factor >= 1.0 {
                return Ok(());
            }
            Err(format!("rope_scaling.factor: {factor} is out of range; want a number of at least 1"))
        };
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => at_least_one(*factor),
            Self::LongRope { short, long, original_context, attention_factor } => {
                for (key, factors) in [("short_factor", short), ("long_factor", long)] {
                    check_factors(key, factors, rotary_dim / 2)?;
                }
                if *original_context < 2 {
                    return Err(format!(
                        "original_max_position_embeddings: {original_context} is out of range; want at least 2"
                    ));
                }
                match attention_factor.filter(|factor| !(factor.is_finite() && *factor > 0.0)) {
                    Some(factor) => {
                        Err(format!("rope_scaling.attention_factor: {factor} is not a positive number"))
                    }
                    None => Ok(()),
                }
            }
            &Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context } => {
                at_least_one(factor)?;
                if !(low.is_finite() && high.is_finite() && 0.0 < low && low < high) {
                    return Err(format!(
                        "rope_scaling: low_freq_factor = {low} and high_freq_factor = {high}; want 0 < low < high"
                    ));
                }
                if original_context == 0 {
                    return Err("rope_scaling.original_max_position_embeddings: 0; want at least 1".into());
                }
                Ok(())
            }
        }
    }
}

/// Factors of frequencies are as many as there are pairs, and positive.
fn check_factors(key: &str, factors: &[f64], pairs: usize) -> Result<(), String> {
    if factors.len() != pairs {
        return Err(format!(
            "rope_scaling.{key}: has {} factors; want {pairs}, one for each pair that turns",
            factors.len()
        ));
    }
    match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        Some(factor) => Err(format!("rope_scaling.{key}: {factor} is not a positive number")),
        None => Ok(()),
    }
}

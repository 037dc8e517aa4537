//! The shape of a model in llama.cpp's metadata, from and to [`Config`].
//!
//! Knows no tokenizer and no tensor's values. Invariant: what this decoder would compute differently is refused by its key.

mod windows;

use super::names::{EMBEDDING, HEAD, ROPE_FREQS, ROPE_LONG, ROPE_SHORT, in_block};
use super::reader::Gguf;
use super::value::{Array, Metadata, Value};
use crate::model::{Config, Family, RopeScaling, ShortConvs};
use crate::{Error, Result};

pub(crate) use windows::query_scalar;

/// Base of the rotary frequencies where the file names none.
const ROPE_THETA: f64 = 10_000.0;
/// Keys of features that no decoder here has, refused unless they are 0 or absent.
const FOREIGN: [&str; 6] = [
    "expert_count",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "attention.max_alibi_bias",
    "attention.clamp_kqv",
    "logit_scale",
];

/// Key of the number of files that a model is in.
const SPLITS: &str = "split.count";

/// llama.cpp's name of the architecture. Its `bitnet` has another gate than BitNet b1.58, for which it has none.
pub(crate) fn architecture(family: Family) -> Option<&'static str> {
    match family {
        Family::Llama => Some("llama"),
        Family::Qwen2 => Some("qwen2"),
        Family::Qwen3 => Some("qwen3"),
        Family::Lfm2 => Some("lfm2"),
        Family::Phi3 => Some("phi3"),
        Family::Gemma3 => Some("gemma3"),
        Family::BitNet => None,
    }
}

/// Writes the shape of `config`, a model of `arch`, into `metadata`, with `context` as the longest context.
pub(crate) fn write(config: &Config, arch: &str, context: usize, metadata: &mut Metadata) {
    let mut set = |key: &str, value: Value| metadata.set(format!("{arch}.{key}"), value);
    // Sizes were checked when the config was read: all are far below 2^32.
    let size = |n: usize| Value::U32(n as u32);
    set("block_count", size(config.layers));
    set("context_length", size(context));
    set("embedding_length", size(config.hidden_size));
    set("feed_forward_length", size(config.intermediate_size));
    set("attention.head_count", size(config.heads));
    set(
        "attention.head_count_kv",
        match &config.short_convs {
            None => size(config.kv_heads),
            Some(ShortConvs { layers, .. }) => {
                let of_layer = |convolves: &bool| if *convolves { 0 } else { config.kv_heads as i32 };
                Value::Array(Array::I32(layers.iter().map(of_layer).collect()))
            }
        },
    );
    if let RopeScaling::Linear { factor } = config.rope_scaling {
        set("rope.scaling.type", Value::from("linear"));
        set("rope.scaling.factor", Value::F32(factor as f32));
    }
    set("rope.freq_base", Value::F32(config.rope_theta as f32));
    set("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps));
    if let Some(ShortConvs { taps, .. }) = &config.short_convs {
        set("vocab_size", size(config.vocab_size));
        set("shortconv.l_cache", size(*taps));
    }
    // llama.cpp's converter leaves it out for families whose heads always share the width.
    if !matches!(config.family, Family::Qwen2 | Family::Lfm2) || config.q_size() != config.hidden_size {
        set("attention.key_length", size(config.head_dim));
        set("attention.value_length", size(config.head_dim));
    }
    if config.family == Family::Llama {
        set("vocab_size", size(config.vocab_size));
        set("rope.dimension_count", size(config.head_dim));
    }
    windows::write(config, arch, metadata);
}

/// The tensors of a file that say how frequencies are stretched.
pub(crate) fn rope_tensors(config: &Config) -> Vec<(&'static str, Vec<f32>)> {
    if let RopeScaling::LongRope { short, long, .. } = &config.rope_scaling {
        let narrow = |factors: &[f64]| factors.iter().map(|factor| *factor as f32).collect();
        return vec![(ROPE_LONG, narrow(long)), (ROPE_SHORT, narrow(short))];
    }
    rope_factors(config).map(|factors| (ROPE_FREQS, factors)).into_iter().collect()
}

/// The factors by which llama-3's scaling divides each frequency, `[head_dim / 2]`; none for another scaling.
pub(crate) fn rope_factors(config: &Config) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context } =
        config.rope_scaling
    else {
        return None;
    };
    // In f32, as the converter does it.
    let [factor, low, high] = [factor as f32, low as f32, high as f32];
    let (context, dim) = (original_context as f32, config.head_dim as f32);
    let of_pair = |pair: usize| {
        let freq = 1.0 / config.rope_theta.powf(f64::from((2 * pair) as f32 / dim)) as f32;
        let wavelength = std::f32::consts::TAU / freq;
        if wavelength < context / high {
            return 1.0;
        }
        if wavelength > context / low {
            return factor;
        }
        let kept = (context / wavelength - low) / (high - low);
        1.0 / ((1.0 - kept) / factor + kept)
    };
    Some((0..config.head_dim / 2).map(of_pair).collect())
}

/// The shape that `file` describes, by its metadata and by the tensors that it has.
///
/// # Errors
/// An architecture or a feature that the decoder lacks, or a key that is missing.
pub(crate) fn read(file: &Gguf) -> Result<Config> {
    let keys = Keys::new(file)?;
    keys.refuse_what_the_decoder_lacks()?;
    let shape_of = |name: &str| file.get(name).map(|info| info.shape.as_slice());
    let Some(&[vocab_size, _]) = shape_of(EMBEDDING) else {
        return Err(Error::tensor(EMBEDDING, format!("missing from {}", file.path().display())));
    };
    let (hidden, heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
    let (kv_heads, short_convs) = keys.kv_heads(heads)?;
    let head_dim = keys.head_dim(hidden, heads)?;
    let rotary_dim = keys.rotary_dim(head_dim)?;
    // Biases are in all layers or in none.
    let layers = keys.size("block_count")?;
    let has = |tensor: &str| file.get(&in_block(0, tensor)).is_some();
    let mut config = Config {
        family: keys.family,
        vocab_size,
        hidden_size: hidden,
        intermediate_size: keys.size("feed_forward_length")?,
        layers,
        heads,
        kv_heads,
        head_dim,
        rotary_dim,
        query_scalar: keys.query_scalar(hidden, heads, head_dim, layers),
        max_position_embeddings: keys.size("context_length")?,
        rms_norm_eps: keys
            .number("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))? as f32,
        rope_theta: keys.number("rope.freq_base")?.unwrap_or(ROPE_THETA),
        local_rope_theta: keys.local_rope_theta()?,
        sliding: keys.sliding(layers)?,
        rope_scaling: keys.rope_scaling()?,
        tie_word_embeddings: file.get(HEAD).is_none(),
        qkv_bias: has("attn_q.bias"),
        o_bias: has("attn_output.bias"),
        mlp_bias: has("ffn_gate.bias"),
        qk_norm: keys.family.has_qk_norm(),
        gate: keys.family.gate(),
        sub_norms: false,
        post_norms: keys.family == Family::Gemma3,
        short_convs,
        bos_token_id: keys.token("bos")?,
        eos_token_ids: ["eos", "eot", "eom"]
            .iter()
            .filter_map(|of| keys.token(of).transpose())
            .collect::<Result<_>>()?,
    };
    config.eos_token_ids.dedup();
    if let Some(scaling) = keys.long_rope(file, &config)? {
        config.rope_scaling = scaling;
    }
    config.check().map_err(|problem| Error::file(file.path(), problem))?;
    if let Some(id) =
        config.bos_token_id.iter().chain(&config.eos_token_ids).find(|id| **id as usize >= vocab_size)
    {
        let problem = format!("names {id} as a special token; the vocabulary has {vocab_size}");
        return Err(Error::file(file.path(), problem));
    }
    if let Some(scaling) = llama3_scaling(file, &config)? {
        config.rope_scaling = scaling;
    }
    Ok(config)
}

/// The metadata of one architecture.
struct Keys<'a> {
    family: Family,
    arch: &'static str,
    metadata: &'a Metadata,
}

impl<'a> Keys<'a> {
    fn new(file: &'a Gguf) -> Result<Self> {
        let metadata = &file.metadata;
        let known = || Family::ALL.into_iter().filter_map(|family| Some((family, architecture(family)?)));
        let found = metadata.text("general.architecture")?;
        let (family, arch) = known().find(|(_, arch)| Some(*arch) == found).ok_or_else(|| {
            let names: Vec<&str> = known().map(|(_, arch)| arch).collect();
            metadata.wrong("general.architecture", &format!("one of {}", names.join(", ")))
        })?;
        Ok(Self { family, arch, metadata })
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn missing(&self, key: &str) -> Error {
        self.metadata.wrong(&self.key(key), "a number")
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        self.metadata.size(&self.key(key))
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional(key)?.ok_or_else(|| self.missing(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.key(key))
    }

    fn token(&self, of: &str) -> Result<Option<u32>> {
        let id = self.metadata.size(&format!("tokenizer.ggml.{of}_token_id"))?;
        Ok(id.and_then(|id| u32::try_from(id).ok()))
    }

    fn refuse_what_the_decoder_lacks(&self) -> Result<()> {
        if self.metadata.size(SPLITS)?.is_some_and(|files| files > 1) {
            return Err(self.metadata.wrong(SPLITS, "one file: join them with llama-gguf-split --merge"));
        }
        for key in FOREIGN {
            match self.metadata.get(&self.key(key)) {
                None | Some(Value::U32(0)) => {}
                Some(Value::F32(x)) if *x == 0.0 => {}
                Some(_) => return Err(self.metadata.wrong(&self.key(key), "0, or no such key")),
            }
        }
        Ok(())
    }

    /// Width of a head.
    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize> {
        let default = || match heads {
            1.. if hidden.is_multiple_of(heads) => Ok(hidden / heads),
            _ => Err(self.missing("attention.key_length")),
        };
        let head_dim = self.optional("attention.key_length")?.map_or_else(default, Ok)?;
        const VALUES: &str = "attention.value_length";
        if self.optional(VALUES)?.is_some_and(|found| found != head_dim) {
            return Err(self.metadata.wrong(&self.key(VALUES), &format!("{head_dim}, the width of a head")));
        }
        Ok(head_dim)
    }

    /// Key/value heads of the layers that attend, and the layers that convolve: those that have none.
    fn kv_heads(&self, heads: usize) -> Result<(usize, Option<ShortConvs>)> {
        const KEY: &str = "attention.head_count_kv";
        if self.family != Family::Lfm2 {
            return Ok((self.optional(KEY)?.unwrap_or(heads), None));
        }
        let counts: Vec<i64> = match self.metadata.get(&self.key(KEY)) {
            Some(Value::Array(Array::I32(counts))) => counts.iter().map(|n| i64::from(*n)).collect(),
            Some(Value::Array(Array::U32(counts))) => counts.iter().map(|n| i64::from(*n)).collect(),
            _ => return Err(self.metadata.wrong(&self.key(KEY), "an array with a number for each layer")),
        };
        let most = counts.iter().copied().max().and_then(|most| usize::try_from(most).ok()).unwrap_or(0);
        let is_known = |count: &i64| *count == 0 || usize::try_from(*count) == Ok(most);
        if most == 0 || !counts.iter().all(is_known) {
            let wanted = "one number of heads where a layer attends, and 0 where it convolves";
            return Err(self.metadata.wrong(&self.key(KEY), wanted));
        }
        let layers = counts.iter().map(|count| *count == 0).collect();
        Ok((most, Some(ShortConvs { taps: self.size("shortconv.l_cache")?, layers })))
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        let key = self.key("rope.scaling.type");
        match self.metadata.text(&key)? {
            None | Some("none") => Ok(RopeScaling::None),
            Some("linear") => {
                let factor = self.number("rope.scaling.factor")?;
                Ok(RopeScaling::Linear { factor: factor.ok_or_else(|| self.missing("rope.scaling.factor"))? })
            }
            Some(_) => Err(self.metadata.wrong(&key, "\"none\" or \"linear\"")),
        }
    }
}

/// The scaling whose factors the file has. It lists factors and not what they were made from, which is found by trying what llama-3 models
/// have: frequency factors 1 and 4, and an original context that is a power of two.
fn llama3_scaling(file: &Gguf, config: &Config) -> Result<Option<RopeScaling>> {
    if file.get(ROPE_FREQS).is_none() {
        return Ok(None);
    }
    let factors = super::model::values_of(file, ROPE_FREQS, [1, config.head_dim / 2])?;
    let largest = factors.iter().fold(1.0_f32, |a, &b| a.max(b));
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs();
    let candidates = (8..=20).map(|power| RopeScaling::Llama3 {
        factor: f64::from(largest),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 1 << power,
    });
    let same = |scaling: &RopeScaling| {
        let tried = Config { rope_scaling: scaling.clone(), ..config.clone() };
        rope_factors(&tried).is_some_and(|made| made.iter().zip(&factors).all(close))
    };
    let found = candidates.into_iter().find(same);
    found.map(Some).ok_or_else(|| {
        let problem = "the factors of the rotary frequencies are not those of a llama-3 scaling with frequency factors 1 and 4; open the \
                       original model instead";
        Error::tensor(ROPE_FREQS, format!("{problem} (in {})", file.path().display()))
    })
}

//! Hugging Face's `config.json`, read and written.
//!
//! A foreign file: unknown keys are let through, but every key that changes the arithmetic is checked, and one that asks
//! for something this decoder doesn't do is an error naming the key, the value and what is supported. Accepts both the
//! flat `rope_theta`/`rope_scaling` and transformers v5's `rope_parameters`. Defaults are those of transformers.

use std::path::Path;

use serde_json::{Value, json};

use super::{Config, Family, RopeScaling, ShortConvs};
use crate::{Error, Result};

/// How `layer_types` calls a layer that attends to everything.
const FULL_ATTENTION: &str = "full_attention";
/// How `layer_types` calls a layer that convolves.
const CONV: &str = "conv";
/// Head width of a Qwen3 whose config doesn't give one (transformers' `Qwen3Config`).
const QWEN3_HEAD_DIM: usize = 128;
/// Base of the rotary frequencies when the config doesn't give one (transformers' default for most families).
const ROPE_THETA: f64 = 10_000.0;
/// The same for LFM2.
const LFM2_ROPE_THETA: f64 = 1_000_000.0;
/// Tokens that a short convolution sees when the config doesn't say (transformers' `Lfm2Config`).
const LFM2_TAPS: usize = 3;
/// The width inside LFM2's MLPs is a multiple of this when the config doesn't say (transformers' `Lfm2Config`).
const LFM2_MULTIPLE: usize = 256;

impl Config {
    /// The configuration that `json`, read from `origin`, describes.
    ///
    /// # Errors
    /// Names `origin`, the key, the value found and what is supported.
    pub fn from_json(json: &Value, origin: &Path) -> Result<Self> {
        let keys = Keys { json, prefix: "", origin };
        let family = keys.family()?;
        keys.refuse_what_the_decoder_lacks(family)?;
        let (heads, hidden) = (keys.size("num_attention_heads")?, keys.size("hidden_size")?);
        let attention_bias = keys.flag("attention_bias", false)?;
        let (rope_theta, rope_scaling) = keys.rope(family)?;
        let layers = keys.size("num_hidden_layers")?;
        let config = Self {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size: hidden,
            intermediate_size: keys.intermediate_size(family)?,
            layers,
            heads,
            kv_heads: keys.size_or("num_key_value_heads", heads)?,
            head_dim: keys.head_dim(family, hidden, heads)?,
            max_position_embeddings: keys.size("max_position_embeddings")?,
            rms_norm_eps: keys.eps(family)?,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: keys.tied(family)?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias && family != Family::Qwen2,
            mlp_bias: keys.flag("mlp_bias", false)?,
            qk_norm: family.has_qk_norm(),
            gate: family.gate(),
            sub_norms: family == Family::BitNet,
            short_convs: if family == Family::Lfm2 { Some(keys.short_convs(layers)?) } else { None },
            bos_token_id: keys.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: keys.token_ids("eos_token_id")?,
        };
        config.check().map_err(|problem| Error::file(origin, problem))?;
        Ok(config)
    }

    /// A `config.json` that transformers (4 and 5) reads as this model. It says nothing about the storage of the weights.
    pub fn to_json(&self) -> Value {
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        let mut json = json!({
            "architectures": [self.family.architecture()],
            "model_type": self.family.model_type(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": self.gate.name(),
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling.to_json(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
        });
        match self.family {
            Family::BitNet => json["attention_bias"] = json!(self.qkv_bias),
            Family::Lfm2 => self.add_lfm2(&mut json),
            Family::Llama => {
                json["attention_bias"] = json!(self.qkv_bias);
                json["mlp_bias"] = json!(self.mlp_bias);
            }
            Family::Qwen2 => json["use_sliding_window"] = json!(false),
            Family::Qwen3 => {
                json["attention_bias"] = json!(self.qkv_bias);
                json["use_sliding_window"] = json!(false);
            }
        }
        json
    }
}

impl Config {
    /// LFM2's own keys: those that transformers reads, and those that mlx-lm wants to see.
    fn add_lfm2(&self, json: &mut Value) {
        let attends = |index: usize| self.taps(index).is_none();
        let kinds = (0..self.layers).map(|index| if attends(index) { FULL_ATTENTION } else { CONV });
        json["layer_types"] = kinds.collect();
        json["full_attn_idxs"] = (0..self.layers).filter(|index| attends(*index)).collect();
        json["conv_L_cache"] = json!(self.short_convs.as_ref().map_or(LFM2_TAPS, |convs| convs.taps));
        json["conv_bias"] = json!(false);
        json["norm_eps"] = json!(shortest(self.rms_norm_eps));
        json["tie_embedding"] = json!(self.tie_word_embeddings);
        json["block_dim"] = json!(self.hidden_size);
        json["block_ff_dim"] = json!(self.intermediate_size);
        json["block_auto_adjust_ff_dim"] = json!(false);
        json["block_ffn_dim_multiplier"] = json!(1.0);
        json["block_multiple_of"] = json!(LFM2_MULTIPLE);
    }
}

impl RopeScaling {
    fn to_json(self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_context,
            }),
        }
    }
}

/// The f64 with the fewest digits that is the same f32, so that 1e-5 is written as 1e-5.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// The keys of one JSON object; `null` counts as absent, as in transformers.
struct Keys<'a> {
    json: &'a Value,
    /// What precedes a key in messages ("" or "rope_scaling.").
    prefix: &'static str,
    origin: &'a Path,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, found: &Value, wanted: &str) -> Error {
        Error::file(self.origin, format!("{}{key}: {found} is not supported; want {wanted}", self.prefix))
    }

    fn missing(&self, key: &str, wanted: &str) -> Error {
        Error::file(self.origin, format!("{}{key}: missing; want {wanted}", self.prefix))
    }

    fn size(&self, key: &str) -> Result<usize> {
        const WANTED: &str = "a whole number";
        let value = self.get(key).ok_or_else(|| self.missing(key, WANTED))?;
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| self.wrong(key, value, WANTED))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        self.get(key).map_or(Ok(default), |_| self.size(key))
    }

    fn number(&self, key: &str) -> Result<f64> {
        const WANTED: &str = "a number";
        let value = self.get(key).ok_or_else(|| self.missing(key, WANTED))?;
        value.as_f64().ok_or_else(|| self.wrong(key, value, WANTED))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// One id, a list of ids, or none.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        list.iter()
            .map(|v| id(v).ok_or_else(|| self.wrong(key, value, "a token id or a list of token ids")))
            .collect()
    }

    fn family(&self) -> Result<Family> {
        let supported = Family::ALL.map(|family| format!("{:?}", family.model_type())).join(", ");
        let wanted = format!("one of {supported}");
        let value = self.get("model_type").ok_or_else(|| self.missing("model_type", &wanted))?;
        Family::ALL
            .into_iter()
            .find(|family| value == family.model_type())
            .ok_or_else(|| self.wrong("model_type", value, &wanted))
    }

    fn head_dim(&self, family: Family, hidden: usize, heads: usize) -> Result<usize> {
        if self.get("head_dim").is_some() {
            return self.size("head_dim");
        }
        if family == Family::Qwen3 {
            return Ok(QWEN3_HEAD_DIM);
        }
        if heads == 0 || !hidden.is_multiple_of(heads) {
            let wanted = format!(
                "a head_dim, or hidden_size = {hidden} to be a multiple of num_attention_heads = {heads}"
            );
            return Err(self.missing("head_dim", &wanted));
        }
        Ok(hidden / heads)
    }

    /// Width inside the MLP. LFM2's configs give the width that two matrices would have had, of which three get two thirds,
    /// rounded up.
    fn intermediate_size(&self, family: Family) -> Result<usize> {
        if family != Family::Lfm2 {
            return self.size("intermediate_size");
        }
        let key = if self.get("block_ff_dim").is_some() { "block_ff_dim" } else { "intermediate_size" };
        let width = self.size(key)?;
        if !self.flag("block_auto_adjust_ff_dim", true)? {
            return Ok(width);
        }
        let multiple = self.size_or("block_multiple_of", LFM2_MULTIPLE)?;
        let factor = match self.get("block_ffn_dim_multiplier") {
            Some(_) => self.number("block_ffn_dim_multiplier")?,
            None => 1.0,
        };
        let two_thirds = (width / 3).saturating_mul(2).saturating_add(width % 3 * 2 / 3);
        // A size beyond f64's whole numbers is refused by its cap.
        let scaled = (factor * two_thirds as f64) as usize;
        scaled.checked_next_multiple_of(multiple.max(1)).ok_or_else(|| {
            self.wrong(key, &json!(width), "a width that can be adjusted (block_auto_adjust_ff_dim)")
        })
    }

    /// What is added to the mean square in norms.
    fn eps(&self, family: Family) -> Result<f32> {
        let key = match family {
            Family::Lfm2 if self.get("norm_eps").is_some() => "norm_eps",
            Family::Lfm2 => "block_norm_eps",
            _ => "rms_norm_eps",
        };
        Ok(self.number(key)? as f32)
    }

    fn tied(&self, family: Family) -> Result<bool> {
        match family {
            Family::Lfm2 if self.get("tie_embedding").is_some() => self.flag("tie_embedding", true),
            _ => self.flag("tie_word_embeddings", family == Family::Lfm2),
        }
    }

    /// Which of the `count` layers convolve, by either key.
    fn short_convs(&self, count: usize) -> Result<ShortConvs> {
        let layers = match (self.get("layer_types"), self.get("full_attn_idxs")) {
            (Some(types), _) => types.as_array().into_iter().flatten().map(|kind| kind == CONV).collect(),
            (None, Some(indices)) => {
                let list = indices.as_array().map(Vec::as_slice).unwrap_or_default();
                let attending: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
                let attending = attending.filter(|all| all.iter().all(|at| *at < count as u64));
                let attending = attending
                    .ok_or_else(|| self.wrong("full_attn_idxs", indices, "a list of numbers of layers"))?;
                // A corrupt count is refused by its cap before anything is made of it.
                (0..count.min(1 << 12)).map(|index| !attending.contains(&(index as u64))).collect()
            }
            (None, None) => return Err(self.missing("layer_types", "a list with one entry for each layer")),
        };
        Ok(ShortConvs { taps: self.size_or("conv_L_cache", LFM2_TAPS)?, layers })
    }

    /// Keys that would change the arithmetic in ways this decoder doesn't follow.
    fn refuse_what_the_decoder_lacks(&self, family: Family) -> Result<()> {
        let gate = family.gate().name();
        let is_other = |act: &&Value| **act != gate && !(gate == "silu" && **act == "swish");
        if let Some(act) = self.get("hidden_act").filter(is_other) {
            return Err(self.wrong("hidden_act", act, &format!("{gate:?}")));
        }
        for key in ["use_sliding_window", "rope_interleaved", "conv_bias"] {
            if self.flag(key, false)? {
                return Err(self.wrong(key, &Value::Bool(true), "false"));
            }
        }
        if family != Family::Llama && self.flag("mlp_bias", false)? {
            return Err(self.wrong(
                "mlp_bias",
                &Value::Bool(true),
                "false (only \"llama\" has biases in its MLP)",
            ));
        }
        if let Some(types) = self.get("layer_types") {
            let is_known = |kind: &Value| kind == FULL_ATTENTION || family == Family::Lfm2 && kind == CONV;
            if !types.as_array().is_some_and(|list| list.iter().all(is_known)) {
                let others = if family == Family::Lfm2 { " or \"conv\"" } else { "" };
                let wanted = format!("{FULL_ATTENTION:?}{others} for every layer");
                return Err(self.wrong("layer_types", types, &wanted));
            }
        }
        if let Some(part) = self.get("partial_rotary_factor").filter(|part| part.as_f64() != Some(1.0)) {
            return Err(self.wrong("partial_rotary_factor", part, "1.0"));
        }
        if let Some(quantization) = self.get("quantization_config") {
            let method = quantization.get("quant_method").unwrap_or(quantization);
            return Err(self.wrong("quantization_config", method, "float weights and no such key"));
        }
        Ok(())
    }

    /// Base and scaling of the rotary frequencies, from either spelling.
    fn rope(&self, family: Family) -> Result<(f64, RopeScaling)> {
        let default = if family == Family::Lfm2 { LFM2_ROPE_THETA } else { ROPE_THETA };
        let (name, prefix) = match self.get("rope_parameters") {
            Some(_) => ("rope_parameters", "rope_parameters."),
            None => ("rope_scaling", "rope_scaling."),
        };
        // LFM2's first configs call it theta, and that counts.
        let is_lfm2 = family == Family::Lfm2 && self.get("theta").is_some();
        let key = if is_lfm2 { "theta" } else { "rope_theta" };
        let flat_theta = self.get(key).map(|_| self.number(key)).transpose()?;
        let Some(object) = self.get(name) else {
            return Ok((flat_theta.unwrap_or(default), RopeScaling::None));
        };
        if !object.is_object() {
            return Err(self.wrong(name, object, "an object or null"));
        }
        let keys = Keys { json: object, prefix, origin: self.origin };
        let theta = keys.get("rope_theta").map(|_| keys.number("rope_theta")).transpose()?;
        let scaling = keys.rope_scaling()?;
        if let Some(part) = keys.get("partial_rotary_factor").filter(|part| part.as_f64() != Some(1.0)) {
            return Err(keys.wrong("partial_rotary_factor", part, "1.0"));
        }
        Ok((theta.or(flat_theta).unwrap_or(default), scaling))
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        const WANTED: &str = "\"default\", \"linear\" or \"llama3\"";
        let key = if self.get("rope_type").is_some() { "rope_type" } else { "type" };
        let kind = self.get(key).ok_or_else(|| self.missing("rope_type", WANTED))?;
        match kind.as_str() {
            Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.number("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: self.number("factor")?,
                low_freq_factor: self.number("low_freq_factor")?,
                high_freq_factor: self.number("high_freq_factor")?,
                original_context: self.size("original_max_position_embeddings")?,
            }),
            _ => Err(self.wrong(key, kind, WANTED)),
        }
    }
}

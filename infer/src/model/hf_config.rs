//! Hugging Face's `config.json`, read and written.
//!
//! A foreign file: unknown keys are let through, but every key that changes the arithmetic is checked, and one that asks
//! for something this decoder doesn't do is an error naming the key, the value and what is supported. Accepts both the
//! flat `rope_theta`/`rope_scaling` and transformers v5's `rope_parameters`. Defaults are those of transformers.

mod gemma3;
mod keys;
mod lfm2;
#[cfg(test)]
mod properties;
mod rope;

use std::path::Path;

use serde_json::{Value, json};

use self::keys::Keys;
use super::{Config, Family, Sliding};
use crate::{Error, Result};

/// How `layer_types` calls a layer that attends to everything.
const FULL_ATTENTION: &str = "full_attention";
/// How `layer_types` calls a layer that sees a window.
const SLIDING_ATTENTION: &str = "sliding_attention";
/// How `layer_types` calls a layer that convolves.
const CONV: &str = "conv";
/// Names that LFM2's first configs have for keys, and that count before the usual ones.
const OF_LFM2: [(&str, &str); 4] = [
    ("intermediate_size", "block_ff_dim"),
    ("rms_norm_eps", "norm_eps"),
    ("rms_norm_eps", "block_norm_eps"),
    ("rope_theta", "theta"),
];
/// Head width of a Qwen3 whose config doesn't give one (transformers' `Qwen3Config`).
const QWEN3_HEAD_DIM: usize = 128;
impl Config {
    /// The configuration that `json`, read from `origin`, describes.
    ///
    /// # Errors
    /// Names `origin`, the key, the value found and what is supported.
    pub fn from_json(json: &Value, origin: &Path) -> Result<Self> {
        let text = gemma3::text(json);
        let keys = Keys { json: text.as_ref().unwrap_or(json), prefix: "", origin };
        let family = keys.family()?;
        keys.refuse_what_the_decoder_lacks(family)?;
        let (heads, hidden) = (keys.size("num_attention_heads")?, keys.size("hidden_size")?);
        let attention_bias = keys.flag("attention_bias", false)?;
        let (rope_theta, rope_scaling) = keys.rope(family)?;
        let layers = keys.size("num_hidden_layers")?;
        let head_dim = keys.head_dim(family, hidden, heads)?;
        let config = Self {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size: hidden,
            intermediate_size: keys.intermediate_size(family)?,
            layers,
            heads,
            kv_heads: keys.size_or("num_key_value_heads", heads)?,
            head_dim,
            rotary_dim: keys.rotary_dim(family, head_dim)?,
            query_scalar: match family {
                Family::Gemma3 => keys.size("query_pre_attn_scalar")?,
                _ => head_dim,
            },
            max_position_embeddings: keys.size("max_position_embeddings")?,
            rms_norm_eps: keys.eps(family)?,
            rope_theta,
            rope_scaling,
            local_rope_theta: if family == Family::Gemma3 { Some(keys.local_rope_theta()?) } else { None },
            sliding: keys.sliding(family, layers)?,
            tie_word_embeddings: keys.tied(family)?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias && family != Family::Qwen2,
            mlp_bias: keys.flag("mlp_bias", false)?,
            qk_norm: family.has_qk_norm(),
            gate: family.gate(),
            sub_norms: family == Family::BitNet,
            post_norms: family == Family::Gemma3,
            short_convs: if family == Family::Lfm2 { Some(keys.short_convs(layers)?) } else { None },
            bos_token_id: keys.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: keys.token_ids("eos_token_id")?,
        };
        config.check().map_err(|problem| Error::file(origin, keys.spelled(family, problem)))?;
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
            Family::Gemma3 => self.add_gemma3(&mut json),
            Family::Phi3 => self.add_phi3(&mut json),
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

impl<'a> Keys<'a> {
    /// `problem`, which begins with a key, with the name that the file has for it.
    fn spelled(&self, family: Family, problem: String) -> String {
        let of_lfm2 = if family == Family::Lfm2 { &OF_LFM2[..] } else { &[] };
        let other = [("rope_scaling", "rope_parameters")].iter().chain(of_lfm2).find_map(|(key, other)| {
            let rest = problem.strip_prefix(key).filter(|_| self.get(other).is_some())?;
            Some(format!("{other}{rest}"))
        });
        other.unwrap_or(problem)
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

    /// Keys that would change the arithmetic in ways this decoder doesn't follow.
    fn refuse_what_the_decoder_lacks(&self, family: Family) -> Result<()> {
        let gate = family.gate().name();
        let is_other = |act: &&Value| **act != gate && !(gate == "silu" && **act == "swish");
        let key = if family == Family::Gemma3 { "hidden_activation" } else { "hidden_act" };
        if let Some(act) = self.get(key).filter(is_other) {
            return Err(self.wrong(key, act, &format!("{gate:?}")));
        }
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if let Some(cap) = self.get(key) {
                return Err(self.wrong(key, cap, "null"));
            }
        }
        for key in ["use_sliding_window", "rope_interleaved", "conv_bias", "use_bidirectional_attention"] {
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
        if family == Family::Phi3 && self.flag("attention_bias", false)? {
            return Err(self.wrong("attention_bias", &Value::Bool(true), "false"));
        }
        if let Some(types) = self.get("layer_types") {
            let other = match family {
                Family::Lfm2 => Some(CONV),
                Family::Gemma3 => Some(SLIDING_ATTENTION),
                _ => None,
            };
            let is_known = |kind: &Value| kind == FULL_ATTENTION || other.is_some_and(|other| kind == other);
            if !types.as_array().is_some_and(|list| list.iter().all(is_known)) {
                let others = other.map_or(String::new(), |other| format!(" or {other:?}"));
                let wanted = format!("{FULL_ATTENTION:?}{others} for every layer");
                return Err(self.wrong("layer_types", types, &wanted));
            }
        }
        if let Some(quantization) = self.get("quantization_config") {
            let method = quantization.get("quant_method").unwrap_or(quantization);
            return Err(self.wrong("quantization_config", method, "float weights and no such key"));
        }
        Ok(())
    }

    /// The layers that see a window: all of them in Phi-3, those of the pattern in Gemma 3.
    fn sliding(&self, family: Family, layers: usize) -> Result<Option<Sliding>> {
        if self.get("sliding_window").is_none() || !matches!(family, Family::Phi3 | Family::Gemma3) {
            return Ok(None);
        }
        let window = self.size("sliding_window")?;
        let layers = match family {
            Family::Gemma3 => self.sliding_layers(layers)?,
            // A corrupt count is refused by its cap before anything is made of it.
            _ => vec![true; layers.min(1 << 12)],
        };
        Ok(Some(Sliding { window, layers }))
    }
}

/// The f64 with the fewest digits that is the same f32, so that 1e-5 is written as 1e-5.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

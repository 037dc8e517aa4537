//! What `config.json` says of rotary frequencies, in the spellings of transformers 4 and 5.

use serde_json::{Value, json};

use super::keys::Keys;
use super::{FULL_ATTENTION, SLIDING_ATTENTION};
use crate::Result;
use crate::model::{Config, Family, RopeScaling};

/// Base of the rotary frequencies when the config doesn't give one (transformers' default for most families).
const THETA: f64 = 10_000.0;
/// The same for LFM2, and for Gemma 3's layers that see everything.
const LONG_THETA: f64 = 1_000_000.0;
/// Context of pre-training of a Phi-3 whose config doesn't give one (transformers' `Phi3Config`).
const PHI3_CONTEXT: usize = 4096;

impl Config {
    /// Phi-3's own keys.
    pub(super) fn add_phi3(&self, json: &mut Value) {
        let original = match &self.rope_scaling {
            RopeScaling::LongRope { original_context, .. } => *original_context,
            _ => self.max_position_embeddings,
        };
        json["original_max_position_embeddings"] = json!(original);
        json["partial_rotary_factor"] = json!(self.rotary_dim as f64 / self.head_dim as f64);
        json["sliding_window"] = json!(self.sliding.as_ref().map(|sliding| sliding.window));
        json["attention_bias"] = json!(false);
        // transformers' own, 32000, need not be in the vocabulary.
        json["pad_token_id"] = json!(self.eos_token_ids.first());
    }
}

impl Keys<'_> {
    /// Base and scaling of the rotary frequencies, from either spelling.
    pub fn rope(&self, family: Family) -> Result<(f64, RopeScaling)> {
        let default = if matches!(family, Family::Lfm2 | Family::Gemma3) { LONG_THETA } else { THETA };
        // LFM2's first configs call it theta, and that counts.
        let is_lfm2 = family == Family::Lfm2 && self.get("theta").is_some();
        let key = if is_lfm2 { "theta" } else { "rope_theta" };
        let flat_theta = self.get(key).map(|_| self.number(key)).transpose()?;
        let Some(keys) = self.rotation(FULL_ATTENTION)? else {
            return Ok((flat_theta.unwrap_or(default), RopeScaling::None));
        };
        let theta = keys.get("rope_theta").map(|_| keys.number("rope_theta")).transpose()?;
        let scaling = match family {
            Family::Phi3 => keys.long_rope(self)?,
            _ => keys.rope_scaling()?,
        };
        Ok((theta.or(flat_theta).unwrap_or(default), scaling))
    }

    /// What is said of the rotation in layers of a kind, under either key; version 5 may say it for each kind.
    fn rotation(&self, kind: &str) -> Result<Option<Self>> {
        let (name, prefix) = match self.get("rope_parameters") {
            Some(_) => ("rope_parameters", "rope_parameters."),
            None => ("rope_scaling", "rope_scaling."),
        };
        let Some(object) = self.get(name) else { return Ok(None) };
        let of_kind = object.get(kind).filter(|of_kind| of_kind.is_object());
        if !object.is_object() {
            return Err(self.wrong(name, object, "an object or null"));
        }
        Ok(Some(Keys { json: of_kind.unwrap_or(object), prefix, origin: self.origin }))
    }

    /// Base of the rotary frequencies of Gemma 3's layers that see a window.
    pub fn local_rope_theta(&self) -> Result<f64> {
        const KEY: &str = "rope_local_base_freq";
        if self.get(KEY).is_some() {
            return self.number(KEY);
        }
        let nested = self.get("rope_parameters").and_then(|parameters| parameters.get(SLIDING_ATTENTION));
        let Some(json) = nested.filter(|of_kind| of_kind.is_object()) else { return Ok(THETA) };
        let keys = Keys { json, prefix: "rope_parameters.sliding_attention.", origin: self.origin };
        if let Some(kind) = keys.get("rope_type").filter(|kind| **kind != "default") {
            return Err(keys.wrong("rope_type", kind, "\"default\""));
        }
        keys.get("rope_theta").map_or(Ok(THETA), |_| keys.number("rope_theta"))
    }

    /// Elements of a head that turn.
    pub fn rotary_dim(&self, family: Family, head_dim: usize) -> Result<usize> {
        const KEY: &str = "partial_rotary_factor";
        let nested = self.rotation(FULL_ATTENTION)?.filter(|keys| keys.get(KEY).is_some());
        let keys = nested.as_ref().unwrap_or(self);
        let Some(found) = keys.get(KEY) else { return Ok(head_dim) };
        let factor = keys.number(KEY)?;
        if family == Family::Phi3 && factor > 0.0 && factor <= 1.0 {
            return Ok((head_dim as f64 * factor) as usize);
        }
        if factor == 1.0 {
            return Ok(head_dim);
        }
        let wanted = if family == Family::Phi3 { "a number above 0 and up to 1" } else { "1.0" };
        Err(keys.wrong(KEY, found, wanted))
    }

    /// Phi-3's scaling, which has had three names; `model` has the contexts.
    fn long_rope(&self, model: &Self) -> Result<RopeScaling> {
        const WANTED: &str = "\"default\" or \"longrope\"";
        let key = if self.get("rope_type").is_some() { "rope_type" } else { "type" };
        let kind = self.get(key).ok_or_else(|| self.missing("rope_type", WANTED))?;
        match kind.as_str() {
            Some("default") => Ok(RopeScaling::None),
            Some("longrope" | "su" | "yarn") => Ok(RopeScaling::LongRope {
                short: self.numbers("short_factor")?,
                long: self.numbers("long_factor")?,
                original_context: model.size_or("original_max_position_embeddings", PHI3_CONTEXT)?,
                attention_factor: self
                    .get("attention_factor")
                    .map(|_| self.number("attention_factor"))
                    .transpose()?,
            }),
            _ => Err(self.wrong(key, kind, WANTED)),
        }
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

impl RopeScaling {
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::None => Value::Null,
            // Transformers 4 wants these three, and the kind under this key.
            Self::LongRope { short, long, attention_factor, .. } => {
                let mut json = json!({ "type": "longrope", "short_factor": short, "long_factor": long });
                if let Some(factor) = attention_factor {
                    json["attention_factor"] = json!(factor);
                }
                json
            }
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

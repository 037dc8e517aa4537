//! The keys of Gemma 3: those of its text part, wherever they stand, with the defaults that published configs rely on.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::{FULL_ATTENTION, SLIDING_ATTENTION};
use crate::Result;
use crate::model::{Config, Family};

/// The `model_type` of a model that also sees; its text part is described under [`TEXT`].
const WITH_VISION: &str = "gemma3";
const TEXT: &str = "text_config";
/// Keys outside of the text part that are about texts.
const AROUND: [&str; 3] = ["bos_token_id", "eos_token_id", "quantization_config"];
/// One layer in so many sees everything, where the config doesn't say (transformers' `Gemma3TextConfig`).
const PATTERN: usize = 6;

/// What of `json` describes the text part of a Gemma 3, completed by the defaults of transformers' `Gemma3TextConfig`; none for
/// another family.
pub(super) fn text(json: &Value) -> Option<Value> {
    let kind = json.get("model_type").and_then(Value::as_str);
    let mut keys: Map<String, Value> = if kind == Some(WITH_VISION) {
        let mut keys = json.get(TEXT)?.as_object()?.clone();
        for key in AROUND {
            if let Some(value) = json.get(key).filter(|value| !value.is_null()) {
                keys.insert(key.to_owned(), value.clone());
            }
        }
        keys
    } else if kind == Some(Family::Gemma3.model_type()) {
        json.as_object()?.clone()
    } else {
        return None;
    };
    keys.insert("model_type".into(), json!(Family::Gemma3.model_type()));
    for (key, default) in [
        ("vocab_size", json!(262_208)),
        ("hidden_size", json!(2304)),
        ("intermediate_size", json!(9216)),
        ("num_hidden_layers", json!(26)),
        ("num_attention_heads", json!(8)),
        ("num_key_value_heads", json!(4)),
        ("head_dim", json!(256)),
        ("query_pre_attn_scalar", json!(256)),
        ("max_position_embeddings", json!(131_072)),
        ("rms_norm_eps", json!(1e-6)),
        ("tie_word_embeddings", json!(true)),
        ("bos_token_id", json!(2)),
        ("eos_token_id", json!(1)),
    ] {
        let is_missing = keys.get(key).is_none_or(Value::is_null);
        // A model without these tokens says so.
        if is_missing && !(key.ends_with("token_id") && keys.contains_key(key)) {
            keys.insert(key.into(), default);
        }
    }
    keys.entry("sliding_window").or_insert(json!(4096));
    Some(Value::Object(keys))
}

impl Keys<'_> {
    /// Which of the `count` layers see a window, by either key.
    pub fn sliding_layers(&self, count: usize) -> Result<Vec<bool>> {
        if let Some(types) = self.get("layer_types") {
            return Ok(types
                .as_array()
                .into_iter()
                .flatten()
                .map(|kind| kind == SLIDING_ATTENTION)
                .collect());
        }
        let pattern = self.size_or("sliding_window_pattern", PATTERN)?.max(1);
        // A corrupt count is refused by its cap before anything is made of it.
        Ok((1..=count.min(1 << 12)).map(|layer| !layer.is_multiple_of(pattern)).collect())
    }
}

impl Config {
    /// One layer in how many sees everything, where that is all there is to say.
    pub(crate) fn sliding_pattern(&self) -> Option<usize> {
        let layers = &self.sliding.as_ref()?.layers;
        let follows = |pattern: usize| {
            layers.iter().enumerate().all(|(at, slides)| *slides != (at + 1).is_multiple_of(pattern))
        };
        (1..=layers.len() + 1).find(|pattern| follows(*pattern))
    }

    /// Gemma 3's own keys: those that transformers reads, and those that mlx-lm does.
    pub(super) fn add_gemma3(&self, json: &mut Value) {
        let slides = |at: usize| self.sliding.as_ref().is_some_and(|sliding| sliding.layers[at]);
        let kinds = (0..self.layers).map(|at| if slides(at) { SLIDING_ATTENTION } else { FULL_ATTENTION });
        json["layer_types"] = kinds.collect();
        json["sliding_window"] = json!(self.sliding.as_ref().map(|sliding| sliding.window));
        if let Some(pattern) = self.sliding_pattern() {
            json["sliding_window_pattern"] = json!(pattern);
        }
        json["rope_local_base_freq"] = json!(self.local_rope_theta);
        json["query_pre_attn_scalar"] = json!(self.query_scalar);
        json["hidden_activation"] = json!(self.gate.name());
        json["attention_bias"] = json!(self.qkv_bias);
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            json[key] = Value::Null;
        }
    }
}

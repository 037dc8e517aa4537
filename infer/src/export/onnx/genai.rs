//! `genai_config.json`: what onnxruntime-genai wants to know besides the graph.
//!
//! Knows no tensor. Follows the keys of the configuration that onnxruntime-genai's own model builder writes.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::export::Source;
use crate::model::{Config, Family};
use crate::{Error, Result};

/// Name of the file.
pub(super) const GENAI_FILE: &str = "genai_config.json";
/// Name of the graph's file.
pub(super) const MODEL_FILE: &str = "model.onnx";

const GENERATION_FILE: &str = "generation_config.json";

/// How sampling is done when the model says nothing of it: greedily.
const SEARCH: [(&str, f64); 4] =
    [("temperature", 1.0), ("top_k", 50.0), ("top_p", 1.0), ("repetition_penalty", 1.0)];

/// The content of `genai_config.json` for contexts of up to `context` tokens.
pub(super) fn genai_config(source: &Source, companions: &[PathBuf], context: usize) -> Result<Value> {
    let config = &source.config;
    let generation = generation(companions)?;
    let mut model = Map::new();
    let eos = eos(config, &generation);
    let pad = token(&generation, "pad_token_id").or_else(|| token(&source.dir.config, "pad_token_id"));
    let tokens = [
        ("bos_token_id", token(&generation, "bos_token_id").or(config.bos_token_id).map(|id| json!(id))),
        ("eos_token_id", (!eos.is_empty()).then(|| json!(eos))),
        ("pad_token_id", pad.or(eos.first().copied()).map(|id| json!(id))),
    ];
    model.extend(tokens.into_iter().filter_map(|(key, ids)| Some((key.to_owned(), ids?))));
    model.insert("context_length".into(), json!(context));
    model.insert("type".into(), json!(kind(config.family)));
    model.insert("vocab_size".into(), json!(config.vocab_size));
    model.insert("decoder".into(), decoder(config));
    Ok(json!({ "model": model, "search": search(&generation, context) }))
}

/// What onnxruntime-genai calls a model whose inputs and outputs are these. It doesn't know BitNet, whose are Llama's.
fn kind(family: Family) -> &'static str {
    match family {
        Family::BitNet => Family::Llama.model_type(),
        known => known.model_type(),
    }
}

fn decoder(config: &Config) -> Value {
    json!({
        "session_options": { "log_id": "onnxruntime-genai", "provider_options": [] },
        "filename": MODEL_FILE,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
    })
}

fn search(generation: &Value, context: usize) -> Value {
    let number = |(key, default): (&str, f64)| {
        let value = generation.get(key).filter(|value| value.is_number()).cloned();
        let default = if key == "top_k" { json!(default as u64) } else { json!(default) };
        (key.to_owned(), value.unwrap_or(default))
    };
    let mut search: Map<String, Value> = SEARCH.into_iter().map(number).collect();
    let sample = generation.get("do_sample").and_then(Value::as_bool).unwrap_or(false);
    search.insert("do_sample".into(), json!(sample));
    search.insert("max_length".into(), json!(context));
    search.insert("min_length".into(), json!(0));
    search.insert("num_beams".into(), json!(1));
    search.insert("num_return_sequences".into(), json!(1));
    // Keys and values of a sequence stay in one place, long enough for `max_length`.
    search.insert("past_present_share_buffer".into(), json!(true));
    Value::Object(search)
}

/// The model's own generation settings, if it came with any.
fn generation(companions: &[PathBuf]) -> Result<Value> {
    let Some(path) = companions.iter().find(|path| path.file_name().is_some_and(|n| n == GENERATION_FILE))
    else {
        return Ok(Value::Null);
    };
    let bytes = std::fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::file(path, format!("is no JSON: {e}; mend or remove it")))
}

fn token(json: &Value, key: &str) -> Option<u32> {
    json.get(key)?.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// The tokens that end a text: generation settings know more of them (those that end a turn) than the config.
fn eos(config: &Config, generation: &Value) -> Vec<u32> {
    let listed = match generation.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
        Some(id) => id.as_u64().into_iter().collect(),
        None => Vec::new(),
    };
    let listed: Vec<u32> = listed.into_iter().filter_map(|id| u32::try_from(id).ok()).collect();
    if listed.is_empty() { config.eos_token_ids.clone() } else { listed }
}

//! `config.json` as nobody would write it: whatever the values, it is a model that is written and read again, or an error that names
//! the file and the key.
//!
//! Knows the keys by what is written and by [`ALSO`], what is only read.

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value, json};

use crate::model::{Config, Family, params};

const ORIGIN: &str = "dir/config.json";

/// Keys that are read and never written.
const ALSO: [&str; 17] = [
    "attention_dropout",
    "block_norm_eps",
    "conv_bias",
    "final_logit_softcapping",
    "full_attn_idxs",
    "hidden_activation",
    "layer_types",
    "mlp_bias",
    "quantization_config",
    "rope_interleaved",
    "rope_parameters",
    "sliding_window",
    "sliding_window_pattern",
    "text_config",
    "theta",
    "use_bidirectional_attention",
    "use_sliding_window",
];

/// Tensors of more layers are only listed where a list of that length is no loss of time.
const LISTED: usize = 64;

/// A small model of each family, complete.
fn whole(family: Family) -> Map<String, Value> {
    let layers = match family {
        Family::Lfm2 => json!(["conv", "full_attention", "conv", "full_attention"]),
        Family::Gemma3 => {
            json!(["sliding_attention", "full_attention", "sliding_attention", "full_attention"])
        }
        _ => json!(["full_attention", "full_attention", "full_attention", "full_attention"]),
    };
    let json = json!({
        "model_type": family.model_type(), "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "norm_eps": 1e-5, "layer_types": layers, "query_pre_attn_scalar": 8, "sliding_window": 16,
        "original_max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": [2, 3],
    });
    let read = Config::from_json(&json, Path::new(ORIGIN)).unwrap_or_else(|e| panic!("{family:?}: {e}"));
    let Value::Object(mut written) = read.to_json() else { panic!("an object") };
    for key in ALSO {
        written.entry(key).or_insert(Value::Null);
    }
    written
}

/// Values that some key is sure not to want.
fn values() -> Vec<Value> {
    let rope = |kind: &str| {
        json!({
            "rope_type": kind, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 2.0, 3.0, 4.0],
        })
    };
    let mut values = vec![
        json!(null),
        json!(true),
        json!(false),
        json!(""),
        json!("silu"),
        json!("\u{0}🦀\n"),
        json!([]),
        json!({}),
    ];
    values.extend([0u64, 1, 2, 3, 7, 1 << 12, (1 << 12) + 1, 1 << 32, u64::MAX].map(|n| json!(n)));
    values.extend([-1i64, i64::MIN].map(|n| json!(n)));
    values.extend([0.0, -0.0, 0.5, 1.5, 1e-300, 1e39, 1e308, -1e308].map(|x| json!(x)));
    values.extend([json!([0]), json!([u64::MAX]), json!(["conv"]), json!([[1.0], null]), json!([1.0, "x"])]);
    values.extend(["default", "linear", "llama3", "longrope", "yarn", ""].map(rope));
    values.extend([
        json!({ "rope_type": 1 }),
        json!({ "full_attention": { "rope_type": "linear", "factor": -1.0 } }),
    ]);
    values.extend(Family::ALL.map(|family| json!(family.model_type())));
    values
}

/// Reads it; what is accepted is written, read again and means the same. The message, where it is refused.
fn tried(config: &Map<String, Value>) -> Result<(), String> {
    let path = Path::new(ORIGIN);
    let config = Config::from_json(&Value::Object(config.clone()), path).map_err(|e| e.to_string())?;
    let written = config.to_json();
    let again =
        Config::from_json(&written, path).unwrap_or_else(|e| panic!("{written} is not read again: {e}"));
    assert_eq!(config, again, "{written}");
    if config.layers <= LISTED {
        assert!(!params(&config).is_empty());
    }
    Ok(())
}

/// Whether `message` names the file and one of `keys`, which were changed; another family asks for other keys.
fn is_named<'a>(message: &str, mut keys: impl Iterator<Item = &'a String>) -> bool {
    let named = |key: &String| key == "model_type" || message.contains(key.as_str());
    message.starts_with("dir/config.json: ") && keys.any(named)
}

/// The same inputs in every run.
fn runner(cases: u32) -> TestRunner {
    let config = Cases { cases, failure_persistence: None, ..Cases::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn any_value_of_any_key_is_taken_or_refused_by_its_name() {
    let (mut tries, mut refused, mut unnamed) = (0, 0, Vec::new());
    for family in Family::ALL {
        let whole = whole(family);
        for key in whole.keys() {
            for value in values() {
                let mut changed = whole.clone();
                changed.insert(key.clone(), value.clone());
                tries += 1;
                if let Err(message) = tried(&changed) {
                    refused += 1;
                    if !is_named(&message, [key].into_iter()) {
                        unnamed.push(format!("{family:?}, {key} = {value}: {message}"));
                    }
                }
            }
        }
    }
    assert!(unnamed.is_empty(), "{}", unnamed.join("\n"));
    assert!(refused * 4 > tries, "most values are wrong somewhere: {refused} of {tries}");
}

#[test]
fn a_key_that_is_missing_has_a_default_or_is_named() {
    for family in Family::ALL {
        let whole = whole(family);
        for key in whole.keys() {
            let mut changed = whole.clone();
            changed.remove(key);
            if let Err(message) = tried(&changed) {
                assert!(is_named(&message, [key].into_iter()), "{family:?} without {key}: {message}");
            }
        }
    }
}

#[test]
fn several_values_at_once_are_taken_or_one_of_them_is_named() {
    let wholes = Family::ALL.map(whole);
    let keys: BTreeSet<&String> = wholes.iter().flat_map(|whole| whole.keys()).collect();
    let (keys, values) = (Vec::from_iter(keys), values());
    let changes = prop::collection::vec((0..keys.len(), 0..values.len()), 2..5);
    runner(20_000)
        .run(&(0..wholes.len(), changes), |(which, changes)| {
            let mut changed = wholes[which].clone();
            for (key, value) in &changes {
                changed.insert(keys[*key].clone(), values[*value].clone());
            }
            if let Err(message) = tried(&changed) {
                let named = is_named(&message, changes.iter().map(|(key, _)| keys[*key]));
                prop_assert!(named, "{changes:?} in {}: {message}", Value::Object(changed));
            }
            Ok(())
        })
        .expect("named");
}

#[test]
fn any_json_is_a_model_or_refused_by_a_key() {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    let whole = whole(Family::Llama);
    let names: Vec<String> = whole.keys().cloned().collect();
    let name = prop_oneof![(0..names.len()).prop_map(move |at| names[at].clone()), ".{0,8}"];
    let any_json = leaf.prop_recursive(4, 64, 8, move |inner| {
        let object = prop::collection::vec((name.clone(), inner.clone()), 0..8);
        prop_oneof![
            prop::collection::vec(inner, 0..8).prop_map(Value::from),
            object.prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    });
    runner(4000)
        .run(&any_json, |json| {
            match &json {
                Value::Object(object) => drop(tried(object)),
                other => {
                    let message =
                        Config::from_json(other, Path::new(ORIGIN)).expect_err("no object").to_string();
                    prop_assert!(message.contains("model_type: missing"), "{message}");
                }
            }
            Ok(())
        })
        .expect("no panic");
}

//! `config.json` in the forms it is met in, what is refused, and the list of tensors it implies.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::Result;
use crate::files::HfDir;
use crate::shared::shared;

const FIXTURES: [&str; 9] =
    ["llama_tied", "llama_untied", "llama_ternary", "qwen2", "qwen3", "qwen3_tied", "lfm2", "phi3", "gemma3"];

fn read(json: &Value) -> Result<Config> {
    Config::from_json(json, Path::new("dir/config.json"))
}

/// A minimal Llama with some keys replaced; null removes one.
fn llama(changes: Value) -> Value {
    let mut json = json!({
        "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172,
        "num_hidden_layers": 5, "num_attention_heads": 8, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    });
    if let Value::Object(changes) = changes {
        for (key, value) in changes {
            json[key] = value;
        }
    }
    json
}

/// What makes an LFM2 of it, with some keys replaced.
fn lfm2(changes: Value) -> Value {
    let mut json = json!({
        "model_type": "lfm2", "norm_eps": 1e-5, "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
    });
    if let Value::Object(changes) = changes {
        json.as_object_mut().expect("an object").extend(changes);
    }
    json
}

/// What makes a Gemma 3 of it, with some keys replaced.
fn gemma3(changes: Value) -> Value {
    let mut json = json!({ "model_type": "gemma3_text", "sliding_window": 16, "head_dim": 16 });
    if let Value::Object(changes) = changes {
        json.as_object_mut().expect("an object").extend(changes);
    }
    json
}

/// What makes a Phi-3 with long rope of it.
fn phi3() -> Value {
    let factors = |last: f64| json!([1.0, 1.5, 2.0, last]);
    json!({
        "model_type": "phi3", "sliding_window": 256, "original_max_position_embeddings": 128, "tie_word_embeddings": true,
        "rope_scaling": { "type": "su", "short_factor": factors(2.5), "long_factor": factors(40.0) },
    })
}

fn refusal(changes: Value) -> String {
    read(&llama(changes)).expect_err("refused").to_string()
}

fn fixtures() -> Vec<HfDir> {
    let Some(root) = shared("fixtures") else { return Vec::new() };
    FIXTURES.into_iter().map(|name| HfDir::open(&root.join(name)).expect("fixture")).collect()
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let config = read(&llama(json!({}))).expect("a config");
    assert_eq!((config.kv_heads, config.head_dim, config.rope_theta), (8, 8, 10_000.0));
    assert_eq!(config.rope_scaling, RopeScaling::None);
    assert!(!config.tie_word_embeddings && !config.qkv_bias && !config.o_bias && !config.mlp_bias);
    assert_eq!((config.bos_token_id, config.eos_token_ids), (None, vec![]));
    let qwen3 = read(&llama(json!({ "model_type": "qwen3" }))).expect("a config");
    assert_eq!((qwen3.head_dim, qwen3.qk_norm), (128, true));
}

#[test]
fn biases_go_where_each_family_has_them() {
    let biases = |json: Value| {
        let config = read(&llama(json)).expect("a config");
        [config.qkv_bias, config.o_bias, config.mlp_bias]
    };
    assert_eq!(biases(json!({ "attention_bias": true, "mlp_bias": true })), [true; 3]);
    assert_eq!(biases(json!({ "model_type": "qwen2" })), [true, false, false]);
    // transformers' Qwen2 doesn't look at the key.
    assert_eq!(biases(json!({ "model_type": "qwen2", "attention_bias": true })), [true, false, false]);
    assert_eq!(biases(json!({ "model_type": "qwen3", "attention_bias": true })), [true, true, false]);
}

#[test]
fn rope_parameters_of_transformers_5_mean_the_same_as_the_older_keys() {
    let scaling = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256 });
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500000.0);
    let old = read(&llama(json!({ "rope_theta": 500000.0, "rope_scaling": scaling }))).expect("old");
    let new = read(&llama(json!({ "rope_parameters": parameters }))).expect("new");
    assert_eq!(old, new);
    let plain = json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1e6 } });
    let plain = read(&llama(plain)).expect("plain");
    assert_eq!((plain.rope_theta, plain.rope_scaling), (1e6, RopeScaling::None));
    let linear = read(&llama(json!({ "rope_scaling": { "type": "linear", "factor": 4 } }))).expect("linear");
    assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 4.0 });
}

#[test]
fn the_keys_of_lfm2_mean_what_transformers_takes_them_for() {
    let config = read(&llama(lfm2(json!({})))).expect("an LFM2");
    assert_eq!((config.rms_norm_eps, config.rope_theta, config.qk_norm), (1e-5, 1e6, true));
    assert!(config.tie_word_embeddings);
    let attending: Vec<usize> = (0..5).filter(|layer| config.taps(*layer).is_none()).collect();
    assert_eq!((attending, config.taps(0), config.attention_layers()), (vec![2, 4], Some(3), 2));
    // Two thirds of 172 are 114, and the next multiple of 256 is that.
    assert_eq!(config.intermediate_size, 256);
    let width = |changes| read(&llama(lfm2(changes))).expect("an LFM2").intermediate_size;
    // LFM2.5-350M: 6656 becomes 4608.
    assert_eq!(width(json!({ "block_ff_dim": 6656 })), 4608);
    assert_eq!(width(json!({ "block_ff_dim": 6656, "block_auto_adjust_ff_dim": false })), 6656);
    assert_eq!(width(json!({ "block_multiple_of": 64, "block_ffn_dim_multiplier": 1.5 })), 192);
    let older = json!({ "layer_types": null, "full_attn_idxs": [2, 4], "tie_embedding": true, "theta": 1e6, "rope_theta": 1e4 });
    assert_eq!(read(&llama(lfm2(older))).expect("an LFM2"), config);
}

#[test]
fn the_keys_of_phi_3_mean_what_transformers_takes_them_for() {
    let config = read(&llama(phi3())).expect("a Phi-3");
    assert_eq!((config.window(0), config.window(4), config.rotary_dim), (Some(256), Some(256), 8));
    let rope = Rope::new(&config);
    let [short, long] = [128, 129].map(|context| rope.frequencies(context).to_vec());
    assert_eq!(short[0], 1.0);
    assert!(short[3] / long[3] > 15.99 && short[3] / long[3] < 16.01, "{short:?}, {long:?}");
    // 512 tokens for 128: √(1 + ln 4 / ln 128).
    assert!((rope.factor() - 1.133_893_4).abs() < 1e-6, "{}", rope.factor());
    let angle = rope.angles(0, 128).next();
    assert_eq!(angle, Some((rope.factor(), 0.0)));
    let mut wide = phi3();
    wide["sliding_window"] = json!(512);
    let wide = read(&llama(wide)).expect("a window that holds any text");
    assert_eq!(wide.window(0), None);
    let plain = read(&llama(json!({ "model_type": "phi3", "partial_rotary_factor": 0.75, "head_dim": 16 })));
    let plain = plain.expect("a Phi-3");
    assert_eq!((plain.rotary_dim, Rope::new(&plain).pairs(), plain.sliding), (12, 6, None));
}

#[test]
fn the_text_part_of_a_gemma_3_is_read_wherever_it_stands() {
    let text = read(&llama(gemma3(json!({})))).expect("a Gemma 3");
    let sliding: Vec<usize> = (0..5).filter(|layer| text.window(*layer) == Some(16)).collect();
    assert_eq!((sliding, text.query_scalar, text.post_norms), (vec![0, 1, 2, 3, 4], 256, true));
    assert_eq!((text.rope_theta, text.local_rope_theta, text.embedding_scale()), (1e6, Some(1e4), 8.0));
    let mut part = llama(gemma3(json!({ "eos_token_id": 1 })));
    part.as_object_mut().expect("an object").remove("model_type");
    let whole =
        json!({ "model_type": "gemma3", "text_config": part, "vision_config": {}, "eos_token_id": [1, 106] });
    let whole = read(&whole).expect("a Gemma 3 that sees");
    assert_eq!(whole, Config { eos_token_ids: vec![1, 106], ..text.clone() });
    let nested = json!({ "rope_parameters": {
        "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 5e5 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 2e4 },
    } });
    let nested = read(&llama(gemma3(nested))).expect("version 5");
    assert_eq!((nested.rope_theta, nested.local_rope_theta), (5e5, Some(2e4)));
    assert_eq!(nested.rope_scaling, RopeScaling::Linear { factor: 8.0 });
    // The 4B's config has nothing but these.
    let published = json!({ "model_type": "gemma3", "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024 } });
    let published = read(&published).expect("the 4B");
    assert_eq!((published.heads, published.kv_heads, published.vocab_size), (8, 4, 262_208));
    assert_eq!(
        (published.attention_layers(), published.window(5), published.window(6)),
        (34, None, Some(1024))
    );
}

#[test]
fn tensors_of_another_layout_are_found_as_rows_and_under_other_names() {
    let config = read(&llama(phi3())).expect("a Phi-3");
    let fused = file_tensors(&config);
    let of_layer: Vec<&str> = fused[1..7].iter().map(|tensor| tensor.param.module()).collect();
    assert_eq!(of_layer[1], "model.layers.0.self_attn.qkv_proj");
    assert_eq!((fused[2].param.shape.clone(), fused[2].parts.len()), (vec![192, 64], 3));
    assert_eq!((fused[5].param.shape.clone(), fused[5].parts.len()), (vec![344, 64], 2));
    let v = &fused[2].parts[2];
    assert_eq!(Stored::of(v, &config, |name| name.ends_with("qkv_proj.weight")).rows, 128..192);
    assert!(Stored::of(v, &config, |name| name.ends_with("v_proj.weight")).is_whole());
    let gemma = read(&llama(gemma3(json!({})))).expect("a Gemma 3");
    let norm = &params(&gemma)[1];
    for name in [
        "language_model.model.layers.0.input_layernorm.weight",
        "model.language_model.layers.0.input_layernorm.weight",
    ] {
        let stored = Stored::of(norm, &gemma, |there| there == name);
        assert_eq!((stored.name.as_str(), stored.offset), (name, 1.0));
    }
}

#[test]
fn every_tensor_of_a_layer_has_a_part_whatever_its_family_calls_it() {
    assert_eq!(Part::of("model.layers.12.feed_forward.w2.weight"), Some((12, Part::Down)));
    assert_eq!(Part::of("model.layers.0.self_attn.o_proj.bias"), Some((0, Part::O)));
    assert_eq!(Part::of("model.layers.0.conv.conv.weight"), Some((0, Part::Conv)));
    for unknown in
        ["model.norm.weight", "lm_head.weight", "model.layers.x.mlp.up_proj.weight", "model.layers.0.mlp"]
    {
        assert_eq!(Part::of(unknown), None, "{unknown}");
    }
    // What a family has no part for has another one's name.
    for family in Family::ALL {
        for part in Part::ALL {
            let name = names::in_layer(3, part.module(family), "weight");
            assert_eq!(Part::of(&name), Some((3, part)), "{name}");
        }
    }
}

#[test]
fn frequencies_follow_their_definitions() {
    let plain = Rope::new(&read(&llama(json!({ "head_dim": 4 }))).expect("plain"));
    assert_eq!(plain.frequencies(64), [1.0, 0.01]);
    let linear = json!({ "head_dim": 4, "rope_scaling": { "rope_type": "linear", "factor": 2.0 } });
    assert_eq!(Rope::new(&read(&llama(linear)).expect("linear")).frequencies(64), [0.5, 0.005]);
    // Waves of 2π and 200π positions; of 64 positions, the first is shorter than 64/4 and the second longer than 64/1.
    let llama3 = json!({ "head_dim": 4, "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64 } });
    assert_eq!(Rope::new(&read(&llama(llama3)).expect("llama3")).frequencies(64), [1.0, 0.00125]);
}

#[test]
fn what_the_decoder_lacks_is_refused_by_key_and_value() {
    let unsupported = [
        (
            json!({ "model_type": "gpt2" }),
            "model_type: \"gpt2\"",
            "\"llama\", \"qwen2\", \"qwen3\", \"bitnet\", \"lfm2\", \"phi3\", \"gemma3_text\"",
        ),
        (json!({ "hidden_act": "gelu" }), "hidden_act: \"gelu\"", "\"silu\""),
        (json!({ "model_type": "bitnet", "hidden_act": "silu" }), "hidden_act: \"silu\"", "\"relu2\""),
        (json!({ "model_type": "bitnet", "head_dim": 16 }), "head_dim: 8 heads of 16", "hidden_size = 64"),
        (lfm2(json!({ "conv_bias": true })), "conv_bias: true", "false"),
        (lfm2(json!({ "conv_L_cache": 1 })), "conv_L_cache: 1", "2 to 64"),
        (
            lfm2(json!({ "layer_types": ["conv", "mamba"] })),
            "layer_types: [",
            "\"full_attention\" or \"conv\"",
        ),
        (lfm2(json!({ "layer_types": ["conv"] })), "layer_types: names 1 layers", "num_hidden_layers is 5"),
        (lfm2(json!({ "layer_types": null })), "layer_types: missing", "one entry for each layer"),
        (
            lfm2(json!({ "layer_types": null, "full_attn_idxs": [5] })),
            "full_attn_idxs: [5]",
            "a list of numbers of layers",
        ),
        (
            json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0 } }),
            "rope_type: \"yarn\"",
            "\"llama3\"",
        ),
        (
            json!({ "rope_parameters": { "rope_type": "longrope" } }),
            "rope_parameters.rope_type: \"longrope\"",
            "\"linear\"",
        ),
        (json!({ "use_sliding_window": true }), "use_sliding_window: true", "false"),
        (
            json!({ "layer_types": ["full_attention", "sliding_attention"] }),
            "layer_types: [",
            "full_attention",
        ),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor: 0.5", "1.0"),
        (
            json!({ "model_type": "phi3", "partial_rotary_factor": 0.4 }),
            "partial_rotary_factor: turns 3 elements of a head of 8",
            "an even number",
        ),
        (
            json!({ "model_type": "phi3", "rope_scaling": { "type": "linear", "factor": 2.0 } }),
            "rope_scaling.type: \"linear\"",
            "\"longrope\"",
        ),
        (
            json!({ "model_type": "phi3", "rope_scaling": { "type": "su", "short_factor": [1.0], "long_factor": [1.0] } }),
            "rope_scaling.short_factor: has 1 factors",
            "want 4, one for each pair",
        ),
        (gemma3(json!({ "final_logit_softcapping": 30.0 })), "final_logit_softcapping: 30.0", "null"),
        (
            gemma3(json!({ "hidden_activation": "silu" })),
            "hidden_activation: \"silu\"",
            "\"gelu_pytorch_tanh\"",
        ),
        (
            gemma3(json!({ "use_bidirectional_attention": true })),
            "use_bidirectional_attention: true",
            "false",
        ),
        (
            gemma3(json!({ "layer_types": ["conv"] })),
            "layer_types: [",
            "\"full_attention\" or \"sliding_attention\"",
        ),
        (
            gemma3(json!({ "layer_types": ["full_attention"] })),
            "layer_types: names 1 layers",
            "num_hidden_layers is 5",
        ),
        (gemma3(json!({ "sliding_window": 0 })), "sliding_window: 0", "at least 1"),
        (json!({ "model_type": "qwen2", "mlp_bias": true }), "mlp_bias: true", "false"),
        (
            json!({ "quantization_config": { "quant_method": "gptq" } }),
            "quantization_config: \"gptq\"",
            "float",
        ),
    ];
    for (changes, named, wanted) in unsupported {
        let message = refusal(changes);
        assert!(message.starts_with("dir/config.json: "), "{message}");
        assert!(message.contains(named) && message.contains(wanted), "{message}");
    }
}

#[test]
fn wrong_types_missing_keys_and_impossible_sizes_are_refused_by_name() {
    let wrong = [
        (json!({ "vocab_size": null }), "vocab_size: missing; want a whole number"),
        (json!({ "vocab_size": "512" }), "vocab_size: \"512\" is not supported; want a whole number"),
        (json!({ "hidden_size": -64 }), "hidden_size: -64"),
        (json!({ "vocab_size": 0 }), "vocab_size: 0 is out of range; want 1 to"),
        (json!({ "num_hidden_layers": 1e15 as u64 }), "num_hidden_layers: 1000000000000000 is out of range"),
        (
            json!({ "num_key_value_heads": 3 }),
            "num_key_value_heads: 3 does not divide num_attention_heads = 8",
        ),
        (json!({ "num_attention_heads": 7 }), "head_dim: missing; want a head_dim, or hidden_size = 64"),
        (json!({ "head_dim": 7 }), "head_dim: 7 is odd"),
        (json!({ "rms_norm_eps": 0 }), "rms_norm_eps: 0 is not a positive number"),
        (json!({ "rope_theta": "big" }), "rope_theta: \"big\" is not supported; want a number"),
        (json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings: 1 is not supported; want true or false"),
        (json!({ "eos_token_id": [1, "2"] }), "eos_token_id: [1,\"2\"]"),
        (json!({ "rope_scaling": 4 }), "rope_scaling: 4 is not supported; want an object or null"),
        (json!({ "rope_scaling": { "rope_type": "linear" } }), "rope_scaling.factor: missing"),
        (json!({ "rope_scaling": { "rope_type": "linear", "factor": 0.5 } }), "factor: 0.5 is out of range"),
    ];
    for (changes, want) in wrong {
        let message = refusal(changes);
        assert!(message.contains(want), "{message}\nwant {want}");
    }
}

#[test]
fn a_written_config_reads_back_as_the_same_model() {
    let mut configs: Vec<Config> =
        fixtures().iter().map(|dir| read(&dir.config).expect("a fixture's config")).collect();
    configs.push(
        read(&llama(json!({ "attention_bias": true, "mlp_bias": true, "eos_token_id": [2, 3] })))
            .expect("biases"),
    );
    configs.push(read(&llama(json!({ "model_type": "bitnet", "hidden_act": "relu2" }))).expect("a BitNet"));
    configs.push(read(&llama(lfm2(json!({})))).expect("an LFM2"));
    configs.push(read(&llama(phi3())).expect("a Phi-3"));
    configs.push(read(&llama(gemma3(json!({ "query_pre_attn_scalar": 24 })))).expect("a Gemma 3"));
    let irregular = json!({ "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "full_attention"] });
    configs.push(read(&llama(gemma3(irregular))).expect("another Gemma 3"));
    configs
        .push(read(&llama(json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } }))).expect("linear"));
    for config in configs {
        assert_eq!(read(&config.to_json()).expect("our own"), config);
    }
    let written = read(&llama(json!({ "rms_norm_eps": 1e-6 }))).expect("a config").to_json();
    assert_eq!(written["rms_norm_eps"].to_string(), "1e-6", "an f32 is written with its own digits");
    assert_eq!(written["architectures"], json!(["LlamaForCausalLM"]));
}

#[test]
fn the_tensors_of_a_config_are_those_of_its_file() {
    for dir in fixtures() {
        let config = read(&dir.config).expect("a fixture's config");
        let mut listed: Vec<Param> = params(&config);
        let all = listed.clone();
        assert!(
            listed[0].role == Role::Embedding
                && listed[1].part() == Some((0, Part::Norm))
                && listed.last().is_some_and(|last| last.role != Role::Projection)
        );
        listed = file_tensors(&config).into_iter().map(|tensor| tensor.param).collect();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        let in_file: Vec<&str> = dir.tensors.names().collect();
        assert_eq!(listed.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), in_file);
        for param in &listed {
            dir.tensors.check_shape(&param.name, &param.shape).expect("the same shape");
        }
        for param in &all {
            let stored = Stored::of(param, &config, |name| dir.tensors.contains(name));
            let values = dir.tensors.stored_f32(&stored).expect("values");
            assert_eq!(values.len(), param.shape.iter().product::<usize>());
        }
    }
}

#[test]
fn a_tied_embedding_is_found_under_the_heads_name_and_an_untied_one_is_not() {
    let only_head = |name: &str| name == names::HEAD;
    let mut config = read(&llama(json!({ "tie_word_embeddings": true }))).expect("a config");
    let embedding = &params(&config)[0];
    assert_eq!(Stored::of(embedding, &config, only_head).name, names::HEAD);
    assert_eq!(Stored::of(embedding, &config, |_| true).name, names::EMBEDDING);
    config.tie_word_embeddings = false;
    assert_eq!(Stored::of(embedding, &config, only_head).name, names::EMBEDDING);
}

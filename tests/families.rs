//! Models of other families than Llama's, from random weights to their files: BitNet b1.58, LFM2, Phi-3 and Gemma 3.

use serde_json::{Value, json};

use crate::{
    model::{CONTEXT, RECIPE, SHIPPED, VOCAB, tokenizer},
    workshop::Workshop,
};

/// A workshop with a text, the shape of a small model in `shape.json`, and a recipe that trains one from random weights.
fn shop(shape: Value, quant: &str) -> Workshop {
    let mut config = json!({
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "tie_word_embeddings": true, "eos_token_id": 256,
    });
    config.as_object_mut().expect("an object").extend(shape.as_object().expect("an object").clone());
    let shop = Workshop::new();
    shop.write("shape.json", config.to_string());
    shop.write("tokenizer.json", tokenizer().to_string());
    shop.text("train.txt", 400);
    shop.text("valid.txt", 40);
    let scratch = "[student.scratch]\nconfig = \"shape.json\"\ntokenizer = \"tokenizer.json\"";
    let recipe = format!("{RECIPE}{}", SHIPPED.replace("against = \"teacher\"\n", ""))
        .replace("[student]\nfrom = \"teacher\"", scratch)
        .replace("[teacher]\nmodel = \"teacher\"\n", "")
        .replace("weights = \"int4-g32\"", quant)
        .replace("forward_kl", "cross_entropy");
    shop.write("scratch.toml", recipe);
    shop
}

fn bitnet() -> Workshop {
    shop(
        json!({"model_type": "bitnet", "hidden_act": "relu2", "rms_norm_eps": 1e-5}),
        "weights = \"ternary-tensor\"\nembeddings = \"float\"\nscales = \"absmax\"\ngradient = \"ste\"\nactivations = \"int8-token\"",
    )
}

fn lfm2() -> Workshop {
    shop(
        json!({
            "model_type": "lfm2", "norm_eps": 1e-5, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": false,
        }),
        "weights = \"int4-g32\"",
    )
}

/// Heads of which three quarters turn, long rope whose factors change at half of the context.
fn phi3(window: Value) -> Workshop {
    let factors = |step: f64| (0..6).map(|pair| 1.0 + step * f64::from(pair)).collect::<Vec<f64>>();
    shop(
        json!({
            "model_type": "phi3", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.75, "sliding_window": window,
            "original_max_position_embeddings": CONTEXT / 2,
            "rope_scaling": {"type": "longrope", "short_factor": factors(0.1), "long_factor": factors(2.0)},
        }),
        "weights = \"int4-g32\"",
    )
}

fn gemma3() -> Workshop {
    shop(
        json!({
            "model_type": "gemma3_text", "rms_norm_eps": 1e-6, "head_dim": 16, "query_pre_attn_scalar": 16,
            "sliding_window": 8, "sliding_window_pattern": 2,
        }),
        "weights = \"int4-g32\"",
    )
}

/// Trains from random weights and scores what was packed, and its exports by the same runtime.
fn scores_alike_in_every_file(shop: &Workshop) {
    shop.done("train scratch.toml --out run --set train.steps=40");
    let packed = perplexity(shop, "run/qat");
    // Of 257 tokens, those of a text of forty letters.
    assert!(packed < 60.0, "{packed}");
    for (format, out) in [("gguf", "gguf"), ("hf", "hf"), ("mlx --dtype f32", "mlx")] {
        shop.done(&format!("export run --format {format} --out {out}"));
        let found = perplexity(shop, out);
        // The same grid; products of floats are summed in another order than products of codes.
        assert!((found / packed - 1.0).abs() < 1e-5, "{out}: {found} for {packed}");
    }
    shop.done("generate run/qat --prompt The --tokens 4");
    shop.refused("export run --format onnx --out x", &["onnxruntime-genai wants two sets of angles", "gguf"]);
    shop.refused("export run --format bitnet --out x", &["packed BitNet layers", "mlx, gguf and hf"]);
    shop.write("distil.toml", RECIPE.replace("\"teacher\"", "\"hf\""));
    shop.done("train distil.toml --out distilled --set loss.relations=1 --set student.layers=1");
}

/// The perplexity of a model on the held-out text.
fn perplexity(shop: &Workshop, model: &str) -> f64 {
    shop.done(&format!("eval {model} --data valid.txt --ctx 32 --json score.json"));
    shop.json("score.json")["perplexity"].as_f64().expect("a number")
}

#[test]
fn a_bitnet_is_trained_from_random_weights_and_read_back_from_transformers_files() {
    let shop = bitnet();
    shop.done("train scratch.toml --out run --set train.steps=40");
    let packed = perplexity(&shop, "run/qat");
    // Of 257 tokens, those of a text of forty letters.
    assert!(packed < 60.0, "{packed}");
    shop.done("export run --format bitnet --out bitnet");
    let config = shop.json("bitnet/config.json");
    assert_eq!((&config["model_type"], &config["hidden_act"]), (&json!("bitnet"), &json!("relu2")));
    assert_eq!(config["architectures"], json!(["BitNetForCausalLM"]));
    // The same codes, scales and floats: the same bits.
    assert_eq!(perplexity(&shop, "bitnet"), packed);
    let said = shop.done("inspect bitnet");
    assert!(
        said.out.contains("(bitnet, BitNet)") && said.out.contains("ternary-tensor with int8 inputs"),
        "{said:?}"
    );
    shop.done("generate bitnet --prompt The --tokens 4");
    // A student and a teacher of others, packed: the student goes on from what the codes stand for.
    let distils = RECIPE
        .replace("\"teacher\"", "\"bitnet\"")
        .replace("weights = \"int4-g32\"", "weights = \"ternary-g64\"");
    shop.write("distil.toml", format!("{distils}{}", SHIPPED.replace("\"teacher\"", "\"bitnet\"")));
    shop.done("train distil.toml --out distilled");
}

#[test]
fn a_runtime_without_bitnets_is_refused_before_training_and_by_export() {
    let shop = bitnet();
    for (target, why) in [
        ("gguf", "llama.cpp has no architecture"),
        ("ollama", "llama.cpp has no"),
        ("mlx", "mlx-lm reads BitNet"),
    ] {
        shop.refused(&format!("train scratch.toml --out run --set export.format={target}"), &[why, "bitnet"]);
    }
    shop.done("train scratch.toml --out run");
    shop.refused("export run --format gguf --out x", &["llama.cpp has no architecture for \"bitnet\""]);
    shop.done("export run --format onnx --out onnx");
    shop.done("export run --format hf --out hf");
    shop.refused(
        "train scratch.toml --out padded --set student.pad_intermediate=256",
        &["pad_intermediate = 256", "averages over all neurons"],
    );
}

#[test]
fn an_lfm2_is_trained_from_random_weights_and_scores_alike_in_every_file() {
    let shop = lfm2();
    shop.done("train scratch.toml --out run --set train.steps=40");
    let packed = perplexity(&shop, "run/qat");
    assert!(packed < 60.0, "{packed}");
    for (format, out) in [("gguf", "gguf"), ("hf", "hf"), ("mlx --dtype f32", "mlx")] {
        shop.done(&format!("export run --format {format} --out {out}"));
        let found = perplexity(&shop, out);
        // The same grid; products of floats are summed in another order than products of codes.
        assert!((found / packed - 1.0).abs() < 1e-5, "{out}: {found} for {packed}");
    }
    let said = shop.done("inspect run/qat");
    assert!(said.out.contains("convolutions") && said.out.contains("(lfm2, packed)"), "{said:?}");
    shop.done("generate run/qat --prompt The --tokens 4");
    shop.refused("export run --format onnx --out x", &["short convolutions", "gguf"]);
    shop.refused(
        "train scratch.toml --out narrow --set student.hidden_size=32",
        &["student.hidden_size = 32", "convolutions"],
    );
    // A layer that convolves has no queries to compare.
    let distils = RECIPE.replace("\"teacher\"", "\"hf\"");
    shop.write("distil.toml", distils);
    shop.done("train distil.toml --out near --set loss.relations=1");
    shop.refused(
        "train distil.toml --out far --set loss.relations=1 --set loss.layer=0",
        &["loss.layer = 0", "one that attends", "[1]"],
    );
}

#[test]
fn a_phi_3_is_trained_from_random_weights_and_scores_alike_in_every_file() {
    let shop = phi3(Value::Null);
    scores_alike_in_every_file(&shop);
    // Transformers' tensors: q, k and v in one, gate and up in another.
    let header = std::fs::read(shop.path("hf/model.safetensors")).expect("weights");
    let header = String::from_utf8_lossy(&header[..2000]).into_owned();
    for name in ["layers.1.self_attn.qkv_proj.weight", "layers.1.mlp.gate_up_proj.weight"] {
        assert!(header.contains(name), "{header}");
    }
    assert_eq!(shop.json("hf/config.json")["rope_scaling"]["type"], json!("longrope"));
    // mlx-lm knows one set of angles: of a file for short texts, theirs.
    let short = CONTEXT / 2;
    shop.done(&format!("export run --format mlx --context {short} --out short"));
    let scaling = &shop.json("short/config.json")["rope_scaling"];
    assert_eq!(scaling["long_factor"], scaling["short_factor"]);
    let mixed =
        "train scratch.toml --out mixed --set quant.overrides.*.k_proj.*=int8-g32 --set export.format=mlx";
    let found = shop.run(mixed);
    assert!(
        found.err.contains("is one tensor of the file") && found.err.contains("give them one format"),
        "{found:?}"
    );
}

#[test]
fn a_window_that_a_runtime_lacks_is_refused_with_the_context_up_to_which_it_is_none() {
    let shop = phi3(json!(8));
    shop.done("train scratch.toml --out run");
    for format in ["gguf", "mlx"] {
        let export = format!("export run --format {format}");
        shop.refused(&format!("{export} --out x"), &["sees the last 8 tokens", "--context 8"]);
        shop.done(&format!("{export} --context 8 --out {format}"));
    }
    shop.done("export run --format hf --out hf");
    assert_eq!(shop.json("hf/config.json")["sliding_window"], json!(8));
}

#[test]
fn a_gemma_3_is_trained_from_random_weights_and_scores_alike_in_every_file() {
    let shop = gemma3();
    scores_alike_in_every_file(&shop);
    let config = shop.json("hf/config.json");
    assert_eq!(config["layer_types"], json!(["sliding_attention", "full_attention"]));
    assert_eq!(config["architectures"], json!(["Gemma3ForCausalLM"]));
    shop.refused(
        "train scratch.toml --out narrow --set student.hidden_size=32",
        &["student.hidden_size = 32", "multiplied by the root"],
    );
}

#[test]
fn layers_of_lfm2_are_dropped_with_what_they_are() {
    let shop = lfm2();
    shop.done("train scratch.toml --out run");
    shop.done("export run --format hf --out hf");
    shop.write("distil.toml", RECIPE.replace("\"teacher\"", "\"hf\""));
    shop.done("train distil.toml --out shallow --set student.layers=1");
    shop.done("export shallow --format hf --out one");
    assert_eq!(shop.json("one/config.json")["layer_types"], json!(["conv"]));
}

#[test]
fn layers_of_transformers_that_are_not_known_are_refused_by_their_key() {
    let shop = bitnet();
    shop.done("train scratch.toml --out run");
    shop.done("export run --format bitnet --out bitnet");
    let config = shop.json("bitnet/config.json");
    for (key, value, want) in [
        ("linear_class", json!("lutlinear"), "\"autobitlinear\" or \"bitlinear\""),
        ("quantization_mode", json!("dynamic"), "\"offline\""),
        ("use_rms_norm", json!(true), "false"),
    ] {
        let mut changed = config.clone();
        changed["quantization_config"][key] = value;
        shop.write("bitnet/config.json", changed.to_string());
        shop.refused(
            "eval bitnet --data valid.txt --ctx 32",
            &["bitnet/config.json", &format!("quantization_config.{key}"), want],
        );
    }
}

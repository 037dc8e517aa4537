//! What is written: every grid that the target has, in the files that its runtimes look for.

use super::*;

/// The formats that the target holds.
const HELD: [&str; 5] = ["int4-g32", "int8-g32", "ternary-g64", "ternary-g256", "ternary-tensor"];

#[test]
fn every_grid_reads_back_to_the_bit_in_every_family() {
    for (family, tied) in [("llama", true), ("qwen2", false), ("qwen3", true)] {
        for format in HELD {
            Exported::new(&config(family, tied), all(format));
        }
        Exported::new(&config(family, tied), |_| None);
        let layers_only = |param: &Param| all("int4-g32")(param).filter(|_| param.name.contains("layers"));
        Exported::new(&config(family, tied), layers_only);
    }
}

#[test]
fn a_format_with_a_bias_is_refused_with_those_that_fit() {
    let (folder, _) = packed(&config("llama", true), all("int4-affine-g64"), &[]);
    let message = try_export(&folder, &Options::default()).expect_err("refused").to_string();
    assert!(
        message.contains("model.embed_tokens.weight: onnx can't hold the grid of int4-affine-g64"),
        "{message}"
    );
    assert!(message.contains(&HELD.join(", ")), "{message}");
    assert!(!folder.path().join("onnx").exists());
}

#[test]
fn half_precision_holds_every_scale_but_that_of_a_whole_tensor() {
    let half = Options { dtype: Some(FloatType::F16), ..Options::default() };
    for format in HELD.iter().filter(|format| **format != "ternary-tensor") {
        let exported = Exported::with(&config("qwen2", true), all(format), &half);
        let graph = exported.model().graph.expect("a graph");
        assert!(graph.initializer.iter().all(|tensor| tensor.data_type != Some(proto::FLOAT)), "{format}");
    }
    let (folder, _) = packed(&config("qwen2", true), all("ternary-tensor"), &[]);
    let message = try_export(&folder, &half).expect_err("refused").to_string();
    assert!(message.contains("bf16"), "{message}");
    let bfloat = Options { dtype: Some(FloatType::BF16), ..Options::default() };
    let message = try_export(&folder, &bfloat).expect_err("refused").to_string();
    assert!(message.contains("--dtype bf16"), "{message}");
}

#[test]
fn heads_that_the_runtime_cannot_turn_are_refused() {
    let mut narrow = config("llama", true);
    narrow["head_dim"] = json!(8);
    let (folder, _) = packed(&narrow, all("int4-g32"), &[]);
    let message = try_export(&folder, &Options::default()).expect_err("refused").to_string();
    assert!(message.contains("a multiple of 16, the model's have 8"), "{message}");
}

#[test]
fn tensors_begin_where_they_can_be_mapped() {
    let mut wide = config("llama", true);
    // Codes of 1 MiB.
    wide["vocab_size"] = json!(1 << 13);
    let exported = Exported::new(&wide, all("int4-g32"));
    let mut large = 0;
    for tensor in exported.model().graph.expect("a graph").initializer {
        let number = |key: &str| -> Option<usize> {
            let entry = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key))?;
            entry.value.as_deref()?.parse().ok()
        };
        let (Some(offset), Some(length)) = (number("offset"), number("length")) else { continue };
        assert!(offset.is_multiple_of(64), "{tensor:?}");
        if length >= 1 << 20 {
            assert!(offset.is_multiple_of(1 << 16), "{tensor:?}");
            large += 1;
        }
    }
    // The embedding's, as a table and as the head's matrix.
    assert_eq!(large, 2);
    // They are the same bytes: the file has them once.
    let bytes = std::fs::metadata(exported.dir().join(data::DATA_FILE)).expect("data").len();
    assert!(bytes < 3 << 20, "{bytes}");
}

#[test]
fn angles_are_written_for_the_context_that_is_asked_for() {
    let mut stretched = config("llama", true);
    stretched["max_position_embeddings"] = json!(256);
    stretched["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let options = Options { context: Some(100), ..Options::default() };
    let exported = Exported::with(&stretched, all("int4-g32"), &options);
    let genai = std::fs::read(exported.dir().join(GENAI_FILE)).expect("genai_config.json");
    let genai: Value = serde_json::from_slice(&genai).expect("JSON");
    assert_eq!(genai["model"]["context_length"], 100);
    assert_eq!(genai["search"]["max_length"], 100);
    let (written, attention) = (exported.written().expect("opens"), "model.layers.1.self_attn");
    let node = written.node(attention, &["GroupQueryAttention"]).expect("attention");
    let cos = written.floats(node, 7, &[100, 32]).expect("cosines");
    let sin = written.floats(node, 8, &[100, 32]).expect("sines");
    // The first pair turns by a radian per position; the last, of 10⁴^(−31/32) radians, is slowed 8 times.
    let slow = 10_f64.powf(-4.0 * 31.0 / 32.0) / 8.0;
    for (at, radians) in [(0, 99.0), (31, 99.0 * slow)] {
        // Angles are f32: off by up to 99 · 2⁻²⁴ radians for the one that turns most.
        assert!((f64::from(cos[99 * 32 + at]) - f64::cos(radians)).abs() < 1e-5);
        assert!((f64::from(sin[99 * 32 + at]) - f64::sin(radians)).abs() < 1e-5);
    }
}

#[test]
fn the_runtime_is_told_how_texts_end_and_how_to_sample() {
    let settings =
        r#"{"eos_token_id": [2, 7], "pad_token_id": 3, "do_sample": true, "temperature": 0.6, "top_k": 20}"#;
    let files = [("generation_config.json", settings), ("tokenizer.json", "{}")];
    let (folder, _) = packed(&config("qwen3", false), all("int4-g32"), &files);
    try_export(&folder, &Options::default()).expect("exported");
    let dir = folder.path().join("onnx");
    let genai: Value =
        serde_json::from_slice(&std::fs::read(dir.join(GENAI_FILE)).expect("genai_config.json"))
            .expect("JSON");
    let model = &genai["model"];
    assert_eq!(model["type"], "qwen3");
    assert_eq!((&model["bos_token_id"], &model["pad_token_id"]), (&json!(1), &json!(3)));
    assert_eq!(model["eos_token_id"], json!([2, 7]));
    let decoder = &model["decoder"];
    assert_eq!((&decoder["head_size"], &decoder["num_key_value_heads"]), (&json!(64), &json!(2)));
    let search = &genai["search"];
    assert_eq!((&search["do_sample"], &search["temperature"]), (&json!(true), &json!(0.6)));
    assert_eq!((&search["top_k"], &search["top_p"]), (&json!(20), &json!(1.0)));
    for name in ["tokenizer.json", "generation_config.json", "config.json", "README.md", "qat.json"] {
        assert!(dir.join(name).is_file(), "{name}");
    }
}

#[test]
fn generation_settings_that_are_no_json_are_named() {
    let (folder, _) =
        packed(&config("llama", true), all("int4-g32"), &[("generation_config.json", "{\"eos")]);
    let message = try_export(&folder, &Options::default()).expect_err("refused").to_string();
    assert!(message.contains("generation_config.json: is no JSON"), "{message}");
}

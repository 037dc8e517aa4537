//! What `qat inspect` says of models, and of what a Mac's GPU would be told to run.

use serde_json::{Value, json};

use crate::{
    model::{self, CONTEXT},
    workshop::{Said, Workshop},
};

/// A workshop with a packed model whose layers, embeddings and inputs are each kept in their own way.
fn packed() -> Workshop {
    let shop = Workshop::new();
    let mut config = model::config();
    (config["hidden_size"], config["intermediate_size"]) = (256.into(), 512.into());
    shop.write("tiny.json", config.to_string());
    shop.done("init --shape tiny.json --format int4-g32 --activations int8 --out packed");
    shop
}

fn parsed(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"))
}

/// Cells of each line of the table whose header has `column`.
fn rows<'a>(said: &'a Said, column: &str) -> Vec<Vec<&'a str>> {
    let cells =
        |line: &'a str| -> Vec<&'a str> { line.trim_matches('|').split('|').map(str::trim).collect() };
    let mut lines = said.out.lines().skip_while(|line| !cells(line).contains(&column));
    lines.next().unwrap_or_else(|| panic!("no table has {column:?}: {said:?}"));
    lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect()
}

#[test]
fn a_packed_model_is_described_part_by_part() {
    let shop = packed();
    let said = shop.done("inspect packed");
    for part in [
        "llama, packed",
        "2 layers of 256 with 512 inside",
        "4 query and 2 key/value heads of 64",
        "checksums of",
    ] {
        assert!(said.out.contains(part), "{part:?} is not in {said:?}");
    }
    let found = rows(&said, "stored as");
    let named: Vec<[&str; 4]> = found.iter().map(|row| [row[0], row[1], row[2], row[3]]).collect();
    assert_eq!(
        named,
        [
            // 257 rows of 256; q and o of 256x256 with k and v of 128x256; three of 512x256; five norms.
            ["embedding and head", "1", "65,792", "int8-g32"],
            ["attention", "8", "393,216", "int4-g32 with int8 inputs"],
            ["MLP", "6", "786,432", "int4-g32 with int8 inputs"],
            ["norms", "5", "1,280", "f32"],
        ]
    );
    let json = parsed(&shop.done("inspect packed --json"));
    assert_eq!(json["parameters"], json!(65_792 + 393_216 + 786_432 + 1280));
    let bytes = 65_792 / 32 * 34 + (393_216 + 786_432) / 32 * 18 + 4 * 1280;
    assert_eq!(json["tensor_bytes"], json!(bytes));
    assert_eq!(json["source"]["method"], json!("random"));
    assert_eq!((&json["layout"], &json["tokenizer"]), (&json!("packed"), &Value::Null));
    let parts: u64 =
        json["parts"].as_array().expect("parts").iter().map(|p| p["bytes"].as_u64().expect("bytes")).sum();
    assert_eq!(json["tensor_bytes"], json!(parts));
}

#[test]
fn a_float_model_is_described_too_and_says_what_was_not_checked() {
    let shop = Workshop::new();
    shop.model("float");
    let said = shop.done("inspect float");
    for part in ["llama, float", "no checksums", "tokenizer of 257"] {
        assert!(said.out.contains(part), "{part:?} is not in {said:?}");
    }
    let json = parsed(&shop.done("inspect float --json"));
    assert_eq!((&json["layout"], &json["checksums"]), (&json!("float"), &Value::Null));
}

#[test]
fn the_dispatch_list_has_five_lines_a_layer_and_its_sums_agree() {
    let shop = packed();
    let said = shop.done("inspect --dispatches packed --context 100");
    let calls = rows(&said, "kernel");
    let labels: Vec<(&str, &str)> = calls.iter().map(|row| (row[1], row[2])).collect();
    let layer = |n: &'static str| {
        [
            "norm + q_proj + k_proj + v_proj",
            "attention",
            "o_proj, added",
            "norm + gate_proj + up_proj, gated",
            "down_proj, added",
        ]
        .map(|label| (n, label))
    };
    let want: Vec<(&str, &str)> = [("–", "embed")]
        .into_iter()
        .chain(layer("0"))
        .chain(layer("1"))
        .chain([("–", "norm"), ("–", "head"), ("–", "argmax")])
        .collect();
    assert_eq!(labels, want);
    for words in ["prediction", "not a measurement", "1 token(s) after 99", "of which 5 a layer"] {
        assert!(said.out.contains(words), "{words:?} is not in {said:?}");
    }

    let json = parsed(&shop.done("inspect --dispatches packed --context 100 --json"));
    let calls = json["dispatches"].as_array().expect("a list");
    let sum = |field: &str| -> u64 { calls.iter().map(|call| call[field].as_u64().expect("bytes")).sum() };
    let total = |field: &str| json["total"][field].as_u64().expect("a sum");
    assert_eq!((sum("bytes_read"), sum("bytes_written")), (total("bytes_read"), total("bytes_written")));
    assert_eq!((calls.len() as u64, total("dispatches")), (want.len() as u64, want.len() as u64));
    // Each waits for the one before: a token is one chain.
    assert_eq!(total("barriers"), total("dispatches") - 1);
    // All weights but the rows of the embedding that are not the token's, keys and values of 99 tokens in f16.
    let weights = shop.json("packed/manifest.json")["file_bytes"].as_u64().expect("bytes");
    let cache = 99 * 2 * 2 * 2 * 64 * 2;
    let beside = total("bytes_read").abs_diff(weights + cache);
    assert!(beside < 40_000, "{beside} bytes beside weights and cache");
    let buffers = json["buffers"].as_array().expect("buffers");
    let all: u64 = buffers.iter().map(|buffer| buffer["bytes"].as_u64().expect("bytes")).sum();
    assert_eq!(json["working_set_bytes"].as_u64(), Some(all));
    for call in calls {
        for binding in call["bindings"].as_object().expect("bindings").values() {
            let Some(buffer) = binding["buffer"].as_u64() else { continue };
            let end = binding["offset"].as_u64().expect("offset") + binding["bytes"].as_u64().expect("bytes");
            assert!(end <= buffers[buffer as usize]["bytes"].as_u64().expect("bytes"), "{call}");
        }
    }
}

#[test]
fn predictions_are_bytes_by_bandwidth() {
    let shop = packed();
    let json = parsed(&shop.done("inspect --dispatches packed --kv int8 --json"));
    let moved = json["total"]["bytes_read"].as_f64().expect("bytes")
        + json["total"]["bytes_written"].as_f64().expect("bytes");
    let chips = json["predicted"].as_array().expect("chips");
    assert!(chips.len() > 12);
    for chip in chips {
        let (ms, rate) = (chip["ms"].as_f64().expect("ms"), chip["gb_per_s"].as_f64().expect("GB/s"));
        assert!((ms * rate * 1e6 / moved - 1.0).abs() < 1e-9, "{chip}");
    }
    let said = shop.done("inspect --dispatches packed --kv int8");
    let names: Vec<&str> = rows(&said, "memory GB/s").iter().map(|row| row[0]).collect();
    assert!(
        ["M1", "M2 Ultra", "M3 Pro", "M4 Max", "M5"].iter().all(|chip| names.contains(chip)),
        "{names:?}"
    );
}

#[test]
fn a_prompt_has_a_list_of_its_own() {
    let shop = packed();
    let one = parsed(&shop.done("inspect --dispatches packed --json"));
    assert_eq!((one["context"].as_u64(), one["tokens"].as_u64()), (Some(CONTEXT as u64), Some(1)));
    let said = shop.done("inspect --dispatches packed --tokens 40");
    let kernels: Vec<&str> = rows(&said, "kernel").iter().map(|row| row[3]).collect();
    for kernel in ["rms_norm", "matmul_int4_g32", "turn_f16", "attention_prefill_f16_64"] {
        assert!(kernels.contains(&kernel), "{kernel} is not in {kernels:?}");
    }
    assert!(said.out.contains("a bound only"), "{said:?}");
}

#[test]
fn what_cannot_be_inspected_is_refused() {
    let shop = packed();
    shop.write("folder/notes.txt", "");
    shop.refused("inspect nowhere", &["nowhere", "does not exist"]);
    shop.refused("inspect folder", &["folder", "missing config.json"]);
    shop.refused("inspect --dispatches folder", &["folder", "missing config.json"]);
    shop.refused("inspect packed --context 10", &["--dispatches"]);
    shop.refused("inspect --dispatches packed --context 0", &["context of 0", "128"]);
    shop.refused("inspect --dispatches packed --context 129", &["context of 129", "longest is 128"]);
    shop.refused("inspect --dispatches packed --tokens 0", &["--tokens 0", "1 to 128"]);
    shop.refused("inspect --dispatches packed --context 9 --tokens 10", &["--tokens 10", "1 to 9"]);
    shop.refused("inspect --dispatches packed --kv f32", &["f32", "f16 or int8"]);
    shop.refused("inspect --dispatches packed --kv fp8", &["fp8"]);
    let mut narrow = model::config();
    narrow["head_dim"] = 8.into();
    shop.write("narrow.json", narrow.to_string());
    shop.done("init --shape narrow.json --format float --out narrow");
    shop.refused("inspect --dispatches narrow", &["head_dim: 8", "16 to 256"]);
    let mut bytes = shop.read("packed/model.safetensors");
    *bytes.last_mut().expect("bytes") ^= 1;
    shop.write("packed/model.safetensors", bytes);
    shop.refused("inspect packed", &["packed/model.safetensors", "SHA-256"]);
    shop.refused("inspect --dispatches packed", &["packed/model.safetensors", "SHA-256"]);
}

//! Models that are damaged or don't fit: refused by every command that reads them, naming file, tensor and what was wanted.

use crate::{model::VOCAB, workshop::Workshop};

/// One command line for each way in.
const TRAIN: &str = "train tiny.toml --out run";
const EXPORT: &str = "export teacher --format qat --weights int4-g32 --out packed";
const EVAL: &str = "eval teacher --data valid.txt";

/// All three ways in refuse the model in `teacher` with `parts`.
fn all_refuse(shop: &Workshop, parts: &[&str]) {
    for line in [TRAIN, EXPORT, EVAL] {
        shop.refused(line, parts);
    }
}

#[test]
fn a_truncated_file_is_refused() {
    let shop = Workshop::furnished();
    let whole = shop.read("teacher/model.safetensors");
    for kept in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        shop.write("teacher/model.safetensors", &whole[..kept]);
        let what = if kept < 8 { "too short" } else { "truncated" };
        all_refuse(&shop, &["teacher/model.safetensors", what, "again"]);
    }
}

#[test]
fn a_header_that_lies_is_refused() {
    let shop = Workshop::furnished();
    let mut bytes = shop.read("teacher/model.safetensors");
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    shop.write("teacher/model.safetensors", &bytes);
    all_refuse(&shop, &["teacher/model.safetensors", "claims a header of 18446744073709551615 bytes"]);
}

#[test]
fn a_tensor_of_another_shape_is_refused() {
    let shop = Workshop::furnished();
    let name = "model.layers.1.self_attn.k_proj.weight";
    shop.model_with("teacher", |_, tensors| {
        tensors.insert(name.into(), (vec![64, 64], vec![0.1; 64 * 64]));
    });
    all_refuse(&shop, &[name, "[32, 64]", "[64, 64]"]);
}

#[test]
fn a_missing_tensor_is_named() {
    let shop = Workshop::furnished();
    let name = "model.layers.1.mlp.up_proj.weight";
    shop.model_with("teacher", |_, tensors| {
        tensors.remove(name);
    });
    all_refuse(&shop, &["teacher", name]);
}

#[test]
fn a_weight_that_is_no_number_is_named_with_its_index() {
    let shop = Workshop::furnished();
    let name = "model.layers.0.mlp.gate_proj.weight";
    for (value, spelled) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        shop.model_with("teacher", |_, tensors| tensors.get_mut(name).expect("a tensor").1[77] = value);
        all_refuse(&shop, &[name, &format!("element 77 is {spelled}")]);
    }
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused() {
    let shop = Workshop::furnished();
    shop.model_with("teacher", |config, tensors| {
        config["vocab_size"] = 200.into();
        config["eos_token_id"] = 0.into();
        *tensors = crate::model::tensors(config);
    });
    let highest = format!("highest token id is {}", VOCAB - 1);
    all_refuse(&shop, &["teacher/tokenizer.json", &highest, "vocab_size 200"]);
}

#[test]
fn a_tokenizer_that_is_none_is_refused() {
    let shop = Workshop::furnished();
    shop.write("teacher/tokenizer.json", "{\"version\": \"1.0\"}");
    all_refuse(&shop, &["teacher/tokenizer.json", "not a tokenizer.json"]);
}

#[test]
fn missing_parts_are_all_named() {
    let shop = Workshop::furnished();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::remove_file(shop.path("teacher").join(name)).expect("removed");
    }
    all_refuse(&shop, &["teacher", "config.json", "tokenizer.json"]);
    shop.refused("eval train.txt --data valid.txt", &["train.txt", "model directory"]);
    shop.refused("eval nowhere --data valid.txt", &["nowhere", "does not exist"]);
    shop.refused("export nowhere --format hf --out x", &["nowhere", "does not exist"]);
}

#[test]
fn an_architecture_that_is_not_known_lists_those_that_are() {
    let shop = Workshop::furnished();
    shop.model_with("teacher", |config, _| config["model_type"] = "gpt2".into());
    all_refuse(&shop, &["teacher/config.json", "model_type", "gpt2", "llama"]);
    shop.model_with("teacher", |config, _| config["hidden_size"] = "wide".into());
    all_refuse(&shop, &["teacher/config.json", "hidden_size", "wide"]);
    shop.write("teacher/config.json", "{");
    all_refuse(&shop, &["teacher/config.json"]);
}

#[test]
fn a_flipped_byte_of_a_packed_model_is_found() {
    let shop = Workshop::furnished();
    shop.done(EXPORT);
    let whole = shop.read("packed/model.safetensors");
    let data = 8 + u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
    for at in [data, (data + whole.len()) / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        shop.write("packed/model.safetensors", damaged);
        shop.refused("eval packed --data valid.txt", &["packed/model.safetensors", "SHA-256", "damaged"]);
    }
    shop.write("packed/model.safetensors", &whole);
    shop.done("eval packed --data valid.txt");
    for name in ["config.json", "tokenizer.json"] {
        let name = format!("packed/{name}");
        let file = shop.read(&name);
        shop.write(&name, [&file[..], b" "].concat());
        shop.refused("eval packed --data valid.txt", &[&name, "SHA-256", "damaged"]);
        shop.write(&name, file);
    }
}

#[test]
fn a_packed_model_and_its_manifest_list_the_same_tensors() {
    let shop = Workshop::furnished();
    shop.done(EXPORT);
    let manifest = shop.json("packed/manifest.json");
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut lacking = manifest.clone();
    lacking["tensors"].as_object_mut().expect("tensors").remove(name);
    shop.write("packed/manifest.json", lacking.to_string());
    shop.refused("eval packed --data valid.txt", &["packed", name, "manifest.json"]);
    let mut surplus = manifest.clone();
    surplus["tensors"]["model.extra.weight"] = manifest["tensors"][name].clone();
    shop.write("packed/manifest.json", surplus.to_string());
    shop.refused("eval packed --data valid.txt", &["packed", "model.extra.weight"]);
    let mut newer = manifest.clone();
    newer["qat"] = 2.into();
    shop.write("packed/manifest.json", newer.to_string());
    shop.refused("eval packed --data valid.txt", &["packed/manifest.json", "version"]);
    let mut unknown = manifest;
    unknown["tensors"][name]["format"] = "int5-g32".into();
    shop.write("packed/manifest.json", unknown.to_string());
    shop.refused("eval packed --data valid.txt", &["packed/manifest.json", "int5-g32"]);
}

#[test]
fn a_packed_model_is_no_start_for_training_or_rounding() {
    let shop = Workshop::furnished();
    shop.done(EXPORT);
    shop.refused(
        "train tiny.toml --out run --set student.from=packed",
        &["packed", "is a packed model", "want the float model"],
    );
    shop.refused(
        "export packed --format qat --weights int8-g32 --out again",
        &["packed", "is a packed model", "want the float model"],
    );
}

#[test]
fn models_with_different_tokenizers_are_not_compared() {
    let shop = Workshop::furnished();
    shop.model("stranger");
    let other =
        String::from_utf8(shop.read("stranger/tokenizer.json")).expect("UTF-8").replace("<|end|>", "<|fin|>");
    shop.write("stranger/tokenizer.json", other);
    shop.refused("eval teacher --data valid.txt --against stranger", &["different tokenizers", "stranger"]);
}

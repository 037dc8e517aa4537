//! Model directories and tokenizers: what is required, what travels along.

use super::*;

fn model_dir() -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join(CONFIG_FILE), r#"{"model_type":"llama","vocab_size":4}"#).unwrap();
    std::fs::write(dir.path().join(TOKENIZER_FILE), word_tokenizer(4)).unwrap();
    write_f32(&dir.path().join(MODEL_FILE), &[("a", &[1], &[1.0])]);
    dir
}

#[test]
fn a_model_directory_is_config_tensors_and_tokenizer() {
    let dir = model_dir();
    let hf = HfDir::open(dir.path()).unwrap();
    assert_eq!(hf.config["model_type"], "llama");
    assert_eq!(hf.tensors.f32("a", &[1]).unwrap(), [1.0]);
    assert_eq!(hf.tokenizer(), dir.path().join("tokenizer.json"));
    assert_eq!(hf.config_path(), dir.path().join("config.json"));
}

#[test]
fn tokenizer_and_licence_files_travel_along() {
    let dir = model_dir();
    for name in
        ["LICENSE.txt", "Notice", "README.md", "chat_template.jinja", "generation_config.json", "x.bin"]
    {
        std::fs::write(dir.path().join(name), "{}").unwrap();
    }
    std::fs::create_dir(dir.path().join("LICENSES")).unwrap();
    let found = companions(dir.path()).unwrap();
    let names: Vec<_> = found.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(
        names,
        ["LICENSE.txt", "Notice", "chat_template.jinja", "generation_config.json", "tokenizer.json"]
    );
}

#[test]
fn what_is_not_a_model_directory_says_what_is_missing() {
    const WANT: &str = "want a Hugging Face model directory (config.json, tokenizer.json, model.safetensors)";
    let dir = model_dir();
    let file = dir.path().join(CONFIG_FILE);
    assert_eq!(message(&dir, HfDir::open(&dir.path().join("gone"))), format!("gone: does not exist; {WANT}"));
    assert_eq!(message(&dir, HfDir::open(&file)), format!("config.json: is not a directory; {WANT}"));
    std::fs::remove_file(file).unwrap();
    assert_eq!(message(&dir, HfDir::open(dir.path())), "DIR: not a model directory: missing config.json");
    std::fs::remove_file(dir.path().join(TOKENIZER_FILE)).unwrap();
    std::fs::remove_file(dir.path().join(MODEL_FILE)).unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), "").unwrap();
    std::fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    assert_eq!(
        message(&dir, HfDir::open(dir.path())),
        "DIR: not a model directory: missing config.json, \
         tokenizer.json (save tokenizer.model as such with transformers), \
         model.safetensors (save pytorch_model.bin as such with transformers)"
    );
}

#[test]
fn a_config_that_is_not_json_is_named() {
    let dir = model_dir();
    std::fs::write(dir.path().join(CONFIG_FILE), "{").unwrap();
    assert_eq!(
        message(&dir, HfDir::open(dir.path())),
        "config.json: not the JSON that is wanted: EOF while parsing an object at line 1 column 1"
    );
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused() {
    let dir = model_dir();
    let path = dir.path().join(TOKENIZER_FILE);
    assert_eq!(load_tokenizer(&path, 4).unwrap().get_vocab_size(true), 4);
    assert_eq!(
        message(&dir, load_tokenizer(&path, 3)),
        "tokenizer.json: its highest token id is 3, but the model's vocabulary ends at 2 (vocab_size 3); \
         use the tokenizer of the model"
    );
    std::fs::write(&path, word_tokenizer(0)).unwrap();
    assert_eq!(
        message(&dir, load_tokenizer(&path, 3)),
        "tokenizer.json: has an empty vocabulary; use the tokenizer of the model"
    );
    std::fs::write(&path, "{}").unwrap();
    let text = message(&dir, load_tokenizer(&path, 3));
    assert!(text.starts_with("tokenizer.json: not a tokenizer.json of the tokenizers library: "), "{text}");
}

#[test]
fn a_tokenizer_with_a_mistake_in_its_decoder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    // Where this stands, the library panics.
    std::fs::write(&path, r#"{"decoder": {"type": "ByteLevel" "use_regex": true}}"#).unwrap();
    let text = message(&dir, load_tokenizer(&path, 3));
    assert!(text.contains("expected `,` or `}` at line 1 column 34"), "{text}");
}

#[test]
fn a_tokenizer_is_known_by_what_it_does_not_by_its_white_space() {
    let dir = TempDir::new().unwrap();
    let identity = |json: &serde_json::Value, pretty: bool| {
        let path = dir.path().join(TOKENIZER_FILE);
        let text = if pretty { serde_json::to_string_pretty(json) } else { serde_json::to_string(json) };
        std::fs::write(&path, text.unwrap()).unwrap();
        tokenizer_sha256(&load_tokenizer(&path, 9).unwrap()).unwrap()
    };
    let mut json: serde_json::Value = serde_json::from_str(&word_tokenizer(4)).unwrap();
    let plain = identity(&json, false);
    assert_eq!(plain.len(), 64);
    assert_eq!(plain, identity(&json, true));
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    assert_eq!(plain, identity(&json, false), "truncation is switched off");
    json["model"]["vocab"] = serde_json::json!({"w0": 1, "w1": 0, "w2": 2, "w3": 3});
    assert_ne!(plain, identity(&json, false));
}

#[test]
fn a_digest_is_sha256_in_hex() {
    // FIPS 180-4 example "abc".
    assert_eq!(
        sha256_hex(&[b"a", b"bc"]),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn a_template_of_what_is_not_there_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let refused = |single: &str| {
        let template = format!(
            r#"{{"type": "TemplateProcessing", "single": [{single}], "pair": [], "special_tokens": {{"<s>": {{"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}}}}"#
        );
        let steps = format!(r#"{{"type": "Sequence", "processors": [{template}]}}"#);
        let mut json: serde_json::Value = serde_json::from_str(&word_tokenizer(4)).unwrap();
        json["post_processor"] = serde_json::from_str(&steps).unwrap();
        std::fs::write(&path, json.to_string()).unwrap();
        load_tokenizer(&path, 4).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(
        refused(r#"{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}"#),
        Ok(())
    );
    let problem = refused(r#"{"SpecialToken": {"id": "</s>", "type_id": 0}}"#).unwrap_err();
    assert!(problem.contains(r#"the special token "</s>", which it lacks"#), "{problem}");
    let problem = refused(r#"{"Sequence": {"id": "B", "type_id": 0}}"#).unwrap_err();
    assert!(problem.contains(r#"single texts has a text "B""#), "{problem}");
}

//! Tokenizers that went through a GGUF file cut text as they did before, and as llama.cpp does.

use std::path::Path;

use serde_json::{Value as Json, json};
use tokenizers::Tokenizer;

use crate::files::parse_tokenizer;
use crate::gguf::{Gguf, GgufWriter, Metadata, vocabulary};
use crate::model::Config;
use crate::shared::shared;

fn config(vocab_size: usize) -> Config {
    let json = json!({
        "model_type": "llama", "vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    });
    Config::from_json(&json, Path::new("config.json")).unwrap()
}

/// The metadata of a file that was written from the tokenizer in `dir` and read again.
fn through_a_file(dir: &Path, vocab_size: usize) -> Metadata {
    let files = vocabulary::Files::read(&crate::files::companions(dir).unwrap()).unwrap();
    let mut metadata = Metadata::new(Path::new("model.gguf"));
    vocabulary::write(&files, &config(vocab_size), &mut metadata).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    GgufWriter::create(&path, &metadata, &[]).unwrap().finish().unwrap();
    Gguf::open(&path).unwrap().metadata
}

fn rebuilt(metadata: &Metadata, vocab_size: usize) -> Tokenizer {
    let json = vocabulary::to_json(metadata, vocab_size).unwrap();
    parse_tokenizer(Path::new("model.gguf"), json.to_string().as_bytes(), vocab_size).unwrap()
}

/// The vectors of llama.cpp: texts, and the ids that its tokenizer gives.
fn vectors(name: &str) -> Option<Vec<(String, Vec<u32>)>> {
    let folder = shared("data/tokenizers/vectors")?;
    let texts = std::fs::read_to_string(folder.join(format!("{name}.inp"))).unwrap();
    let ids = std::fs::read_to_string(folder.join(format!("{name}.out"))).unwrap();
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let ids: Vec<Vec<u32>> =
        ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    let count = ids.len();
    assert!(count > 40 && texts.len() >= count, "{} texts, {count} lists", texts.len());
    Some(texts.into_iter().map(str::to_owned).zip(ids).collect())
}

#[test]
fn the_vectors_of_llama_cpp_pass() {
    for (tokenizer, name, vocab_size, pre) in [
        ("gpt2", "gpt-2", 50257, "gpt-2"),
        ("llama2", "llama-spm", 32000, "default"),
        ("qwen", "qwen2", 151_936, "qwen2"),
    ] {
        let Some(vectors) = vectors(name) else { return };
        let dir = shared("data/tokenizers").unwrap().join(tokenizer);
        let metadata = through_a_file(&dir, vocab_size);
        assert_eq!(metadata.text("tokenizer.ggml.pre").unwrap(), Some(pre));
        assert_eq!(metadata.texts("tokenizer.ggml.tokens").unwrap().unwrap().len(), vocab_size);
        let tokenizer = rebuilt(&metadata, vocab_size);
        for (text, ids) in vectors {
            assert_eq!(tokenizer.encode(text.as_str(), false).unwrap().get_ids(), ids, "{name}: {text:?}");
        }
    }
}

#[test]
fn merges_scores_and_special_tokens_survive_the_way() {
    let text = "<s>Once upon a time, there was a naïve girl\u{2014}☕ <|im_start|>user\n\n 12345</s>";
    for (dir, vocab_size) in [
        ("data/tokenizers/gpt2", 50257),
        ("data/tokenizers/llama2", 32000),
        ("data/tokenizers/smollm2", 49152),
        ("data/tokenizers/qwen", 151_936),
        ("data/weights/stories260K", 512),
        ("fixtures/llama_untied", 512),
        ("fixtures/phi3", 512),
    ] {
        let Some(dir) = shared(dir) else { return };
        let original = std::fs::read(dir.join("tokenizer.json")).unwrap();
        let before = parse_tokenizer(&dir, &original, vocab_size).unwrap();
        let metadata = through_a_file(&dir, vocab_size);
        let after = rebuilt(&metadata, vocab_size);
        assert_eq!(before.get_vocab(true), after.get_vocab(true), "{}", dir.display());
        for special in [false, true] {
            let (before, after) =
                (before.encode(text, special).unwrap(), after.encode(text, special).unwrap());
            assert_eq!(before.get_tokens(), after.get_tokens(), "{}", dir.display());
        }
        let ids = before.encode(text, false).unwrap().get_ids().to_vec();
        assert_eq!(
            before.decode(&ids, false).unwrap(),
            after.decode(&ids, false).unwrap(),
            "{}",
            dir.display()
        );
        // What is told of itself a second time is the same.
        let (first, again) =
            (merges(&metadata, vocab_size), serde_json::from_slice::<Json>(&original).unwrap());
        let pairs = |json: &Json| -> Vec<String> {
            let pair = |merge: &Json| {
                merge.as_str().map_or_else(
                    || format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()),
                    str::to_owned,
                )
            };
            json.as_array().unwrap().iter().map(pair).collect()
        };
        assert!(pairs(&first) == pairs(&again["model"]["merges"]), "{}", dir.display());
    }
}

fn merges(metadata: &Metadata, vocab_size: usize) -> Json {
    vocabulary::to_json(metadata, vocab_size).unwrap()["model"]["merges"].clone()
}

#[test]
fn the_first_token_goes_in_front_where_the_tokenizer_says_so() {
    let Some(dir) = shared("data/weights/stories260K") else { return };
    let metadata = through_a_file(&dir, 512);
    assert_eq!(metadata.flag("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(metadata.flag("tokenizer.ggml.add_space_prefix").unwrap(), Some(true));
    assert_eq!(metadata.size("tokenizer.ggml.unknown_token_id").unwrap(), Some(0));
    assert_eq!(rebuilt(&metadata, 512).encode("a", true).unwrap().get_ids()[0], 1);
}

#[test]
fn merges_that_sentencepiece_would_not_make_are_refused() {
    let Some(dir) = shared("data/weights/tinystories-656k") else { return };
    let files = vocabulary::Files::read(&crate::files::companions(&dir).unwrap()).unwrap();
    let error = vocabulary::write(&files, &config(2048), &mut Metadata::new(Path::new("model.gguf")))
        .unwrap_err()
        .to_string();
    assert!(error.contains("its merges are not those of SentencePiece"), "{error}");
}

#[test]
fn words_that_llama_cpp_would_take_whole_must_be_what_the_merges_make() {
    let Some(dir) = shared("fixtures/llama_untied") else { return };
    let mut tokenizer: Json =
        serde_json::from_slice(&std::fs::read(dir.join("tokenizer.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut write = |change: &dyn Fn(&mut Json)| {
        change(&mut tokenizer["model"]);
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let files = vocabulary::Files::read(&crate::files::companions(folder.path()).unwrap()).unwrap();
        vocabulary::write(&files, &config(512), &mut Metadata::new(Path::new("model.gguf")))
    };
    write(&|_| ()).unwrap();
    let last = |model: &mut Json| drop(model["merges"].as_array_mut().unwrap().pop());
    let error = write(&last).unwrap_err().to_string();
    assert!(error.contains("is a token, and the merges make"), "{error}");
    // The tokenizer takes it whole too.
    write(&|model| model["ignore_merges"] = true.into()).unwrap();
}

#[test]
fn tokenizers_of_another_kind_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |tokenizer: Json, wanted: &str| {
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let files = vocabulary::Files::read(&crate::files::companions(folder.path()).unwrap()).unwrap();
        let error = vocabulary::write(&files, &config(4), &mut Metadata::new(Path::new("model.gguf")))
            .unwrap_err()
            .to_string();
        assert!(error.contains(wanted), "{error}");
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
    let with = |vocab: Json, added: Json| json!({"pre_tokenizer": bytes, "added_tokens": added, "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    refused(json!({"model": {"type": "Unigram", "vocab": []}}), "its model is \"Unigram\"; want BPE");
    refused(with(json!({"a": 4}), json!([])), "its highest id is 4; the model has 4 tokens");
    refused(with(json!({"a": -1}), json!([])), "\"a\" has the id -1");
    refused(with(json!({"a": 1, "b": 1}), json!([])), "have the same id");
    refused(with(json!({"a": 1}), json!([{"id": 1, "content": "<x>", "special": true}])), "have the same id");
    refused(with(json!({"[PAD2]": 1}), json!([])), "\"[PAD2]\" is the text of two tokens");
    let piece = json!({"normalizer": {"type": "NFKC"}, "model": {"type": "BPE", "byte_fallback": true, "vocab": {"a": 0}, "merges": []}});
    refused(piece, "SentencePiece replaces spaces");
}

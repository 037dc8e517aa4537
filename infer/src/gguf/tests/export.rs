//! What is exported is what llama.cpp's own converter and quantizer make of the same model.

use qat_quant::ScaleRule;
use qat_quant::kernels::FloatType;

use super::packing::{Formats, Packed, format};
use crate::export::Options;
use crate::gguf::{Array, Gguf, GgufModel, Kind, Value};
use crate::model::params;
use crate::shared::shared;

/// Reference, fixture, the name that the converter gave, and the formats of llama.cpp's Q4_0.
fn references() -> Vec<(&'static str, &'static str, Formats)> {
    let (int4, int8) = (Some(format("int4-g32")), Some(format("int8-g32")));
    vec![
        ("llama_tied", "Llama_Tied", Formats(int4, int8, None)),
        ("llama_untied", "Llama_Untied", Formats(int4, int4, int8)),
        ("qwen2", "Qwen2", Formats(int4, int8, None)),
        ("qwen3", "Qwen3", Formats(int4, int4, int8)),
        ("lfm2", "Lfm2", Formats(int4, int8, None)),
    ]
}

fn theirs(name: &str) -> Option<Gguf> {
    Some(Gguf::open(&shared(&format!("reference-exports/{name}.gguf"))?).unwrap())
}

#[test]
fn everything_before_the_tensors_is_llama_cpps_to_the_byte() {
    for (fixture, name, formats) in references() {
        let Some(theirs) = theirs(&format!("{fixture}.q4_0")) else { return };
        let packed = Packed::fixture(fixture, formats).unwrap();
        let path = packed.export(name, &Options::default()).unwrap();
        let ours = Gguf::open(&path).unwrap();
        assert_eq!(ours.metadata.entries(), theirs.metadata.entries(), "{fixture}");
        let start = ours.names().filter_map(|name| Some(ours.get(name)?.start())).min().unwrap();
        let [a, b] = [&path, theirs.path()].map(|path| std::fs::read(path).unwrap());
        assert_eq!(a.len(), b.len(), "{fixture}");
        assert!(a[..start] == b[..start], "{fixture}: names, shapes, types and offsets");
    }
}

#[test]
fn tensors_are_llama_cpps_up_to_codes_on_the_edge_between_two() {
    for (fixture, name, formats) in references() {
        let Some(theirs) = theirs(&format!("{fixture}.q4_0")) else { return };
        let packed = Packed::fixture(fixture, formats).unwrap();
        let path = packed.export(name, &Options::default()).unwrap();
        let ours = Gguf::open(&path).unwrap();
        let (mut apart, mut codes) = (0, 0);
        for name in ours.names() {
            let ((info, a), (_, b)) = (ours.tensor(name).unwrap(), theirs.tensor(name).unwrap());
            let (scale, block) = (if info.kind == Kind::F32 { 0 } else { 2 }, info.kind.block_bytes());
            for (a, b) in a.chunks_exact(block).zip(b.chunks_exact(block)) {
                // Scales and floats are equal. Codes are chosen on the stored grid here, and with the scale before rounding there.
                assert_eq!(a[..scale], b[..scale], "{fixture}: {name}");
                codes += block - scale;
                apart += a[scale..].iter().zip(&b[scale..]).filter(|(a, b)| a != b).count();
                if info.kind == Kind::F32 {
                    assert_eq!(a, b, "{fixture}: {name}");
                }
            }
        }
        println!("{fixture}: {apart} of {codes} bytes of codes differ");
        assert!(apart * 50 < codes, "{fixture}: {apart} of {codes}");
    }
}

/// The weights of this fixture are ternary, so that nothing is left to choose.
#[test]
fn ternary_tensors_are_llama_cpps_to_the_byte() {
    let tq1 = Options { tq1: true, ..Options::default() };
    let cases = [
        ("q2_0", "ternary-g64", Options::default()),
        ("tq2_0", "ternary-g256", Options::default()),
        ("tq1_0", "ternary-g256", tq1.clone()),
        ("tq2_0", "ternary-tensor", Options::default()),
        ("tq1_0", "ternary-tensor", tq1),
    ];
    for (reference, spelling, options) in cases {
        let Some(theirs) = theirs(&format!("llama_ternary.{reference}")) else { return };
        let formats = Formats(Some(format(spelling)), None, None);
        let dir = shared("fixtures/llama_ternary").unwrap();
        let packed = Packed::of(&dir, formats, ScaleRule::Mse);
        let ours = Gguf::open(&packed.export("Llama_Ternary", &options).unwrap()).unwrap();
        assert_eq!(ours.metadata.entries(), theirs.metadata.entries(), "{spelling}");
        for name in theirs.names().filter(|name| *name != "token_embd.weight") {
            let ((a, ours), (b, theirs)) = (ours.tensor(name).unwrap(), theirs.tensor(name).unwrap());
            assert_eq!((a.kind, &a.shape), (b.kind, &b.shape), "{spelling}: {name}");
            assert!(*ours == *theirs, "{spelling}: {name}");
        }
        // bf16 numbers, of which those below 2^-24 are none of f16.
        let embedding = ours.get("token_embd.weight").unwrap().kind;
        assert!(matches!(embedding, Kind::F16 | Kind::BF16), "{embedding:?}");
    }
}

#[test]
fn floats_are_stored_in_the_smallest_type_that_is_exact_or_the_one_asked_for() {
    let Some(packed) = Packed::fixture("llama_tied", Formats(None, None, None)) else { return };
    let kinds = |options: &Options| {
        let file = Gguf::open(&packed.export("out", options).unwrap()).unwrap();
        ["token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight"]
            .map(|name| file.get(name).unwrap().kind)
    };
    let [embedding, matrix, norm] = kinds(&Options::default());
    assert!(matches!(embedding, Kind::F16 | Kind::BF16) && matches!(matrix, Kind::F16 | Kind::BF16));
    assert_eq!(norm, Kind::F32);
    let asked = |dtype| kinds(&Options { dtype: Some(dtype), ..Options::default() });
    assert_eq!(asked(FloatType::F32), [Kind::F32, Kind::F32, Kind::F32]);
    assert_eq!(asked(FloatType::F16), [Kind::F16, Kind::F16, Kind::F32]);
}

#[test]
fn a_context_is_announced_and_one_that_the_model_lacks_refused() {
    let Some(packed) = Packed::fixture("qwen3", Formats::all(format("int8-g32"))) else { return };
    let export = |context| packed.export("out", &Options { context: Some(context), ..Options::default() });
    let file = Gguf::open(&export(1024).unwrap()).unwrap();
    assert_eq!(file.metadata.size("qwen3.context_length").unwrap(), Some(1024));
    for context in [0, 2049] {
        let error = export(context).unwrap_err().to_string();
        assert_eq!(error, format!("--context {context}: want 1 to 2048, the context of the model"));
    }
}

#[test]
fn an_affine_grid_is_refused_with_the_formats_that_fit() {
    let Some(packed) = Packed::fixture("llama_tied", Formats::all(format("int4-affine-g64"))) else { return };
    let error = packed.export("out", &Options::default()).unwrap_err().to_string();
    assert!(error.contains("int4-g32, int8-g32, ternary-g64, ternary-tensor"), "{error}");
}

#[test]
fn a_pre_tokenizer_that_is_not_known_is_refused_before_anything_is_written() {
    let Some(dir) = shared("fixtures/qwen2") else { return };
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(dir.join(file), folder.path().join(file)).unwrap();
    }
    let tokenizer = std::fs::read_to_string(dir.join("tokenizer.json")).unwrap();
    let changed = tokenizer.replace(r"|\\p{N}|", r"|\\p{N}{1,2}|");
    assert_ne!(tokenizer, changed);
    std::fs::write(folder.path().join("tokenizer.json"), changed).unwrap();
    let packed = Packed::of(folder.path(), Formats::all(format("int4-g32")), ScaleRule::Absmax);
    let error = packed.export("out", &Options::default()).unwrap_err().to_string();
    assert!(error.contains("known are gpt-2, smollm, llama-bpe, qwen2"), "{error}");
    assert!(!packed.packed.with_file_name("out").exists());
}

#[test]
fn a_vocabulary_shorter_than_the_models_is_filled_and_one_that_is_missing_said() {
    let Some(dir) = shared("fixtures/qwen2") else { return };
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(dir.join(file), folder.path().join(file)).unwrap();
    }
    let none = Packed::of(folder.path(), Formats::all(format("int4-g32")), ScaleRule::Absmax);
    let file = Gguf::open(&none.export("out", &Options::default()).unwrap()).unwrap();
    assert_eq!(file.metadata.text("tokenizer.ggml.model").unwrap(), Some("no_vocab"));
    assert_eq!(file.metadata.size("qwen2.vocab_size").unwrap(), Some(512));

    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("tokenizer.json")).unwrap()).unwrap();
    tokenizer["added_tokens"] = serde_json::json!([]);
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let short = Packed::of(folder.path(), Formats::all(format("int4-g32")), ScaleRule::Absmax);
    let path = short.export("out", &Options::default()).unwrap();
    let file = Gguf::open(&path).unwrap();
    let tokens = file.metadata.texts("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!((tokens.len(), tokens[508].as_str(), tokens[511].as_str()), (512, "[PAD508]", "[PAD511]"));
    let Some(Value::Array(Array::I32(types))) = file.metadata.get("tokenizer.ggml.token_type") else {
        panic!("no types")
    };
    assert_eq!(types[507..], [1, 5, 5, 5, 5]);
    assert_eq!(GgufModel::open(&path).unwrap().tokenizer().unwrap().get_vocab_size(true), 508);
}

#[test]
fn what_was_exported_opens_with_the_config_and_the_values_that_it_came_from() {
    for (fixture, name, formats) in references() {
        let Some(packed) = Packed::fixture(fixture, formats) else { return };
        let source = crate::export::Source::open(&packed.packed).unwrap();
        let model = GgufModel::open(&packed.export(name, &Options::default()).unwrap()).unwrap();
        assert_eq!(model.config, source.config, "{fixture}");
        for param in params(&source.config) {
            let want = source.tensor(&param).unwrap().values().unwrap();
            assert!(model.values(&param).unwrap() == want, "{fixture}: {}", param.name);
        }
    }
}

#[test]
fn biases_move_with_their_rows_and_a_linear_scaling_is_said() {
    let packed = Packed::made(&serde_json::json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "attention_bias": true, "mlp_bias": true, "rope_scaling": {"rope_type": "linear", "factor": 2.5},
    }));
    let source = crate::export::Source::open(&packed.packed).unwrap();
    let path = packed.export("out", &Options::default()).unwrap();
    let file = Gguf::open(&path).unwrap();
    assert_eq!(file.metadata.text("llama.rope.scaling.type").unwrap(), Some("linear"));
    assert_eq!(file.metadata.number("llama.rope.scaling.factor").unwrap(), Some(2.5));
    let stored = |name: &str| -> Vec<f32> {
        let (_, bytes) = file.tensor(name).unwrap();
        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let model = GgufModel::open(&path).unwrap();
    assert_eq!(model.config, source.config);
    for param in params(&source.config) {
        let want = source.tensor(&param).unwrap().values().unwrap();
        assert!(model.values(&param).unwrap() == want, "{}", param.name);
        if param.name == "model.layers.1.self_attn.k_proj.bias" {
            // Element 8 of a head of 16 follows element 0.
            let k = stored("blk.1.attn_k.bias");
            assert_eq!(k[..4], [want[0], want[8], want[1], want[9]]);
            assert_eq!(k[16..18], [want[16], want[24]]);
        }
    }
}

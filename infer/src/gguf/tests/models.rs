//! A GGUF file is a model: it runs, packed where its blocks are ours, and is read for its values.

use std::path::Path;

use qat_quant::Format;

use super::packing::{Formats, Packed, format};
use crate::cpu::{CpuDecoder, KvType, Model, RunOptions, Session};
use crate::export::Options;
use crate::files::{HfDir, Storage};
use crate::gguf::{Announced, Array, Gguf, GgufModel, GgufWriter, Kind, Metadata, Value};
use crate::model::{Param, params};
use crate::shared::shared;
use crate::{FloatModel, RuntimeMatrix as _};

const IDS: [u32; 7] = [5, 152, 290, 3, 53, 17, 300];

fn logits(decoder: &CpuDecoder) -> Vec<f32> {
    let mut session = Session::new(decoder, &RunOptions::new(IDS.len()).with_kv(KvType::F32)).unwrap();
    let hidden = session.hidden(&IDS).unwrap();
    session.logits(&hidden, 0, IDS.len()).unwrap().to_vec()
}

/// Writes `read` again with `change` made to its metadata, and some tensors replaced.
fn rewrite(read: &Gguf, to: &Path, change: impl Fn(&mut Metadata), replaced: &[(&str, Kind, Vec<u8>)]) {
    let mut metadata = read.metadata.clone();
    change(&mut metadata);
    let mut names: Vec<&str> = read.names().collect();
    names.sort_by_key(|name| read.get(name).map(|info| info.start()));
    let other = |name: &str| replaced.iter().find(|(theirs, ..)| *theirs == name);
    let announced = |name: &&str| Announced {
        name: (*name).to_owned(),
        shape: read.get(name).unwrap().shape.clone(),
        kind: other(name).map_or(read.get(name).unwrap().kind, |(_, kind, _)| *kind),
    };
    let list: Vec<Announced> = names.iter().map(announced).collect();
    let mut writer = GgufWriter::create(to, &metadata, &list).unwrap();
    for name in names {
        match other(name) {
            Some((.., bytes)) => writer.write(name, bytes).unwrap(),
            None => writer.write(name, &read.tensor(name).unwrap().1).unwrap(),
        }
    }
    writer.finish().unwrap();
}

#[test]
fn an_exported_file_runs_as_the_packed_directory_does_to_the_bit() {
    for (fixture, formats) in [
        ("llama_tied", Formats::all(format("int4-g32"))),
        ("llama_untied", Formats(Some(format("int8-g32")), None, Some(format("int4-g32")))),
        ("llama_ternary", Formats(Some(format("ternary-g256")), Some(format("int8-g32")), None)),
        ("qwen2", Formats::all(format("ternary-g64"))),
        ("qwen3", Formats(None, Some(format("int4-g32")), None)),
        ("lfm2", Formats::all(format("int4-g32"))),
    ] {
        let Some(packed) = Packed::fixture(fixture, formats) else { return };
        let options = Options { tq1: true, ..Options::default() };
        let (directory, file) =
            (Model::open(&packed.packed).unwrap(), packed.export("out", &options).unwrap());
        let model = Model::open(&file).unwrap();
        assert!(logits(&model.decoder) == logits(&directory.decoder), "{fixture}");
        let text = "It's  spaced\n\n\tand naïve café ☕ 日本 <|im_end|>";
        let ids = |model: &Model| model.tokenizer().unwrap().encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(ids(&model), ids(&directory), "{fixture}");
        assert!(model.size.bits_per_weight > 1.6 && model.size.file_bytes > 0);
        // The directory that was exported is the model in it.
        let folder = Model::open(file.parent().unwrap()).unwrap();
        assert_eq!(folder.origin, file);
    }
}

#[test]
fn blocks_of_our_formats_stay_packed_and_others_become_floats() {
    let Some(path) = shared("reference-exports/llama_ternary.tq1_0.gguf") else { return };
    let model = GgufModel::open(&path).unwrap();
    let storage = |name: &str| {
        let param: Param =
            params(&model.config).into_iter().find(|param| param.name.ends_with(name)).unwrap();
        model.stored(&param).unwrap().storage
    };
    assert_eq!(storage("down_proj.weight"), Storage::Packed(Format::TernaryG256));
    assert_eq!(storage("q_proj.weight"), Storage::Packed(Format::TernaryG256));
    // Q6_K.
    assert_eq!(storage("embed_tokens.weight"), Storage::Float(qat_quant::kernels::FloatType::F32));
}

/// Files of llama.cpp's quantizer hold the weights of the fixtures, in our order of rows, up to a step of their grid.
#[test]
fn files_of_llama_cpp_have_the_weights_of_their_models() {
    for (file, fixture) in [
        ("llama_tied.q4_0", "llama_tied"),
        ("llama_untied.q4_0", "llama_untied"),
        ("qwen2.q4_0", "qwen2"),
        ("qwen3.q4_0", "qwen3"),
        ("lfm2.q4_0", "lfm2"),
        ("llama_ternary.q2_0", "llama_ternary"),
        ("llama_ternary.tq1_0", "llama_ternary"),
    ] {
        let Some(path) = shared(&format!("reference-exports/{file}.gguf")) else { return };
        let hf = HfDir::open(&shared("fixtures").unwrap().join(fixture)).unwrap();
        let model = FloatModel::open(&path).unwrap();
        for param in params(&model.config) {
            let (found, want) =
                (model.values(&param).unwrap(), hf.tensors.f32(&param.name, &param.shape).unwrap());
            let energy =
                |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x * x)).sum::<f64>();
            let error =
                energy(&mut found.iter().zip(&want).map(|(a, b)| a - b)) / energy(&mut want.iter().copied());
            // Round to nearest on 16 levels over ±3σ leaves about 1 % of the energy; rows in a wrong order leave about 200 %.
            assert!(error < 0.02, "{file}: {}: {error}", param.name);
        }
    }
}

#[test]
fn codes_that_only_ggml_has_are_read_as_floats() {
    let Some(path) = shared("reference-exports/llama_ternary.q2_0.gguf") else { return };
    let folder = tempfile::tempdir().unwrap();
    let read = Gguf::open(&path).unwrap();
    let name = "blk.0.ffn_down.weight";
    let mut bytes = read.tensor(name).unwrap().1.to_vec();
    bytes[2] |= 3;
    let changed = folder.path().join("changed.gguf");
    rewrite(&read, &changed, |_| {}, &[(name, Kind::Q2_0, bytes.clone())]);
    let model = GgufModel::open(&changed).unwrap();
    let param =
        params(&model.config).into_iter().find(|param| param.name.ends_with("down_proj.weight")).unwrap();
    assert!(matches!(model.stored(&param).unwrap().storage, Storage::Float(_)));
    let scale = half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    assert_eq!(model.values(&param).unwrap()[0], 2.0 * scale);

    // A scale that is not finite is nobody's.
    bytes[..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    rewrite(&read, &changed, |_| {}, &[(name, Kind::Q2_0, bytes)]);
    let error = GgufModel::open(&changed).unwrap().stored(&param).unwrap_err().to_string();
    assert!(error.contains("every weight must be finite"), "{error}");
}

#[test]
fn what_the_decoder_would_compute_differently_is_refused_by_its_key() {
    let Some(path) = shared("reference-exports/llama_tied.q4_0.gguf") else { return };
    let folder = tempfile::tempdir().unwrap();
    let read = Gguf::open(&path).unwrap();
    let changed = folder.path().join("changed.gguf");
    let refused = |key: &str, value: Value, wanted: &str| {
        rewrite(&read, &changed, |metadata| metadata.set(key, value.clone()), &[]);
        let error = GgufModel::open(&changed).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(
        "general.architecture",
        Value::from("mamba"),
        "general.architecture: found String(\"mamba\"); want one of llama, qwen2, qwen3, lfm2",
    );
    refused("llama.expert_count", Value::U32(8), "llama.expert_count");
    refused("split.count", Value::U16(2), "join them with llama-gguf-split --merge");
    refused("llama.rope.dimension_count", Value::U32(16), "want 32, the width of a head");
    refused("llama.rope.scaling.type", Value::from("yarn"), "want \"none\" or \"linear\"");
    refused(
        "llama.attention.head_count",
        Value::U32(8),
        "blk.0.attn_q.weight: want [256, 128], found [128, 128]",
    );
    refused("llama.attention.head_count_kv", Value::U32(3), "does not divide");
    refused("llama.block_count", Value::U32(3), "blk.2.attn_norm.weight: missing");
    refused("llama.block_count", Value::U32(u32::MAX), "num_hidden_layers");
    refused(
        "llama.embedding_length",
        Value::from("x"),
        "llama.embedding_length: found String(\"x\"); want a whole number",
    );
    refused("llama.feed_forward_length", Value::U32(0), "intermediate_size");
    refused(
        "tokenizer.ggml.eos_token_id",
        Value::U32(512),
        "names 512 as a special token; the vocabulary has 512",
    );
}

/// LM Studio #2289: ids of the tokenizer that the model doesn't have, and lists that contradict each other.
#[test]
fn tokenizers_that_contradict_themselves_are_refused() {
    let Some(path) = shared("reference-exports/llama_tied.q4_0.gguf") else { return };
    let folder = tempfile::tempdir().unwrap();
    let read = Gguf::open(&path).unwrap();
    let changed = folder.path().join("changed.gguf");
    let texts =
        |values: &[&str]| Value::Array(Array::String(values.iter().map(|text| (*text).to_owned()).collect()));
    let refused = |key: &str, value: Value, wanted: &str| {
        rewrite(&read, &changed, |metadata| metadata.set(key, value.clone()), &[]);
        let error = GgufModel::open(&changed).unwrap().tokenizer().unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    let many: Vec<String> = (0..513).map(|i| format!("t{i}")).collect();
    refused(
        "tokenizer.ggml.tokens",
        Value::Array(Array::String(many)),
        "at most 512, the rows of the embedding",
    );
    refused("tokenizer.ggml.tokens", texts(&["a", "a"]), "an array of 2 I32");
    refused("tokenizer.ggml.tokens", texts(&["a".repeat(4097).as_str()]), "a token has 4097 bytes");
    refused(
        "tokenizer.ggml.token_type",
        Value::Array(Array::I32(vec![1])),
        "an array of 512 I32, one for each token",
    );
    refused("tokenizer.ggml.merges", texts(&["nopair"]), "\"nopair\" is no pair");
    refused("tokenizer.ggml.merges", texts(&["un known"]), "not a tokenizer.json of the tokenizers library");
    refused("tokenizer.ggml.pre", Value::from("default"), "the pre-tokenizer \"default\" is not known");
    refused("tokenizer.ggml.model", Value::from("rwkv"), "put the model's tokenizer.json beside the file");
    let beside = std::fs::read(shared("fixtures/llama_tied/tokenizer.json").unwrap()).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), beside).unwrap();
    assert_eq!(GgufModel::open(&changed).unwrap().tokenizer().unwrap().get_vocab_size(true), 512);
}

#[test]
fn a_matrix_is_taken_over_by_the_runtime_that_opens_the_file() {
    let Some(path) = shared("reference-exports/qwen3.q4_0.gguf") else { return };
    let mut model = Model::open(&path).unwrap();
    let before = logits(&model.decoder);
    model
        .decoder
        .matrices_mut()
        .for_each(|matrix| matrix.set_activations(crate::files::Activations::Int8Token));
    // Packed matrices round their inputs when told to; floats would not.
    assert!(logits(&model.decoder) != before);
}

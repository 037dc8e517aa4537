//! MLX: the layout that its own converter writes, and every format that its grid contains.

use super::*;
use crate::Runtime as _;
use crate::cpu::{Cpu, Model};
use crate::files::{INDEX_FILE, MODEL_FILE, MlxDir, TensorFiles};
use crate::shared::shared;

const SPELLINGS: [&str; 6] =
    ["int4-g32", "int8-g32", "ternary-g64", "ternary-g256", "ternary-tensor", "int3-affine-g64"];

fn f32() -> Options {
    Options { dtype: Some(FloatType::F32), ..Options::default() }
}

#[test]
fn every_format_is_held_to_the_bit() {
    let config = tiny("llama", true);
    for format in Format::all() {
        let place = Place::random(&config, |_| Some(format));
        let out = place.export(Target::Mlx, &Options::default()).unwrap();
        let bits = read_json(&out, "config.json")["quantization"]["bits"].as_u64().unwrap();
        let (lo, hi) = format.levels();
        assert!(1 << bits > hi - lo, "{format}: {bits} bits");
        let wants = if format.to_string().ends_with("-bf16") { "bfloat16" } else { "float16" };
        assert_eq!(read_json(&out, "config.json")["torch_dtype"], wants, "{format}");
    }
}

#[test]
fn a_mixed_model_has_the_commonest_grid_as_default_and_says_where_it_differs() {
    let choose = |param: &Param| match (param.role, &*param.name) {
        (Role::Embedding, _) => Some(format("int8-g32")),
        (Role::Head, _) => None,
        (_, "model.layers.1.mlp.up_proj.weight") => Some(format("ternary-g64")),
        _ => Some(format("int4-g32")),
    };
    let place = Place::random(&tiny("qwen3", false), choose);
    let out = place.export(Target::Mlx, &f32()).unwrap();
    let config = read_json(&out, "config.json");
    let want = json!({
        "group_size": 32, "bits": 4, "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8},
        "model.layers.1.mlp.up_proj": {"group_size": 64, "bits": 2},
        "lm_head": false,
    });
    assert_eq!(config["quantization"], want);
    assert_eq!(config["quantization_config"], want);
    assert_eq!(config["torch_dtype"], "float32");
    let tensors = TensorFiles::open(&out).unwrap();
    assert!(tensors.contains("lm_head.weight") && !tensors.contains("lm_head.scales"));
    assert_eq!(tensors.info("model.embed_tokens.weight").unwrap().shape, [96, 64]);
    assert_eq!(tensors.info("model.embed_tokens.scales").unwrap().dtype, safetensors::Dtype::F32);
}

#[test]
fn scales_of_both_two_byte_types_go_where_all_are_exact() {
    let choose = |param: &Param| {
        Some(format(if param.role == Role::Embedding { "int4-affine-g64" } else { "int4-affine-g64-bf16" }))
    };
    let config = tiny("llama", true);
    // A bf16 number within the range of f16 is one of its numbers, too.
    let place = Place::random(&config, choose);
    let out = place.export(Target::Mlx, &Options::default()).unwrap();
    assert_eq!(read_json(&out, "config.json")["torch_dtype"], "float16");
    let small = |param: &Param| {
        let size = if param.role == Role::Projection { 1e-9 } else { 1.0 };
        (0..param.shape.iter().product()).map(|i: usize| size * (i * i % 1013) as f32).collect()
    };
    let place = Place::packed(&config, &[], choose, small);
    let refusal = place.export(Target::Mlx, &Options::default()).unwrap_err();
    assert!(refusal.starts_with("model.embed_tokens.weight: its scale or bias "), "{refusal}");
    assert!(refusal.contains("is no number of BF16") && refusal.contains("--dtype f32"), "{refusal}");
    place.export(Target::Mlx, &f32()).unwrap();
}

#[test]
fn a_bias_beyond_f16_goes_to_bf16_or_is_refused() {
    let config = tiny("llama", true);
    // Scales of 127·600/127: the bias is −76,800, an odd multiple of no more than 8 bits.
    let large = |param: &Param| {
        vec![if param.shape.len() == 2 { 127.0 * 600.0 } else { 1.0 }; param.shape.iter().product()]
    };
    let place = Place::packed(&config, &[], |_| Some(format("int8-g32")), large);
    let out = place.export(Target::Mlx, &Options::default()).unwrap();
    assert_eq!(read_json(&out, "config.json")["torch_dtype"], "bfloat16");
    let f16 = Options { dtype: Some(FloatType::F16), ..Options::default() };
    let refusal = place.export(Target::Mlx, &f16).unwrap_err();
    assert!(refusal.contains("its scale or bias -76800 is no number of F16"), "{refusal}");
}

#[test]
fn rows_that_no_group_divides_are_refused() {
    let mut config = tiny("llama", true);
    config["intermediate_size"] = json!(48);
    let choose = |param: &Param| {
        Some(format(if param.role == Role::Embedding { "int8-g32" } else { "ternary-tensor" }))
    };
    let place = Place::random(&config, choose);
    let refusal = place.export(Target::Mlx, &Options::default()).unwrap_err();
    assert!(
        refusal.starts_with("model.layers.0.mlp.down_proj.weight: mlx can't hold the grid of ternary-tensor"),
        "{refusal}"
    );
}

#[test]
fn a_changed_word_scale_or_bias_is_noticed() {
    let place = Place::random(&tiny("llama", true), |_| Some(format("int3-affine-g32")));
    let out = place.export(Target::Mlx, &Options::default()).unwrap();
    let path = out.join(MODEL_FILE);
    let whole = std::fs::read(&path).unwrap();
    for part in ["weight", "scales", "biases"] {
        let name = format!("model.layers.1.self_attn.k_proj.{part}");
        let mut damaged = whole.clone();
        let at = TensorFiles::open(&out).unwrap().bytes(&name).unwrap().offset();
        damaged[at + 3] ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &damaged).unwrap();
        let exporter = Target::Mlx.exporter();
        let read = exporter.read_back(&place.source, &out).unwrap();
        let found = verify(&place.source, &*read).unwrap_err().to_string();
        assert!(
            found.starts_with("model.layers.1.self_attn.k_proj.weight: reads back differently"),
            "{found}"
        );
    }
}

/// Names, types and shapes of all tensors of a file.
fn listing(dir: &Path) -> Vec<(String, String, Vec<usize>)> {
    let tensors = TensorFiles::open(dir).unwrap();
    let entry = |name: &str| {
        let info = tensors.info(name).unwrap();
        (name.to_owned(), info.dtype.to_string(), info.shape.clone())
    };
    tensors.names().map(entry).collect()
}

#[test]
fn an_export_has_the_structure_of_what_mlx_writes() {
    for (export, origin, spelling) in [
        ("mlx-llama_tied-q2g64", "llama_tied", "int2-affine-g64-bf16"),
        ("mlx-llama_tied-q3g64", "llama_tied", "int3-affine-g64-bf16"),
        ("mlx-llama_tied-q4g32", "llama_tied", "int4-affine-g32-bf16"),
        ("mlx-llama_tied-q4g64", "llama_tied", "int4-affine-g64-bf16"),
        ("mlx-qwen3-q4g64", "qwen3", "int4-affine-g64-bf16"),
    ] {
        let found = (shared(&format!("reference-exports/{export}")), shared(&format!("fixtures/{origin}")));
        let (Some(reference), Some(origin)) = found else { return };
        let place = Place::rounded(&origin, |_| Some(format(spelling)));
        let out = place.export(Target::Mlx, &Options::default()).unwrap();
        assert_eq!(listing(&out), listing(&reference), "{export}");
        assert_eq!(read_json(&out, INDEX_FILE), read_json(&reference, INDEX_FILE), "{export}");
        let (ours, theirs) = (read_json(&out, "config.json"), read_json(&reference, "config.json"));
        for key in ["quantization", "quantization_config", "torch_dtype", "model_type", "tie_word_embeddings"]
        {
            assert_eq!(ours[key], theirs[key], "{export}: {key}");
        }
        let (ours, theirs) = (TensorFiles::open(&out).unwrap(), TensorFiles::open(&reference).unwrap());
        for name in theirs.names().filter(|name| !name.ends_with(".weight")) {
            assert_eq!(*ours.bytes(name).unwrap(), *theirs.bytes(name).unwrap(), "{export}: {name}");
        }
    }
}

#[test]
fn directories_of_mlx_s_own_converter_are_read() {
    for export in ["mlx-llama_tied-q3g64", "mlx-qwen3-q4g64", "mlx-lfm2-q4g64"] {
        let Some(reference) = shared(&format!("reference-exports/{export}")) else { return };
        // Vectors too, of which MLX keeps those of convolutions in another shape.
        assert!(crate::cpu::Model::open(&reference).is_ok(), "{export}");
        let dir = MlxDir::open(&reference).unwrap();
        let config = Config::from_json(&dir.config, &dir.config_path()).unwrap();
        for param in params(&config).iter().filter(|param| param.shape.len() == 2) {
            let matrix = dir.matrix(&param.name, [param.shape[0], param.shape[1]]).unwrap().unwrap();
            let stored = matrix.stored(&param.name).unwrap();
            let Storage::Packed(format) = stored.storage else { panic!("{}", stored.storage) };
            let view = qat_quant::PackedRef::new(
                &param.name,
                format,
                param.shape[0],
                param.shape[1],
                &stored.bytes,
                None,
            );
            assert_eq!(view.unwrap().decode(), matrix.values(), "{}", param.name);
        }
    }
}

#[test]
fn the_spellings_that_mlx_can_hold_are_listed_in_a_refusal() {
    let param = Param { name: "w.weight".into(), shape: vec![8, 256], role: Role::Projection };
    let formats = Target::Mlx.formats(&param);
    for spelling in SPELLINGS {
        assert!(formats.contains(&format(spelling)), "{spelling}");
    }
}

#[test]
fn an_mlx_directory_runs_like_the_packed_model_it_was_made_of() {
    let choose = |param: &Param| match param.role {
        Role::Embedding => None,
        _ if param.name.ends_with("down_proj.weight") => Some(format("ternary-tensor")),
        _ => Some(format("int4-affine-g64")),
    };
    let place = Place::random(&tiny("qwen3", true), choose);
    let out = place.export(Target::Mlx, &f32()).unwrap();
    let logits = |dir: &Path| {
        let mut model = Model::open(dir).unwrap();
        model.set_activations(Activations::Float);
        let mut sequence = Cpu.sequence(&model.decoder, 16, Cpu.exact_kv()).unwrap();
        sequence.prefill(&[1, 5, 2, 77, 30]).unwrap().to_vec()
    };
    let (packed, mlx) = (logits(&place.source.dir.path), logits(&out));
    let scale = packed.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    for (a, b) in packed.iter().zip(&mlx) {
        // The same numbers, summed in another order: a ternary matrix runs there as an affine one.
        assert!((a - b).abs() <= 1e-4 * scale, "{a} {b}");
    }
}

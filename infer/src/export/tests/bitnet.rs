//! BitNet: two bits a weight as transformers packs them, and what its layers can't do.

use super::*;
use crate::files::{MODEL_FILE, TensorFiles};
use crate::shared::shared;

fn ternary(param: &Param) -> Option<Format> {
    Some(format(if param.role == Role::Projection { "ternary-tensor" } else { "int8-g32" }))
}

/// A tiny model all of whose layers are ternary, which was trained or rounded, with rounded inputs or float ones.
fn place(model_type: &str, method: &str, choose: fn(&Param) -> Option<Format>) -> Place {
    let mut place = Place::random(&tiny(model_type, false), choose);
    place.source.dir.manifest.source = json!({"method": method});
    let path = place.source.dir.path.join("manifest.json");
    std::fs::write(&path, place.source.dir.manifest.to_json().unwrap()).unwrap();
    place
}

fn quantization(dir: &Path) -> Value {
    read_json(dir, "config.json")["quantization_config"].clone()
}

#[test]
fn four_rows_share_a_byte_and_tables_are_floats() {
    let place = place("llama", "trained", ternary);
    let out = place.export(Target::BitNet, &Options::default()).unwrap();
    assert_eq!(
        quantization(&out),
        json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline", "modules_to_not_convert": ["lm_head"]})
    );
    assert_eq!(read_json(&out, "config.json")["torch_dtype"], "float32");
    let tensors = TensorFiles::open(&out).unwrap();
    let name = "model.layers.1.self_attn.k_proj";
    let bytes = tensors.bytes(&format!("{name}.weight")).unwrap();
    assert_eq!(tensors.info(&format!("{name}.weight")).unwrap().shape, [32, 256]);
    let scale = tensors.info(&format!("{name}.weight_scale")).unwrap();
    assert_eq!((scale.dtype, &*scale.shape), (safetensors::Dtype::BF16, &[1][..]));
    let param = Param { name: format!("{name}.weight"), shape: vec![128, 256], role: Role::Projection };
    let tensor = place.source.tensor(&param).unwrap();
    let matrix = tensor.packed().unwrap().unwrap();
    let mut codes = vec![0; 256];
    for row in [0, 31, 32, 70, 127] {
        matrix.codes_row(row, &mut codes);
        for (column, code) in codes.iter().enumerate() {
            let byte = bytes[row % 32 * 256 + column];
            assert_eq!(i16::from(byte >> (2 * (row / 32)) & 3) - 1, *code, "[{row}, {column}]");
        }
    }
    assert_eq!(tensors.info("model.embed_tokens.weight").unwrap().dtype, safetensors::Dtype::F32);
    assert_eq!(tensors.info("lm_head.weight").unwrap().dtype, safetensors::Dtype::F32);
}

#[test]
fn projections_with_biases_take_the_class_that_adds_them_last() {
    let place = place("qwen2", "rounded", ternary);
    let out = place.export(Target::BitNet, &Options::default()).unwrap();
    assert_eq!(quantization(&out)["linear_class"], "bitlinear");
    let tensors = TensorFiles::open(&out).unwrap();
    let inverse = tensors.f32("model.layers.0.mlp.up_proj.weight_scale", &[1]).unwrap()[0];
    let param = Param {
        name: "model.layers.0.mlp.up_proj.weight".into(),
        shape: vec![256, 256],
        role: Role::Projection,
    };
    let scale = place.source.tensor(&param).unwrap().packed().unwrap().unwrap().tensor_scale().unwrap();
    assert_eq!(inverse, 1.0 / scale);
}

#[test]
fn float_projections_are_listed_as_such() {
    let choose = |param: &Param| match &*param.name {
        "model.layers.0.mlp.up_proj.weight" => None,
        _ => ternary(param),
    };
    let place = place("llama", "trained", choose);
    let out = place.export(Target::BitNet, &Options::default()).unwrap();
    assert_eq!(
        quantization(&out)["modules_to_not_convert"],
        json!(["lm_head", "model.layers.0.mlp.up_proj"])
    );
}

#[test]
fn what_the_layers_can_t_do_is_refused() {
    let refusal = |place: &Place, options: &Options| place.export(Target::BitNet, options).unwrap_err();
    let other = |_: &Param| Some(format("ternary-g64"));
    let found = refusal(&place("llama", "rounded", other), &Options::default());
    assert!(
        found.contains("bitnet can't hold the grid of ternary-g64") && found.contains("ternary-tensor"),
        "{found}"
    );
    let half = Options { dtype: Some(FloatType::BF16), ..Options::default() };
    let found = refusal(&place("llama", "rounded", ternary), &half);
    assert!(found.starts_with("model.embed_tokens.weight: is a quantized table"), "{found}");
    let mut config = tiny("llama", true);
    config["intermediate_size"] = json!(258);
    let choose = |param: &Param| ternary(param).filter(|_| !param.name.contains("down_proj"));
    let found = refusal(&Place::random(&config, choose), &Options::default());
    assert!(found.starts_with("model.layers.0.mlp.gate_proj.weight: has 258 rows"), "{found}");
}

#[test]
fn a_model_trained_with_float_inputs_is_refused_and_a_rounded_one_is_not() {
    for (method, says) in [("trained", Some("was trained with float inputs")), ("rounded", None)] {
        let mut place = place("llama", method, ternary);
        let manifest = &mut place.source.dir.manifest;
        for entry in manifest.tensors.values_mut() {
            entry.activations = Activations::Float;
        }
        let path = place.source.dir.path.join("manifest.json");
        std::fs::write(&path, manifest.to_json().unwrap()).unwrap();
        match (place.export(Target::BitNet, &Options::default()), says) {
            (Ok(_), None) => {}
            (Err(found), Some(says)) => {
                assert!(found.contains(says) && found.contains("int8-token"), "{found}")
            }
            (found, _) => panic!("{method}: {found:?}"),
        }
    }
}

#[test]
fn a_changed_byte_or_scale_is_noticed() {
    let place = place("qwen3", "trained", ternary);
    let out = place.export(Target::BitNet, &Options::default()).unwrap();
    let path = out.join(MODEL_FILE);
    let whole = std::fs::read(&path).unwrap();
    for part in ["weight", "weight_scale"] {
        let at = TensorFiles::open(&out)
            .unwrap()
            .bytes(&format!("model.layers.0.mlp.up_proj.{part}"))
            .unwrap()
            .offset();
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &damaged).unwrap();
        let read = Target::BitNet.exporter().read_back(&place.source, &out).unwrap();
        let found = verify(&place.source, &*read).unwrap_err().to_string();
        assert!(found.starts_with("model.layers.0.mlp.up_proj.weight: reads back differently"), "{found}");
    }
}

#[test]
fn the_packing_is_that_of_a_published_layout() {
    // Made by an independent packer: the same model's bytes, its scale as a divisor.
    let Some(fixture) = shared("fixtures/llama_bitlinear") else { return };
    let theirs = TensorFiles::open(&fixture).unwrap();
    let mut config = read_json(&fixture, "config.json");
    config.as_object_mut().unwrap().shift_remove("quantization_config");
    let values = |param: &Param| {
        if param.role != Role::Projection {
            return theirs.f32(&param.name, &param.shape).unwrap();
        }
        let (rows, cols) = (param.shape[0], param.shape[1]);
        let bytes = theirs.bytes(&param.name).unwrap();
        let divisor = theirs.f32(&param.name.replace(".weight", ".weight_scale"), &[1]).unwrap()[0];
        let scale = half::bf16::from_f32(1.0 / divisor).to_f32();
        let code = |at: usize| {
            let (row, column) = (at / cols, at % cols);
            f32::from(bytes[row % (rows / 4) * cols + column] >> (2 * (row / (rows / 4))) & 3) - 1.0
        };
        (0..rows * cols).map(|at| scale * code(at)).collect()
    };
    let choose = |param: &Param| (param.role == Role::Projection).then(|| format("ternary-tensor"));
    let place = Place::with_scales(&config, choose, values, |values| {
        let scale = values.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
        Scales { scale: vec![scale], bias: Vec::new() }
    });
    let out = place.export(Target::BitNet, &Options::default()).unwrap();
    let ours = TensorFiles::open(&out).unwrap();
    for param in place.source.params().iter().filter(|param| param.role == Role::Projection) {
        assert_eq!(*ours.bytes(&param.name).unwrap(), *theirs.bytes(&param.name).unwrap(), "{}", param.name);
    }
}

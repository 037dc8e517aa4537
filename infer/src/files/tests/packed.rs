//! Packed directories: written, read back, and every way in which one may disagree with its manifest.

use std::fs;
use std::path::Path;

use qat_quant::kernels::FloatType;
use qat_quant::{Format, Packed, PackedRef, ScaleRule, Scales, fake_quant, pack};
use serde_json::{Value, json};

use super::super::packed::scale_name;
use super::*;

/// A width that every format holds.
const SHAPE: [usize; 2] = [4, 256];

fn weights(seed: usize) -> Vec<f32> {
    // A Weyl sequence: spread evenly over ±0.1, no two alike.
    (0..SHAPE[0] * SHAPE[1]).map(|i| ((i + seed) as f32 * 0.618_034).fract() * 0.2 - 0.1).collect()
}

fn packed(name: &str, format: Format, weights: &[f32]) -> Packed {
    let scales = Scales::choose(format, ScaleRule::Absmax, weights, SHAPE[0], SHAPE[1]);
    pack(name, format, weights, SHAPE[0], SHAPE[1], &scales).unwrap()
}

/// A packed model of one matrix in `format`, one norm and one float matrix.
fn small(format: Format) -> (TempDir, PathBuf) {
    let (dir, companions, target) = place();
    let mut writer =
        PackedWriter::create(&target, &json!({"model_type": "llama"}), &companions, json!({"seed": 7}))
            .unwrap();
    writer
        .packed("up.weight", packed("up.weight", format, &weights(0)).as_ref(), Activations::Int8Token)
        .unwrap();
    writer.float("norm.weight", FloatType::F32, &[256], &[1.0; 256]).unwrap();
    writer.float("down.weight", FloatType::BF16, &[1, 2], &[0.5, -0.25]).unwrap();
    writer.finish().unwrap();
    (dir, target)
}

/// Changes `manifest.json` behind our back.
fn edit_manifest(target: &Path, edit: impl FnOnce(&mut Value)) {
    let path = target.join(MANIFEST_FILE);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// Changes the bytes of a tensor, and its checksum with them if `forged`.
fn edit_tensor(target: &Path, name: &str, forged: bool, edit: impl FnOnce(&mut [u8])) {
    let path = target.join(MODEL_FILE);
    let mut file = fs::read(&path).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    let (start, end) = metadata.info(name).unwrap().data_offsets;
    let bytes = &mut file[8 + header + start..8 + header + end];
    edit(bytes);
    let sha256 = sha256_hex(&[bytes]);
    fs::write(path, file).unwrap();
    if forged {
        edit_manifest(target, |json| json["tensors"][name]["sha256"] = sha256.into());
    }
}

#[test]
fn every_format_comes_back_to_the_bit() {
    let (dir, companions, target) = place();
    let config = json!({"model_type": "llama", "rms_norm_eps": 1e-5});
    let mut writer = PackedWriter::create(&target, &config, &companions, json!("test")).unwrap();
    let matrices: Vec<(String, Vec<f32>, Packed)> = Format::all()
        .into_iter()
        .enumerate()
        .map(|(i, format)| {
            let name = format!("{format}.weight");
            let packed = packed(&name, format, &weights(i));
            (name, weights(i), packed)
        })
        .collect();
    for (name, _, packed) in &matrices {
        writer.packed(name, packed.as_ref(), Activations::Float).unwrap();
    }
    writer.float("norm", FloatType::F32, &[3], &[0.1, 0.2, 0.3]).unwrap();
    let written = writer.finish().unwrap();

    let read = PackedDir::open(&target).unwrap();
    assert_eq!(read.manifest, written);
    assert_eq!(read.config, config);
    assert_eq!(read.vector("norm", &[3]).unwrap(), [0.1, 0.2, 0.3]);
    assert_eq!(fs::read(read.tokenizer()).unwrap(), fs::read(&companions[0]).unwrap());
    assert_eq!(super::companions(&read.path).unwrap(), [read.tokenizer()]);
    for (name, weights, packed) in matrices {
        let stored = read.matrix(&name, SHAPE).unwrap();
        assert_eq!(stored.storage, Storage::Packed(packed.format));
        assert_eq!(*stored.bytes, packed.blocks, "{name}");
        assert_eq!(stored.tensor_scale, packed.tensor_scale);
        let [rows, cols] = SHAPE;
        let view =
            PackedRef::new(&name, packed.format, rows, cols, &stored.bytes, stored.tensor_scale).unwrap();
        let mut want = vec![0.0; weights.len()];
        let scales = Scales::choose(packed.format, ScaleRule::Absmax, &weights, rows, cols);
        fake_quant(packed.format, &weights, rows, cols, &scales, &mut want);
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&view.decode()), bits(&want), "{name}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "tokenizer and packed model, nothing aside");
}

#[test]
fn the_manifest_is_as_documented() {
    let (_dir, target) = small(Format::TernaryTensor);
    let blank = |json: &mut Value| json["sha256"] = "…".into();
    let mut json: Value = serde_json::from_slice(&fs::read(target.join(MANIFEST_FILE)).unwrap()).unwrap();
    json["tensors"].as_object_mut().unwrap().values_mut().for_each(blank);
    json["sha256"].as_object_mut().unwrap().values_mut().for_each(|v| *v = "…".into());
    // 256 codes of 2 bits x 4 rows and a BF16 scale, 256 F32, 2 BF16: 2048 + 16 + 8192 + 32 bits in 1282 numbers.
    let want = json!({
        "qat": 1,
        "tensors": {
            "down.weight":
                {"format": "float", "dtype": "BF16", "shape": [1, 2], "activations": "float", "sha256": "…"},
            "norm.weight":
                {"format": "float", "dtype": "F32", "shape": [256], "activations": "float", "sha256": "…"},
            "up.weight":
                {"format": "ternary-tensor", "shape": [4, 256], "activations": "int8-token", "sha256": "…"},
        },
        "bits_per_weight": 10288.0 / 1282.0,
        "file_bytes": fs::metadata(target.join(MODEL_FILE)).unwrap().len(),
        "source": {"seed": 7},
        "sha256": {"config.json": "…", "tokenizer.json": "…"},
    });
    assert_eq!(json, want);
    assert_eq!(scale_name("up.weight"), "up.weight_scale");
    let read = PackedDir::open(&target).unwrap();
    assert_eq!(read.matrix("up.weight", SHAPE).unwrap().activations, Activations::Int8Token);
    assert_eq!(read.manifest.tensors["down.weight"].storage.to_string(), "float BF16");
}

#[test]
fn a_request_that_the_model_does_not_meet_is_refused() {
    let (dir, target) = small(Format::Int4G32);
    let read = PackedDir::open(&target).unwrap();
    assert!(read.contains("up.weight") && !read.contains("gone"));
    assert_eq!(
        message(&dir, read.matrix("gone", SHAPE)),
        "gone: missing from packed/manifest.json; does config.json belong to it?"
    );
    assert_eq!(
        message(&dir, read.matrix("up.weight", [256, 4])),
        "up.weight: want [256, 4], found [4, 256]; does config.json belong to it? (in packed/model.safetensors)"
    );
    assert!(read.vector("norm.weight", &[255]).is_err());
}

#[test]
fn a_directory_without_a_manifest_is_no_packed_model() {
    let dir = TempDir::new().unwrap();
    assert_eq!(
        message(&dir, PackedDir::open(dir.path())),
        "DIR: has no manifest.json; want a directory written by `qat export --format qat`"
    );
}

/// Opens a directory and reads all of it.
fn checked(target: &Path) -> Result<(), Error> {
    PackedDir::open(target)?.verify()
}

#[test]
fn what_is_handed_out_was_checked_and_the_rest_was_not_read() {
    let (dir, target) = small(Format::Int4G32);
    edit_tensor(&target, "up.weight", false, |bytes| bytes[0] ^= 1);
    let read = PackedDir::open(&target).unwrap();
    let text = message(&dir, read.matrix("up.weight", [4, 256]));
    assert!(text.starts_with("packed/model.safetensors: up.weight: its SHA-256 is "), "{text}");
    assert!(read.vector("norm.weight", &[256]).is_ok());
    edit_tensor(&target, "norm.weight", false, |bytes| bytes[0] ^= 1);
    let text = message(&dir, PackedDir::open(&target).unwrap().vector("norm.weight", &[256]));
    assert!(text.starts_with("packed/model.safetensors: norm.weight: its SHA-256 is "), "{text}");
}

#[test]
fn every_flipped_bit_of_the_tensors_is_noticed() {
    let (dir, target) = small(Format::TernaryTensor);
    for name in ["up.weight", "up.weight_scale", "norm.weight", "down.weight"] {
        for bit in [0, 7] {
            let flip = |bytes: &mut [u8]| bytes[bytes.len() - 1] ^= 1 << bit;
            edit_tensor(&target, name, false, flip);
            let text = message(&dir, checked(&target));
            let owner = name.trim_end_matches("_scale");
            let found = format!("packed/model.safetensors: {owner}: its SHA-256 is ");
            assert!(text.starts_with(&found), "{text}");
            assert!(text.ends_with("; it was changed or damaged, export the model again"), "{text}");
            edit_tensor(&target, name, false, flip);
        }
    }
    checked(&target).unwrap();
}

#[test]
fn illegal_codes_are_refused_even_with_the_right_checksum() {
    let (dir, target) = small(Format::TernaryG64);
    // The second byte of codes in the third row: 0b11 is no ternary code.
    edit_tensor(&target, "up.weight", true, |bytes| bytes[2 * 72 + 3] = 0b11);
    assert_eq!(
        message(&dir, checked(&target)),
        "packed/model.safetensors: up.weight: row 2, block 0: a code is outside -1..=1 of ternary-g64; \
         the file is damaged; export the model again"
    );
}

#[test]
fn scales_that_are_not_finite_are_refused_even_with_the_right_checksum() {
    let (dir, target) = small(Format::Int4G32);
    // The scale of the second block of the first row, to the infinity of f16.
    edit_tensor(&target, "up.weight", true, |bytes| bytes[18..20].copy_from_slice(&[0x00, 0x7c]));
    assert_eq!(
        message(&dir, checked(&target)),
        "packed/model.safetensors: up.weight: row 0, block 1: want a finite scale and bias, found inf and 0; \
         the file is damaged; export the model again"
    );
    let (dir, target) = small(Format::TernaryTensor);
    edit_tensor(&target, "up.weight_scale", false, |bytes| bytes.copy_from_slice(&[0x80, 0x7f]));
    assert_eq!(
        message(&dir, checked(&target)),
        "up.weight_scale: element 0 is inf; every weight must be finite (in packed/model.safetensors)"
    );
    let (dir, target) = small(Format::Int4G32);
    edit_tensor(&target, "down.weight", true, |bytes| bytes.copy_from_slice(&[0, 0, 0xc0, 0x7f]));
    assert_eq!(
        message(&dir, checked(&target)),
        "down.weight: element 1 is NaN; every weight must be finite (in packed/model.safetensors)"
    );
}

/// The message after an edit of the manifest of a small int4-g32 model.
fn with_manifest(edit: impl FnOnce(&mut Value)) -> String {
    let (dir, target) = small(Format::Int4G32);
    edit_manifest(&target, edit);
    message(&dir, PackedDir::open(&target))
}

#[test]
fn a_manifest_of_another_version_is_refused() {
    for (version, want) in [
        (json!(2), "has version 2, this qat reads version 1; use a newer qat"),
        (json!(0), "want \"qat\": 1; is it the manifest of a packed model?"),
        (json!(null), "want \"qat\": 1; is it the manifest of a packed model?"),
    ] {
        let text = with_manifest(|json| {
            // A newer layout may have keys that we don't know: the version is looked at first.
            json["new"] = 1.into();
            json["qat"] = version;
        });
        assert_eq!(text, format!("packed/manifest.json: {want}"));
    }
}

#[test]
fn a_manifest_that_is_misspelt_is_refused() {
    let again = "export the model again with this version of qat";
    assert_eq!(
        with_manifest(|json| json["sources"] = 1.into()),
        format!(
            "packed/manifest.json: unknown field `sources`, expected one of `qat`, `tensors`, `bits_per_weight`, \
             `file_bytes`, `source`, `sha256`; {again}"
        )
    );
    assert_eq!(
        with_manifest(|json| json["tensors"]["up.weight"]["activations"] = "int8".into()),
        format!("packed/manifest.json: unknown variant `int8`, expected `float` or `int8-token`; {again}")
    );
    let text = with_manifest(|json| json["tensors"]["up.weight"]["format"] = "int4-g23".into());
    assert!(text.starts_with("packed/manifest.json: up.weight: ") && text.contains("int4-g32"), "{text}");
}

#[test]
fn a_manifest_with_impossible_tensors_is_refused() {
    let refused = |name: &'static str, key: &'static str, value: Value| {
        let text = with_manifest(|json| json["tensors"][name][key] = value);
        text.strip_prefix(&format!("packed/manifest.json: {name}: ")).map_or(text.clone(), str::to_owned)
    };
    let none = |shape: &str| format!("shape {shape} is none that a weight has; export the model again");
    assert_eq!(refused("up.weight", "shape", json!([0, 256])), none("[0, 256]"));
    assert_eq!(
        refused("up.weight", "shape", json!([1_u64 << 40, 1_u64 << 40])),
        none("[1099511627776, 1099511627776]")
    );
    assert_eq!(
        refused("up.weight", "shape", json!([1024])),
        "int4-g32 wants a shape of [rows, cols], found [1024]"
    );
    let text = refused("up.weight", "shape", json!([1, 33]));
    assert!(text.contains("33") && text.contains("32"), "{text}");
    assert_eq!(refused("up.weight", "dtype", json!("F32")), "int4-g32 has no \"dtype\", only float has");
    assert_eq!(
        refused("norm.weight", "dtype", json!("U8")),
        "a float tensor wants \"dtype\" F32, F16 or BF16"
    );
}

#[test]
fn a_manifest_that_disagrees_with_the_file_is_refused() {
    let again = "it was changed or damaged, export the model again";
    assert_eq!(
        with_manifest(|json| json["tensors"]["gone"] = json["tensors"]["norm.weight"].clone()),
        format!("packed/model.safetensors: gone: listed in manifest.json, missing here; {again}")
    );
    assert_eq!(
        with_manifest(|json| {
            json["tensors"].as_object_mut().unwrap().shift_remove("norm.weight");
        }),
        format!("packed/model.safetensors: norm.weight: is not listed in manifest.json; {again}")
    );
    assert_eq!(
        with_manifest(|json| json["tensors"]["up.weight"]["shape"] = json!([8, 256])),
        format!(
            "packed/model.safetensors: up.weight: int4-g32 of shape [8, 256] wants U8 [8, 144], \
             found U8 [4, 144]; {again}"
        )
    );
    assert_eq!(
        with_manifest(|json| json["tensors"]["norm.weight"]["dtype"] = json!("BF16")),
        format!(
            "packed/model.safetensors: norm.weight: float BF16 of shape [256] wants BF16 [256], \
             found F32 [256]; {again}"
        )
    );
    let text = with_manifest(|json| json["bits_per_weight"] = json!(4.5));
    // 4608 bits of int4-g32, 8192 of F32, 32 of BF16 in 1282 numbers.
    let (found, want) = (12832.0 / 1282.0, "packed/manifest.json: says file_bytes ");
    assert!(text.starts_with(want) && text.contains("bits_per_weight 4.5, found "), "{text}");
    assert!(text.ends_with(&format!(" and {found}; export the model again")), "{text}");
}

#[test]
fn a_scale_of_its_own_belongs_to_a_ternary_tensor_only() {
    let (dir, target) = small(Format::TernaryTensor);
    edit_manifest(&target, |json| json["tensors"]["up.weight"]["format"] = "ternary-g64".into());
    assert_eq!(
        message(&dir, PackedDir::open(&target)),
        "packed/model.safetensors: up.weight_scale: is not listed in manifest.json; \
         it was changed or damaged, export the model again"
    );
}

#[test]
fn a_changed_companion_is_refused() {
    for name in [CONFIG_FILE, TOKENIZER_FILE] {
        let (dir, target) = small(Format::Int4G32);
        fs::write(target.join(name), "{}").unwrap();
        let text = message(&dir, PackedDir::open(&target));
        // The SHA-256 of "{}".
        let found = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        let want = format!("packed/{name}: its SHA-256 is {found}, manifest.json says ");
        assert!(text.starts_with(&want) && text.ends_with("export the model again"), "{text}");
        fs::remove_file(target.join(name)).unwrap();
        assert_eq!(
            message(&dir, PackedDir::open(&target)),
            format!("packed/{name}: cannot read: No such file or directory (os error 2)")
        );
    }
    assert_eq!(
        with_manifest(|json| {
            json["sha256"].as_object_mut().unwrap().shift_remove(TOKENIZER_FILE);
        }),
        "packed/manifest.json: lists no checksum of tokenizer.json; export the model again"
    );
    assert_eq!(
        with_manifest(|json| json["sha256"]["../tokenizer.json"] = "00".into()),
        "packed/manifest.json: lists the file \"../tokenizer.json\"; want a plain file name in the same directory"
    );
}

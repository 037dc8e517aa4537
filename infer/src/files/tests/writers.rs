//! The two writers of models: what they refuse, and what they leave when they fail.

use std::fs;

use qat_quant::kernels::FloatType;
use qat_quant::{Format, PackedRef};
use serde_json::{Value, json};

use super::*;
use crate::files::load_tokenizer;

#[test]
fn what_the_disk_gives_back_differently_is_not_committed() {
    let (dir, companions, target) = place();
    let mut writer = PackedWriter::create(&target, &json!({}), &companions, Value::Null).unwrap();
    // Longer than the writer's buffer, so that it is on the disk at once.
    writer.float("big", FloatType::F32, &[600_000], &vec![0.5; 600_000]).unwrap();
    let spool = dir.path().join(".packed.partial/model.safetensors.spool");
    let mut bytes = fs::read(&spool).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(&spool, bytes).unwrap();
    assert_eq!(
        message(&dir, writer.finish()),
        ".packed.partial/model.safetensors: big: reads back differently from what was written; is the disk sound?"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the tokenizer is left");
}

#[test]
fn a_failed_export_leaves_the_old_model() {
    let (dir, companions, target) = place();
    let write = |value: f32| {
        let mut writer = PackedWriter::create(&target, &json!({}), &companions, Value::Null)?;
        writer.float("norm", FloatType::F32, &[1], &[value])?;
        writer.finish()
    };
    write(1.0).unwrap();
    assert_eq!(message(&dir, write(f32::NAN)), "norm: element 0 is NaN; every weight must be finite");
    assert_eq!(PackedDir::open(&target).unwrap().vector("norm", &[1]).unwrap(), [1.0]);
    write(2.0).unwrap();
    assert_eq!(PackedDir::open(&target).unwrap().vector("norm", &[1]).unwrap(), [2.0]);
}

#[test]
fn what_cannot_be_packed_is_refused_before_it_is_written() {
    let (dir, companions, target) = place();
    let mut writer = PackedWriter::create(&target, &json!({}), &companions, Value::Null).unwrap();
    let illegal = PackedRef::new("w", Format::TernaryTensor, 1, 4, &[0b11], Some(1.0)).unwrap();
    assert_eq!(
        message(&dir, writer.packed("w", illegal, Activations::Float)),
        "w: row 0, block 0: a code is outside -1..=1 of ternary-tensor; the file is damaged"
    );
    let fine = PackedRef::new("w", Format::TernaryTensor, 1, 4, &[0], Some(0.1)).unwrap();
    assert_eq!(
        message(&dir, writer.packed("w", fine, Activations::Float)),
        "w: its scale 0.1 is no BF16 number; round it before packing"
    );
    writer.float("w", FloatType::F32, &[1], &[1.0]).unwrap();
    let whole = PackedRef::new("w", Format::TernaryTensor, 1, 4, &[0], Some(0.5)).unwrap();
    assert_eq!(
        message(&dir, writer.packed("w", whole, Activations::Float)),
        "w: is already in .packed.partial/model.safetensors"
    );
}

#[test]
fn a_model_without_a_tokenizer_opens_and_refuses_text() {
    let (dir, _, packed) = place();
    let mut writer = PackedWriter::create(&packed, &json!({}), &[], Value::Null).unwrap();
    writer.float("norm", FloatType::F32, &[1], &[1.0]).unwrap();
    writer.finish().unwrap();
    let float = dir.path().join("float");
    let mut writer = HfWriter::create(&float, &json!({}), &[], FloatType::F16, &Value::Null).unwrap();
    writer.add("norm", &[1], &[1.0]).unwrap();
    writer.finish().unwrap();
    for (name, path) in [
        ("packed", PackedDir::open(&packed).unwrap().tokenizer()),
        ("float", HfDir::open(&float).unwrap().tokenizer()),
    ] {
        assert_eq!(
            message(&dir, load_tokenizer(&path, 4)),
            format!("{name}: text can't be read without a tokenizer: missing tokenizer.json")
        );
    }
}

#[test]
fn a_companion_that_is_gone_is_named() {
    let (dir, _, target) = place();
    let writer = PackedWriter::create(&target, &json!({}), &[dir.path().join("gone.json")], Value::Null);
    assert_eq!(message(&dir, writer), "gone.json: cannot read: No such file or directory (os error 2)");
    assert!(!target.exists());
}

#[test]
fn a_foreign_directory_is_replaced_by_neither_writer() {
    let (dir, companions, target) = place();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("thesis.txt"), "").unwrap();
    for (marker, text) in [
        (MANIFEST_FILE, message(&dir, PackedWriter::create(&target, &json!({}), &companions, Value::Null))),
        (
            PROVENANCE_FILE,
            message(&dir, HfWriter::create(&target, &json!({}), &companions, FloatType::F32, &Value::Null)),
        ),
    ] {
        assert_eq!(
            text,
            format!(
                "packed: exists and has no {marker} written by qat, so it is not replaced; \
                 choose another directory or remove it"
            )
        );
    }
}

#[test]
fn a_float_model_is_a_hugging_face_directory() {
    // 1/3 in F32, in F16 and in BF16: to the nearest, as numbers with 24, 11 and 8 significant bits.
    for (float, name, third) in [
        (FloatType::F32, "float32", 1.0 / 3.0),
        (FloatType::F16, "float16", 0.333_251_95),
        (FloatType::BF16, "bfloat16", 0.333_984_38),
    ] {
        let (_dir, companions, target) = place();
        let config = json!({"model_type": "llama", "torch_dtype": "float64", "hidden_size": 2});
        let source = json!({"step": 300});
        for _ in 0..2 {
            let mut writer = HfWriter::create(&target, &config, &companions, float, &source).unwrap();
            writer.add("norm.weight", &[2], &[1.0, 1.0 / 3.0]).unwrap();
            writer.finish().unwrap();
        }
        let read = HfDir::open(&target).unwrap();
        assert_eq!(read.config, json!({"model_type": "llama", "torch_dtype": name, "hidden_size": 2}));
        assert_eq!(read.tensors.f32("norm.weight", &[2]).unwrap(), [1.0, third]);
        assert_eq!(read.tensors.float("norm.weight", &[2]).unwrap().0, float);
        assert_eq!(super::companions(&read.path).unwrap(), [read.tokenizer()]);
        let provenance: Value =
            serde_json::from_slice(&fs::read(target.join(PROVENANCE_FILE)).unwrap()).unwrap();
        assert_eq!((&provenance["qat"], &provenance["source"]), (&json!(1), &source));
        assert!(!PackedDir::is_at(&target));
        check_written(&target, |_| true).unwrap();
        fs::write(target.join(CONFIG_FILE), "{}").unwrap();
        check_written(&target, |name| name != CONFIG_FILE).unwrap();
        let problem = check_written(&target, |_| true).unwrap_err().to_string();
        assert!(
            problem.contains("config.json: its SHA-256 is ") && problem.ends_with("is damaged"),
            "{problem}"
        );
    }
}

#[test]
fn the_newer_spelling_of_the_float_type_is_kept() {
    let (_dir, companions, target) = place();
    let config = json!({"dtype": "float32"});
    HfWriter::create(&target, &config, &companions, FloatType::BF16, &Value::Null).unwrap().finish().unwrap();
    assert_eq!(HfDir::open(&target).unwrap().config, json!({"dtype": "bfloat16"}));
}

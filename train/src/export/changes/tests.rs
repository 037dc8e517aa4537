//! Changes of runs whose weights were moved by a known amount, or not at all.

use std::collections::BTreeMap;

use candle_core::Device;
use qat_infer::files::{Activations, HfWriter};
use qat_quant::kernels::FloatType;
use serde_json::json;

use super::*;
use crate::{
    recipe::{Quantization, Rounding, Rules},
    student::Student,
    tiny,
};

#[test]
fn a_histogram_keeps_what_lies_outside_in_its_outermost_bins() {
    let mut histogram = Histogram::new((-1.0, 1.0, 4));
    for value in [-9.0, -1.0, -0.4, 0.0, 0.49, 0.5, 1.0, 9.0, f64::NEG_INFINITY] {
        histogram.add(value);
    }
    assert_eq!(histogram.counts, [3, 1, 2, 3]);
}

/// A student of `format` whose weights were moved by `moved`, and the folder of its run.
fn run(format: &str, moved: f32) -> (Shipment, tempfile::TempDir) {
    let rules = Rules::new(format, "int8-g32", "int8-g32", &BTreeMap::new()).expect("rules");
    let quantization = Quantization::untrained(rules, Rounding::Rule(ScaleRule::Absmax), Activations::Float);
    let quantization = Quantization { gradient: crate::ops::Gradient::Ste, ..quantization };
    let floats = tiny::floats(tiny::config(json!({})), 3);
    let folder = tempfile::tempdir().expect("temporary folder");
    let config = floats.config.to_json();
    let place = student_dir(folder.path());
    let mut writer = HfWriter::create(&place, &config, &tiny::tokenizer_files(), FloatType::F32, &json!({}))
        .expect("a writer");
    for param in params(&floats.config) {
        writer.add(&param.name, &param.shape, &floats.tensors[&param.name]).expect("added");
    }
    writer.finish().expect("written");
    let student = Student::new(&floats, quantization, &Device::Cpu).expect("student");
    for variable in student.variables() {
        let shifted = (variable.var.as_tensor() * f64::from(1.0 + moved)).expect("a product");
        variable.var.set(&shifted).expect("the same shape");
    }
    let source = json!({"step": 7});
    (Shipment { student, companions: Vec::new(), _origin: None, source }, folder)
}

#[test]
fn what_was_not_trained_has_the_codes_and_the_error_of_its_start() {
    for format in ["int4-g32", "int3-affine-g32", "ternary-tensor"] {
        let (shipment, folder) = run(format, 0.0);
        let changes = shipment.changes(folder.path()).expect("changes");
        assert_eq!(changes.step, 7);
        let names: Vec<&str> = changes.modules.iter().map(|m| m.module.as_str()).collect();
        assert!(names.contains(&"self_attn.q_proj") && names.contains(&"model.embed_tokens"), "{names:?}");
        for change in &changes.matrices {
            assert_eq!(change.flipped, Some(0.0), "{change:?}");
            assert_eq!(change.rounding, change.rounding_start, "{change:?}");
            assert_eq!(change.from_start, change.rounding, "{change:?}");
            assert!(change.rounding.is_some_and(|error| error > 1e-4 && error < 0.7), "{change:?}");
        }
        for spread in &changes.formats {
            assert_eq!((&spread.codes, &spread.scales), (&spread.codes_start, &spread.scales_start));
            let of_format = changes.matrices.iter().filter(|m| m.format == spread.format);
            let weights: usize = of_format.map(|m| m.weights).sum();
            assert_eq!(spread.codes.iter().sum::<u64>(), weights as u64, "{}", spread.format);
        }
    }
}

#[test]
fn the_error_of_a_matrix_is_that_of_its_decoded_values() {
    let (shipment, folder) = run("int4-g32", 0.1);
    let changes = shipment.changes(folder.path()).expect("changes");
    let start = FloatModel::open(&student_dir(folder.path())).expect("the start");
    let param = params(&shipment.student.config).into_iter().nth(2).expect("a projection");
    let change = changes.matrices.iter().find(|change| change.name == param.name).expect("its change");
    let Shipped::Packed(packed) = shipment.student.ship(&param).expect("ships") else { panic!("packed") };
    let (shipped, start) = (packed.as_ref().decode(), start.values(&param).expect("values"));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let apart = norm(&mut shipped.iter().zip(&start).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let wanted = apart / norm(&mut start.iter().map(|w| f64::from(*w)));
    assert!((change.from_start.expect("a start") - wanted).abs() < 1e-12, "{change:?}, {wanted}");
    // The latent weights are 1.1 times the start, and so are their scales: nearly all codes stay.
    assert!(change.flipped.expect("a start") < 0.02, "{change:?}");
    assert!(change.from_start > change.rounding, "{change:?}");
}

#[test]
fn without_its_start_a_run_still_has_its_own_rounding() {
    let (shipment, folder) = run("ternary-g64", 0.0);
    std::fs::remove_dir_all(student_dir(folder.path())).expect("removed");
    let changes = shipment.changes(folder.path()).expect("changes");
    assert!(changes.matrices.iter().all(|m| m.flipped.is_none() && m.rounding.is_some()));
    assert!(changes.formats.iter().all(|f| f.codes_start.iter().all(|&count| count == 0)));
}

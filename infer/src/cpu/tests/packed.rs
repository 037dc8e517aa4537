//! A packed model is the float model of its decoded weights.

use qat_quant::kernels::FloatType;
use qat_quant::{Format, Packed, ScaleRule, Scales, int8_tokens, pack};
use serde_json::json;

use super::*;
use crate::files::{Activations, Bytes, HfDir, PackedWriter, Storage, StoredMatrix, companions};
use crate::model::{Config, Decoder, Param, Weights, params};
use crate::{Error, Result, RuntimeMatrix};

fn packed(tensors: &TensorFiles, format: Format, name: &str, shape: &[usize]) -> Packed {
    let values = tensors.f32(name, shape).expect("tensor");
    let scales = Scales::choose(format, ScaleRule::Absmax, &values, shape[0], shape[1]);
    pack(name, format, &values, shape[0], shape[1], &scales).expect("packs")
}

fn stored(packed: Packed, activations: Activations) -> StoredMatrix {
    StoredMatrix {
        storage: Storage::Packed(packed.as_ref().format()),
        tensor_scale: packed.as_ref().tensor_scale(),
        bytes: Bytes::from(packed.blocks),
        activations,
    }
}

fn floats(values: &[f32]) -> StoredMatrix {
    StoredMatrix {
        storage: Storage::Float(FloatType::F32),
        bytes: Bytes::from(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()),
        tensor_scale: None,
        activations: Activations::Float,
    }
}

/// The tensors of a directory with every matrix packed, or packed and decoded again.
struct Rounded<'a> {
    tensors: &'a TensorFiles,
    format: Format,
    decoded: bool,
}

impl Weights for Rounded<'_> {
    type M = Matrix;
    type V = Vec<f32>;
    type Error = Error;

    fn matrix(&mut self, param: &Param) -> Result<Matrix> {
        let packed = packed(self.tensors, self.format, &param.name, &param.shape);
        let decoded = self.decoded.then(|| floats(&packed.as_ref().decode()));
        let matrix = decoded.unwrap_or_else(|| stored(packed, Activations::Float));
        Matrix::new(&param.name, [param.shape[0], param.shape[1]], matrix)
    }

    fn vector(&mut self, param: &Param) -> Result<Vec<f32>> {
        self.tensors.f32(&param.name, &param.shape)
    }
}

/// How far apart the logits of one model may be when its products are summed in another order: they are a few units, of
/// f32 sums of at most 256 products, as in the comparison with transformers.
const REORDERED: f32 = 1e-4;

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn packed_logits_are_those_of_the_decoded_weights() {
    let Some(root) = shared("fixtures") else { return };
    let dir = HfDir::open(&root.join("llama_tied")).expect("fixture");
    let config = Config::from_json(&dir.config, &dir.config_path()).expect("config");
    let ids: Vec<u32> = (0..40).map(|i| (i * 53 + 7) % 508).collect();
    let formats: Vec<Format> = Format::all().into_iter().filter(|f| f.fits(128) && f.fits(256)).collect();
    assert!(formats.len() > 20, "{formats:?}");
    for format in formats {
        let logits = |decoded| {
            let mut weights = Rounded { tensors: &dir.tensors, format, decoded };
            all_logits(&Decoder::build(config.clone(), &mut weights).expect("builds"), &ids)
        };
        let (packed, decoded) = (logits(false), logits(true));
        assert!(packed.iter().all(|logit| logit.is_finite()));
        let apart = largest_difference(&packed, &decoded);
        assert!(apart <= REORDERED, "{format}: {apart:e}");
    }
}

#[test]
fn a_packed_directory_runs_like_its_decoded_weights() {
    let Some(root) = shared("fixtures") else { return };
    let dir = HfDir::open(&root.join("qwen3")).expect("fixture");
    let config = Config::from_json(&dir.config, &dir.config_path()).expect("config");
    let format: Format = "int4-g32".parse().expect("a format");
    let target = tempfile::tempdir().expect("a place");
    let target = target.path().join("packed");
    let mut writer =
        PackedWriter::create(&target, &dir.config, &companions(&dir.path).expect("tokenizer"), json!({}))
            .expect("writer");
    for Param { name, shape, .. } in params(&config) {
        match shape.len() {
            2 => {
                let packed = packed(&dir.tensors, format, &name, &shape);
                writer.packed(&name, packed.as_ref(), Activations::Float).expect("a matrix");
            }
            _ => {
                let values = dir.tensors.f32(&name, &shape).expect("tensor");
                writer.float(&name, FloatType::F32, &shape, &values).expect("a vector");
            }
        }
    }
    writer.finish().expect("written");

    let model = Model::open(&target).expect("opens");
    let ids = [5, 152, 490, 3, 53];
    let mut weights = Rounded { tensors: &dir.tensors, format, decoded: true };
    let decoded = Decoder::build(config, &mut weights).expect("builds");
    let apart = largest_difference(&all_logits(&model.decoder, &ids), &all_logits(&decoded, &ids));
    assert!(apart <= REORDERED, "{apart:e}");
    // 4.5 bits for all but the few norms, which are 32.
    assert!((4.5..4.6).contains(&model.size.bits_per_weight), "{:?}", model.size);
    let on_disk = std::fs::metadata(target.join("model.safetensors")).expect("file").len();
    assert_eq!(model.size.file_bytes, on_disk);
}

#[test]
fn int8_inputs_are_rounded_for_the_matrices_that_ask_for_it_and_for_no_others() {
    let Some(root) = shared("fixtures") else { return };
    let dir = HfDir::open(&root.join("llama_tied")).expect("fixture");
    let format: Format = "int8-g32".parse().expect("a format");
    let (name, shape) = ("model.layers.0.mlp.up_proj.weight", [256, 128]);
    let weights = packed(&dir.tensors, format, name, &shape);
    let decoded = weights.as_ref().decode();
    let matrix = |stored| Matrix::new(name, shape, stored).expect("fits");
    let float = |activations| matrix(StoredMatrix { activations, ..floats(&decoded) });
    let packed = |activations| matrix(stored(weights.clone(), activations));

    let x = dir.tensors.f32("model.embed_tokens.weight", &[512, 128]).expect("tensor");
    let (x, n) = (&x[..3 * 128], 3);
    let mut rounded = x.to_vec();
    int8_tokens(&mut rounded, 128);
    let product = |matrix: Matrix, x: &[f32]| {
        let mut out = vec![0.0; n * 256];
        matrix.matmul(x, n, &mut out).expect("product");
        out
    };
    let exact = |x: &[f32]| -> Vec<f32> {
        let dot = |x: &[f32], w: &[f32]| -> f64 {
            x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
        };
        x.chunks(128).flat_map(|x| decoded.chunks(128).map(move |w| dot(x, w) as f32)).collect()
    };
    let (of_x, of_rounded) = (exact(x), exact(&rounded));
    let step = largest_difference(&of_x, &of_rounded);
    for (found, want) in [
        (product(packed(Activations::Float), x), &of_x),
        (product(float(Activations::Float), x), &of_x),
        (product(packed(Activations::Int8Token), x), &of_rounded),
        (product(float(Activations::Int8Token), x), &of_rounded),
    ] {
        // 128 roundings of f32 against a hundredth of what rounding the inputs does.
        assert!(largest_difference(&found, want) < step / 100.0, "{step:e}");
    }
}

#[test]
fn activations_can_be_chosen_for_what_is_packed() {
    let Some(root) = shared("fixtures") else { return };
    let dir = HfDir::open(&root.join("llama_tied")).expect("fixture");
    let config = Config::from_json(&dir.config, &dir.config_path()).expect("config");
    let format: Format = "int8-g32".parse().expect("a format");
    let mut weights = Rounded { tensors: &dir.tensors, format, decoded: false };
    let mut decoder = Decoder::build(config, &mut weights).expect("builds");
    let ids = [5, 152, 490, 3, 53];
    let float = all_logits(&decoder, &ids);
    decoder.matrices_mut().for_each(|m| m.set_activations(Activations::Int8Token));
    let int8 = all_logits(&decoder, &ids);
    let apart = largest_difference(&float, &int8);
    assert!(apart > 1e-3 && apart < 1.0, "{apart}");
    assert_eq!(decoder.matrices_mut().count(), 1 + 7 * decoder.config.layers);
}

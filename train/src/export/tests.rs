//! What is trained is what ships: the fake-quantized decoder against the packed directory, opened by the runtime.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use qat_infer::{
    cpu::{KvType, Model},
    export::{Export, Options, Target},
    files::{Activations, HfDir, PackedDir, Storage},
    model::{Config, Decoder, Exec as _},
};
use qat_quant::{Format, PackedRef, ScaleRule};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::*;
use crate::{
    exec::{Matrix, RopeTable, TrainExec},
    ops::Gradient,
    recipe::{Learn, Rules},
    student::Kind,
    tiny::{self, largest_difference, root_mean_square, runtime_logits, tokenizer_files, trained_logits},
};

fn quantization(weights: &str, rest: &str, overrides: &[(&str, &str)]) -> Quantization {
    let overrides: BTreeMap<String, String> =
        overrides.iter().map(|(glob, format)| (glob.to_string(), format.to_string())).collect();
    let rules = Rules::new(weights, rest, rest, &overrides).expect("rules");
    let untrained = Quantization::untrained(rules, Rounding::Rule(ScaleRule::Mse), Activations::Float);
    Quantization { gradient: Gradient::Ste, ..untrained }
}

/// Moves learned scales and biases away from where they started, as training would.
fn perturb(student: &Student) {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let learned = student.variables().iter().filter(|v| matches!(v.kind, Kind::Scale | Kind::GridBias));
    for variable in learned {
        let values: Vec<f32> = variable.var.as_tensor().to_vec1().expect("values");
        let moved: Vec<f32> = values.iter().map(|v| v * rng.random_range(0.8..1.2)).collect();
        variable.var.set(&Tensor::new(moved, &Device::Cpu).expect("tensor")).expect("same shape");
    }
}

/// A student, its packed directory in a folder of its own, and some ids to run it on.
struct Case {
    student: Student,
    packed: PathBuf,
    ids: Vec<u32>,
    _folder: tempfile::TempDir,
}

impl Case {
    fn new(config: &Config, quantization: Quantization) -> Self {
        let student =
            Student::new(&tiny::floats(config.clone(), 3), quantization, &Device::Cpu).expect("student");
        perturb(&student);
        let folder = tempfile::tempdir().expect("temporary folder");
        let packed = folder.path().join("packed");
        let shipment = Shipment { student, companions: tokenizer_files(), _origin: None, source: json!({}) };
        shipment.write(&packed).expect("written");
        Self { student: shipment.student, packed, ids: tiny::ids(24, config.vocab_size), _folder: folder }
    }

    fn decoder(&self) -> Decoder<Matrix, Tensor> {
        self.student.decoder(Some(1.0)).expect("decoder")
    }

    fn packed_logits(&self, ids: &[u32]) -> Vec<f32> {
        runtime_logits(&Model::open(&self.packed).expect("opens").decoder, ids)
    }

    /// Every matrix of the packed directory, decoded, is the tensor that the forward pass multiplies with.
    fn assert_weights_are_equal(&self, what: &str) {
        let dir = PackedDir::open(&self.packed).expect("opens");
        let decoder = self.decoder();
        let params = params(&self.student.config);
        let mut seen = 0;
        for (param, matrix) in params.iter().filter(|p| p.shape.len() == 2).zip(decoder.matrices()) {
            let shape = [param.shape[0], param.shape[1]];
            let stored = dir.matrix(&param.name, shape).expect("listed");
            let Storage::Packed(format) = stored.storage else { continue };
            assert_eq!(Some(format), self.student.format(param), "{what}: {}", param.name);
            let packed =
                PackedRef::new(&param.name, format, shape[0], shape[1], &stored.bytes, stored.tensor_scale);
            let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let decoded = bits(packed.expect("whole").decode());
            let trained = bits(flat(&matrix.weight));
            assert!(decoded == trained, "{what}: {}", param.name);
            seen += 1;
        }
        assert!(seen > 0, "{what}: nothing is packed");
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32 values")
}

/// Uniform in (−1, 1).
fn random(count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// How far apart two executors may be on the same weights, for logits of root mean square `rms`.
///
/// A logit is the end of eleven sums in a row: in each of two layers a projection, attention's mixing, `o`, gate and up, and
/// `down`, then the head. None has more than n = 256 terms. Rounding errors of a sum walk to about √n·2⁻²⁴ of its size, in
/// each executor on its own.
fn bound(rms: f64) -> f64 {
    2.0 * 11.0 * 256f64.sqrt() * 2f64.powi(-24) * rms
}

fn assert_logits_are_equal(case: &Case, what: &str) {
    let (packed, trained) = (case.packed_logits(&case.ids), trained_logits(&case.decoder(), &case.ids));
    let bound = bound(root_mean_square(&packed, &vec![0.0; packed.len()]));
    let found = f64::from(largest_difference(&packed, &trained));
    assert!(found <= bound, "{what}: packed and fake-quantized logits differ by {found:e}, bound {bound:e}");
    // The comparison would notice: without the rounding, the same student is far away.
    // (Where scales alone are learned, there is no such student.)
    let Ok(float) = case.student.decoder(None) else { return };
    let float = trained_logits(&float, &case.ids);
    let rounding = f64::from(largest_difference(&float, &trained));
    assert!(rounding > 100.0 * bound, "{what}: rounding moves no logit by more than {rounding:e}");
}

#[test]
fn fake_quantized_weights_and_logits_are_those_of_the_packed_model_in_every_format() {
    let config = tiny::config(json!({}));
    let formats: Vec<Format> = Format::all().into_iter().filter(|f| f.fits(128)).collect();
    assert!(formats.len() > 20, "{formats:?}");
    for format in formats {
        let spelled = format.to_string();
        for (gradient, rule, even, learn) in [
            (Gradient::Ste, ScaleRule::Absmax, false, Learn::All),
            (Gradient::Lsq, ScaleRule::Mse, false, Learn::All),
            (Gradient::Lsq, ScaleRule::Mse, true, Learn::All),
            (Gradient::Lsq, ScaleRule::Mse, false, Learn::Scales),
            (Gradient::Lsq, ScaleRule::Mse, true, Learn::Scales),
        ] {
            let what = format!("{format} {gradient:?} even: {even} {learn:?}");
            let start = Rounding::Rule(rule);
            let plain = quantization(&spelled, &spelled, &[]);
            let case = Case::new(&config, Quantization { gradient, start, even, learn, ..plain });
            case.assert_weights_are_equal(&what);
            assert_logits_are_equal(&case, &what);
        }
    }
}

#[test]
fn mixed_formats_biases_and_untied_heads_ship_as_trained() {
    let overrides = [
        ("*.{down_proj,w2}.*", "ternary-g256"),
        ("*.layers.0.*", "float"),
        ("*.v_proj.*", "int8-affine-g64"),
    ];
    for (family, tied) in
        [("llama", false), ("qwen2", true), ("qwen3", false), ("bitnet", true), ("lfm2", true)]
    {
        let config = tiny::family(family, json!({"tie_word_embeddings": tied, "head_dim": 32}));
        for (gradient, scales) in [
            (Gradient::Ste, ScaleRule::Mse),
            (Gradient::ClippedSte, ScaleRule::Absmax),
            (Gradient::Lsq, ScaleRule::Mse),
        ] {
            let what = format!("{family} {gradient:?}");
            let mixed = quantization("int3-affine-g64", "int8-g32", &overrides);
            let case = Case::new(&config, Quantization { gradient, start: Rounding::Rule(scales), ..mixed });
            case.assert_weights_are_equal(&what);
            assert_logits_are_equal(&case, &what);
        }
    }
}

fn with_int8_inputs(weights: &str) -> Quantization {
    Quantization { activations: Activations::Int8Token, ..quantization(weights, "int8-g32", &[]) }
}

#[test]
fn int8_inputs_are_rounded_alike_by_trainer_and_runtime() {
    let config = tiny::config(json!({"model_type": "qwen2"}));
    for weights in ["ternary-g64", "int4-g32", "int4-affine-g64"] {
        let case = Case::new(&config, with_int8_inputs(weights));
        case.assert_weights_are_equal(weights);
        let (packed, trained) = (Model::open(&case.packed).expect("opens"), case.decoder());
        let rows = 8;
        let inputs: Vec<f32> = random(rows * config.hidden_size);
        let ours = trained.layers[0].mixer.attention().expect("attention");
        let theirs = packed.decoder.layers[0].mixer.attention().expect("attention");
        let runtime = [&theirs.q, &theirs.k, &theirs.v].map(|linear| {
            let mut out = vec![0.0; rows * linear.weight.rows()];
            linear.weight.matmul(&inputs, rows, &mut out).expect("product");
            for row in out.chunks_exact_mut(linear.weight.rows()) {
                row.iter_mut().zip(linear.bias.iter().flatten()).for_each(|(v, bias)| *v += bias);
            }
            out
        });

        let rope = RopeTable::new(&trained.ropes, rows, &Device::Cpu).expect("rope");
        let x = Tensor::from_slice(&inputs, (rows, config.hidden_size), &Device::Cpu).expect("tensor");
        let trainer =
            TrainExec::new(1, rows, &rope).linears(&x, [&ours.q, &ours.k, &ours.v]).expect("products");
        let weights_of = [&ours.q, &ours.k, &ours.v];
        for ((runtime, trainer), linear) in runtime.iter().zip(&trainer).zip(weights_of) {
            // n products and a bias in two orders: Σ|w·x| bounds every partial sum, so each differs from the exact one by at
            // most n·2⁻²⁴·Σ|w·x|. One step of an activation would be a hundred times that.
            let magnitudes =
                x.abs().and_then(|x| x.matmul(&linear.weight.weight.abs()?.t()?)).expect("Σ|w·x|");
            let trainer: Vec<f32> = flat(trainer);
            for ((a, b), magnitude) in runtime.iter().zip(&trainer).zip(flat(&magnitudes)) {
                let bound = 2.0 * (config.hidden_size + 1) as f32 * 2f32.powi(-24) * (magnitude + 1.0);
                assert!((a - b).abs() <= bound, "{weights}: {a} and {b}, bound {bound:e}");
            }
        }
    }
}

#[test]
fn logits_with_int8_inputs_are_those_of_the_packed_model_unless_a_value_lies_between_two_codes() {
    // Where two executors' sums differ in the last bit, a value half-way between two codes is rounded up by one and down by
    // the other, and what follows in that window differs by a step of the activations. That is rare: a window has some
    // 10⁴ rounded values, each known to about 10⁻⁵ of a step. So most windows agree as float ones do, and the others stay
    // within what two independent roundings of the same activations could do, √2 times the effect of one.
    let config = tiny::config(json!({}));
    for weights in ["ternary-g64", "int8-g32"] {
        let case = Case::new(&config, with_int8_inputs(weights));
        let model = Model::open(&case.packed).expect("opens");
        let decoder = case.decoder();
        let mut unrounded = case.decoder();
        unrounded.matrices_mut().for_each(|matrix| matrix.int8_inputs = None);
        let (windows, mut equal) = (16, 0);
        for ids in tiny::ids(8 * windows, config.vocab_size).chunks(8) {
            let (packed, trained) = (runtime_logits(&model.decoder, ids), trained_logits(&decoder, ids));
            let effect = root_mean_square(&trained, &trained_logits(&unrounded, ids));
            let bound = bound(root_mean_square(&trained, &vec![0.0; trained.len()]));
            assert!(effect > 100.0 * bound, "{weights}: int8 inputs have no effect");
            let found = root_mean_square(&packed, &trained);
            assert!(
                found <= 2f64.sqrt() * effect,
                "{weights}: {found:e} apart, rounding itself does {effect:e}"
            );
            equal += usize::from(f64::from(largest_difference(&packed, &trained)) <= bound);
        }
        assert!(
            equal > windows / 2,
            "{weights}: only {equal} of {windows} windows agree within f32 rounding"
        );
    }
}

#[test]
fn logits_with_rounded_keys_and_values_are_those_of_the_runtime_over_such_a_cache() {
    // As above: where a value lies between two codes the two differ by a step, but far less than rounding moves all of them.
    let config = tiny::config(json!({"model_type": "qwen3", "head_dim": 32}));
    for kv in [KvType::F16, KvType::Int8, KvType::Int4] {
        let case =
            Case::new(&config, Quantization { kv: Some(kv), ..quantization("int4-g32", "int8-g32", &[]) });
        let model = Model::open(&case.packed).expect("opens");
        let (mut effects, mut apart) = (0.0, 0.0);
        for ids in tiny::ids(8 * 16, config.vocab_size).chunks(8) {
            let trained = trained_logits(&case.decoder(), ids);
            effects += root_mean_square(&trained, &case.packed_logits(ids));
            apart += root_mean_square(&trained, &tiny::runtime_logits_over(kv, &model.decoder, ids));
        }
        assert!(effects > 1e-5 && apart < 0.1 * effects, "{kv}: {apart:e} apart, rounding does {effects:e}");
    }
}

#[test]
fn a_float_directory_holds_the_values_of_the_grid_and_nothing_coarser() {
    let config = tiny::config(json!({"model_type": "qwen3", "tie_word_embeddings": false, "head_dim": 32}));
    let case = Case::new(&config, quantization("int3-affine-g64", "int8-g32", &[]));
    let target = case.packed.with_file_name("hf");
    let export = |out: &Path, dtype| {
        let options = Options { dtype, ..Options::default() };
        let job = Export { target: Target::Hf, options: &options, requantize: false, report: None };
        job.run(&case.packed, Export::stage(out).expect("a place"))
    };
    export(&target, None).expect("written");
    let (packed, float) =
        (PackedDir::open(&case.packed).expect("opens"), HfDir::open(&target).expect("opens"));
    for param in params(&config).iter().filter(|p| p.shape.len() == 2) {
        let (name, shape) = (&param.name, [param.shape[0], param.shape[1]]);
        let stored = packed.matrix(name, shape).expect("a matrix");
        let Storage::Packed(format) = stored.storage else { continue };
        let decoded = PackedRef::new(name, format, shape[0], shape[1], &stored.bytes, stored.tensor_scale);
        let same = decoded.expect("whole").decode() == float.tensors.f32(name, &shape).expect("floats");
        assert!(same, "{name}: other weights");
    }
    let logits = |dir: &Path| runtime_logits(&Model::open(dir).expect("opens").decoder, &case.ids);
    let (of_float, of_packed) = (logits(&target), logits(&case.packed));
    let bound = bound(root_mean_square(&of_packed, &vec![0.0; of_packed.len()]));
    assert!(f64::from(largest_difference(&of_float, &of_packed)) <= bound, "the runtime sees other weights");
    let refused = export(&case.packed.with_file_name("bf16"), Some(FloatType::BF16));
    let m = refused.expect_err("3-bit values have no bf16").to_string();
    assert!(m.starts_with("model.embed_tokens.weight: ") && m.contains("exact only in f32"), "{m}");
}

#[test]
fn a_model_that_is_rounded_without_training_is_rounded_by_the_chosen_rule() {
    let Some(root) = tiny::shared("fixtures") else { return };
    let folder = tempfile::tempdir().expect("temporary folder");
    let ids = tiny::ids(32, 508);
    let float = runtime_logits(&Model::open(&root.join("qwen2")).expect("opens").decoder, &ids);
    let mut distances = Vec::new();
    for rule in [ScaleRule::Absmax, ScaleRule::Mse] {
        let rules = quantization("int3-affine-g64", "int8-g32", &[]).rules;
        let untrained = Quantization::untrained(rules, Rounding::Rule(rule), Activations::Float);
        let shipment = Shipment::of_model(&root.join("qwen2"), untrained, None).expect("a model");
        let out = folder.path().join(rule.to_string());
        let source = shipment.write(&out).expect("written").source;
        let base = json!({"name": "qwen2"});
        assert_eq!(source, json!({"method": "rounded", "scales": rule.to_string(), "base": base}));
        let packed = runtime_logits(&Model::open(&out).expect("opens").decoder, &ids);
        distances.push(root_mean_square(&float, &packed));
    }
    assert!(0.0 < distances[1] && distances[1] < distances[0], "absmax and mse: {distances:?}");
}

#[test]
fn a_folder_without_a_run_is_told_apart_from_one_without_a_checkpoint() {
    let folder = tempfile::tempdir().expect("temporary folder");
    assert!(!is_run(folder.path()));
    let m = Shipment::of_run(folder.path()).expect_err("empty").to_string();
    assert!(m.contains("holds no whole checkpoint yet"), "{m}");
}

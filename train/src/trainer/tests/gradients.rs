//! Every variable learns, and what it is told agrees with the loss itself.

use std::collections::BTreeMap;

use candle_core::Tensor;
use qat_infer::files::Activations;
use qat_quant::{Format, ScaleRule};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::{
    data::Batch,
    exec::{Matrix, RopeTable},
    loss::Divergence,
    ops::{
        Gradient,
        check::uniform,
        gpu::{
            Reader,
            host::{self, Care},
        },
        tape::Tape,
    },
    precision::Precision,
    recipe::{FeaturePlan, Learn, LossPlan, Quantization, Rounding, Rules},
    student::{Moment, Student},
    trainer::{gradients::StepGradients, inside::Inside, objective::Objective, teacher::Teacher},
};

const CTX: usize = 8;
const ROWS: usize = 2;

/// All an [`Objective`] borrows.
struct Bench {
    plan: LossPlan,
    teacher: Teacher,
    rope: RopeTable,
    batch: Batch,
    inside: bool,
    recompute: bool,
    precision: Precision,
    reader: Reader,
}

impl Bench {
    fn new(config: &Config) -> Self {
        Self::on(config, &Device::Cpu)
    }

    fn on(config: &Config, device: &Device) -> Self {
        let divergences = vec![
            (Divergence::ForwardKl, 0.5),
            (Divergence::ReverseKl, 0.25),
            (Divergence::Jsd { beta: 0.3 }, 2.0),
            (Divergence::SkewKl { alpha: 0.1 }, 1.5),
            (Divergence::SkewReverseKl { alpha: 0.2 }, 1.0),
        ];
        let ids = tiny::ids(ROWS * CTX + 1, config.vocab_size);
        let teacher = Teacher::frozen(&tiny::floats(config.clone(), 77), CTX, device).expect("teacher");
        let rope = qat_infer::model::Ropes::new(config);
        Self {
            plan: LossPlan { cross_entropy: 1.0, divergences, temperature: 2.0, features: None },
            inside: false,
            recompute: false,
            precision: Precision::F32,
            reader: Reader::new(device).expect("a reader"),
            teacher,
            rope: RopeTable::new(&rope, CTX, device).expect("rope"),
            batch: Batch {
                inputs: ids[1..].to_vec(),
                targets: ids[..ROWS * CTX].to_vec(),
                rows: ROWS,
                context: CTX,
                windows: Vec::new(),
                packed: None,
            },
        }
    }

    fn objective<'a>(&'a self, inside: &'a Inside) -> Objective<'a> {
        Objective {
            plan: &self.plan,
            teacher: &self.teacher,
            rope: &self.rope,
            inside: self.inside.then_some(inside),
            recompute: self.recompute,
            precision: self.precision,
            reader: &self.reader,
        }
    }

    fn inside(&self, student: &Student) -> Result<Inside> {
        let features = FeaturePlan { hidden: 3.0, relations: 2.0, layer: None, balance: false };
        Inside::new(&features, student, &self.teacher)
    }

    /// Its gradient, as each variable is told, with the number of the variable.
    fn told(&self, student: &Student) -> Result<Vec<(usize, Tensor)>> {
        let inside = self.inside(student)?;
        let parts = self.objective(&inside).parts(student, &self.batch, Some(Moment::full()))?;
        let place = |of| student.variables().iter().position(|v| v.var.as_tensor().id() == of);
        let mut told = Vec::new();
        parts.gradients_told(student.variables(), &mut |of, gradient| {
            told.extend(place(of).map(|index| (index, gradient)));
            Ok(())
        })?;
        Ok(told)
    }

    /// The loss summed over the tokens, and its gradient by variable.
    fn gradients(&self, student: &Student) -> Result<(f64, Vec<Tensor>)> {
        let inside = self.inside(student)?;
        let objective = self.objective(&inside);
        let moment = Moment { precision: self.precision, ..Moment::full() };
        let mut gradients = StepGradients::of(student.variables());
        let sums = objective.accumulate(student, &self.batch, Some(moment), 1, &mut gradients)?;
        Ok((sums.read()?.loss, gradients.finish()?))
    }
}

/// Which are zero throughout.
fn silent(gradients: &[Tensor]) -> Vec<bool> {
    let is_zero = |g: &Tensor| g.abs().and_then(|g| g.sum_all()?.to_scalar::<f32>()).expect("a sum") == 0.0;
    gradients.iter().map(is_zero).collect()
}

fn student(config: &Config, weights: &str, gradient: Gradient, scales: ScaleRule) -> Student {
    let rules = Rules::new(weights, weights, weights, &BTreeMap::new()).expect("rules");
    let untrained = Quantization::untrained(rules, Rounding::Rule(scales), Activations::Int8Token);
    let quantization = Quantization { gradient, ..untrained };
    Student::new(&tiny::floats(config.clone(), 5), quantization, &Device::Cpu).expect("student")
}

#[test]
fn every_variable_learns_with_every_format_and_every_gradient() {
    let config =
        tiny::config(json!({"model_type": "qwen2", "num_hidden_layers": 1, "tie_word_embeddings": false}));
    let bench = Bench::new(&config);
    let formats: Vec<Format> = Format::all().into_iter().filter(|f| f.fits(128)).collect();
    for format in formats {
        for gradient in [Gradient::Ste, Gradient::ClippedSte, Gradient::Lsq] {
            let scales = if gradient == Gradient::Lsq { ScaleRule::Mse } else { ScaleRule::Absmax };
            let student = student(&config, &format.to_string(), gradient, scales);
            let (_, gradients) = bench.gradients(&student).expect("a gradient each");
            let learns = every_variable_learns(&student, student.variables(), &silent(&gradients), true);
            assert!(learns.is_ok(), "{format} {gradient:?}: {learns:?}");
        }
    }
}

#[test]
fn levels_held_evenly_teach_their_scale_through_the_bias_that_follows_it() {
    let config = tiny::config(json!({"num_hidden_layers": 1}));
    let rules = Rules::new("int2-affine-g64", "float", "float", &BTreeMap::new()).expect("rules");
    let plain = Quantization::untrained(rules, Rounding::Rule(ScaleRule::Seq), Activations::Float);
    let quantization = Quantization { even: true, learn: Learn::Scales, ..plain };
    let student =
        Student::new(&tiny::floats(config.clone(), 5), quantization, &Device::Cpu).expect("student");
    let name = "model.layers.0.mlp.up_proj.weight";
    let scale = student.variables().iter().find(|v| v.name == format!("{name}_scale")).expect("a scale");
    let (matrix, tape) = Tape::of(|| student.decoder(Some(1.0)).map(|d| d.layers[0].up.weight.clone()));
    let Matrix { weight, .. } = matrix.expect("a decoder");
    let g = uniform(3, 1.0, weight.dims()).expect("numbers");
    let mut found = tape.gradients_from(vec![(weight.id(), g.clone())]).expect("gradients");
    let found = found.take(scale.var.as_tensor()).expect("of the scale").to_vec1::<f32>().expect("numbers");
    // ŵ = s·(q − 3/2): its slope by s is ŵ/s, but for the rounding of both to f16. Times LSQ's γ, with 3 the highest code.
    let scales = scale.var.to_vec1::<f32>().expect("numbers");
    let products =
        (&g * &weight).and_then(|p| p.reshape((scales.len(), 64))?.sum(1)?.to_vec1::<f32>()).expect("sums");
    for (found, (sum, scale)) in found.iter().zip(products.iter().zip(&scales)) {
        let want = sum / scale / (64f32 * 3.0).sqrt();
        // The bias is off by 2⁻¹² of itself: 64 numbers below 1, which add up to some 5, by 3/2 · 2⁻¹² and γ.
        assert!((found - want).abs() < 1e-3, "{found}, want {want}");
    }
}

/// Family, format and gradient of a step.
type Step = (&'static str, &'static str, Gradient);

/// Steps that are compared between devices.
const STEPS: [Step; 7] = [
    ("qwen3", "float", Gradient::Ste),
    ("qwen3", "int4-g32", Gradient::ClippedSte),
    ("qwen3", "int2-affine-g64", Gradient::Lsq),
    ("qwen3", "ternary-tensor", Gradient::Lsq),
    ("qwen3", "ternary-g64", Gradient::Ste),
    ("bitnet", "ternary-tensor", Gradient::Ste),
    ("lfm2", "int4-g32", Gradient::Ste),
];

/// Loss and gradients of a step on `device`, by name, with the gradients on the CPU.
fn step_on(device: &Device, step: Step) -> (f64, BTreeMap<String, Tensor>) {
    step_in(Precision::F32, device, step)
}

fn step_in(
    precision: Precision,
    device: &Device,
    (family, format, gradient): Step,
) -> (f64, BTreeMap<String, Tensor>) {
    let layers = if family == "lfm2" { 2 } else { 1 };
    let config = tiny::family(family, json!({"num_hidden_layers": layers, "head_dim": 32}));
    let rules = Rules::new(format, format, format, &BTreeMap::new()).expect("rules");
    // Without rounded activations, where a difference in the last place can take another code.
    let scales = ScaleRule::Absmax;
    let untrained = Quantization::untrained(rules, Rounding::Rule(scales), Activations::Float);
    let quantization = Quantization { gradient, ..untrained };
    let student = Student::new(&tiny::floats(config.clone(), 5), quantization, device).expect("student");
    let bench = Bench { inside: true, precision, ..Bench::on(&config, device) };
    let (loss, gradients) = bench.gradients(&student).expect("a gradient each");
    let named = student.variables().iter().zip(gradients);
    let home = |g: Tensor| g.to_device(&Device::Cpu).expect("read");
    (loss, named.map(|(variable, g)| (variable.name.clone(), home(g))).collect())
}

/// Holds a step taken by `path` to one on the CPU, with each quantizer.
fn assert_agrees_with_the_cpu(path: impl Fn(Step) -> (f64, BTreeMap<String, Tensor>)) {
    let largest = |t: &Tensor| t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    for step in STEPS {
        let ((want_loss, want), (loss, found)) = (step_on(&Device::Cpu, step), path(step));
        assert!((loss - want_loss).abs() < 1e-5 * want_loss.abs(), "{step:?}: {loss} for {want_loss}");
        for (name, want) in &want {
            let difference = largest(&(&found[name] - want).expect("one shape")).expect("a number");
            let magnitude = largest(want).expect("a number");
            // Ten operations in a row, each within 1e-5 of the largest element on either path.
            let near = difference <= 1e-4 * magnitude;
            assert!(near, "{step:?} {name}: off by {difference}, largest {magnitude}");
        }
    }
}

#[test]
fn the_kernels_of_metal_tell_every_variable_what_the_cpu_tells_it() {
    if host::available() {
        assert_agrees_with_the_cpu(|step| host::emulating(Care::Values, || step_on(&Device::Cpu, step)));
    }
}

#[test]
fn a_step_on_the_gpu_tells_every_variable_what_the_cpu_tells_it() {
    if let Some(gpu) = crate::device::tests::gpu() {
        assert_agrees_with_the_cpu(|step| step_on(&gpu, step));
    }
}

/// Holds a step in bf16, taken by `path`, to one in f32 on the CPU, with each quantizer.
fn assert_is_near_in_bf16(path: impl Fn(Step) -> (f64, BTreeMap<String, Tensor>)) {
    let length = |t: &Tensor| t.sqr()?.sum_all()?.to_scalar::<f32>().map(f32::sqrt);
    for step in STEPS {
        let ((want_loss, want), (loss, found)) = (step_on(&Device::Cpu, step), path(step));
        // Logits of about 10 are off by some 10·2⁻⁹ in each of student and teacher.
        assert!((loss / want_loss - 1.0).abs() < 0.01, "{step:?}: {loss} for {want_loss}");
        for (name, want) in &want {
            assert_eq!(found[name].dtype(), candle_core::DType::F32, "{name}");
            let apart = length(&(&found[name] - want).expect("one shape")).expect("a number");
            let share = apart / length(want).expect("a number");
            // Some thirty tensors stand between the loss and the first variable, each off by about 2⁻⁹ of its length, and independent of the
            // others: √30·2⁻⁹ = 0.011, and a few times that where what is added up cancels, as in a scale's gradient.
            assert!(share <= 0.06, "{step:?} {name}: off by {share} of its length");
        }
    }
}

#[test]
fn a_step_in_bf16_tells_every_variable_nearly_what_f32_tells_it() {
    if host::available() {
        assert_is_near_in_bf16(|step| {
            host::emulating(Care::Values, || step_in(Precision::Bf16, &Device::Cpu, step))
        });
    }
}

#[test]
fn a_step_in_bf16_on_the_gpu_tells_every_variable_nearly_what_f32_tells_it() {
    if let Some(gpu) = crate::device::tests::gpu() {
        assert_is_near_in_bf16(|step| step_in(Precision::Bf16, &gpu, step));
    }
}

#[test]
fn a_variable_that_nothing_depends_on_is_refused_by_name() {
    let config = tiny::config(json!({}));
    let mut student = student(&config, "int4-g32", Gradient::Lsq, ScaleRule::Absmax);
    student.plant_idle_variable("model.layers.0.mlp.idle.weight").expect("a variable");
    let m = Bench::new(&config).gradients(&student).expect_err("refused").to_string();
    assert_eq!(
        m,
        "model.layers.0.mlp.idle.weight: receives no gradient; it would never be trained, so the run is refused"
    );
}

#[test]
fn a_variable_whose_gradient_is_zero_throughout_is_refused_by_name() {
    let config = tiny::config(json!({}));
    let student = student(&config, "float", Gradient::Ste, ScaleRule::Absmax);
    // A norm of zeros silences the MLP behind it and, since silu(0)·0 is flat, itself.
    let name = "model.layers.1.post_attention_layernorm.weight";
    let silenced = student.variables().iter().find(|v| v.name == name).expect("a norm");
    silenced.var.set(&silenced.var.zeros_like().expect("zeros")).expect("same shape");
    let (_, gradients) = Bench::new(&config).gradients(&student).expect("a gradient each");
    let m = every_variable_learns(&student, student.variables(), &silent(&gradients), true)
        .expect_err("refused")
        .to_string();
    assert!(m.starts_with(&format!("{name}: receives no gradient")), "{m}");
    let zeros = vec![true; gradients.len()];
    let m =
        every_variable_learns(&student, student.variables(), &zeros, true).expect_err("refused").to_string();
    assert!(m.contains("student and teacher agree already"), "{m}");
}

#[test]
fn gradients_of_the_whole_model_are_the_slopes_of_its_loss() {
    // Along d, a random half of a tensor's gradient scaled to length 1, the slope is ⟨gradient, d⟩. The loss of 16 tokens is
    // a sum of about 10² nats, known to some 10⁻⁵ (each term to 2⁻²⁴ of it, the sum rounded to f32 once), and the step moves it
    // by 0.05 to 0.5: slopes are measured to 2·10⁻⁴ or better. The step is at most 0.05 in tensors of length 0.5 to 13, so that
    // the third derivative adds no more. Wrong wiring, a branch lost or counted twice, is of the order of 1.
    const TOLERANCE: f64 = 1e-3;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (family, tied, bias) in [
        ("llama", true, true),
        ("qwen2", true, false),
        ("qwen3", false, false),
        ("bitnet", true, false),
        ("lfm2", true, false),
    ] {
        let config = tiny::family(
            family,
            json!({"tie_word_embeddings": tied, "head_dim": 32, "attention_bias": bias, "mlp_bias": bias}),
        );
        let student = student(&config, "float", Gradient::Ste, ScaleRule::Absmax);
        let bench = Bench { inside: true, ..Bench::new(&config) };
        let (_, gradients) = bench.gradients(&student).expect("a gradient each");
        for (variable, gradient) in student.variables().iter().zip(&gradients) {
            let half: Vec<f32> =
                (0..gradient.elem_count()).map(|_| f32::from(rng.random::<bool>())).collect();
            let half = Tensor::from_vec(half, gradient.shape(), &Device::Cpu).expect("mask");
            let d = (gradient * half).expect("masked");
            let slope =
                f64::from(d.sqr().and_then(|s| s.sum_all()?.to_scalar::<f32>()).expect("a sum")).sqrt();
            let step = (0.25 / slope).min(0.05);
            let start = variable.var.as_tensor().detach().copy().expect("a copy");
            let at = |sign: f64| {
                let moved = (&start + (&d * (sign * step / slope)).expect("a step")).expect("moved");
                variable.var.set(&moved).expect("same shape");
                bench.gradients(&student).expect("a gradient each").0
            };
            let measured = (at(1.0) - at(-1.0)) / (2.0 * step);
            variable.var.set(&start).expect("same shape");
            assert!(
                (measured / slope - 1.0).abs() < TOLERANCE,
                "{family} {}: {measured} measured, {slope} from backward",
                variable.name
            );
        }
    }
}

#[test]
fn layers_that_are_computed_again_give_the_same_loss_and_gradients_to_the_bit() {
    for (family, tied, weights) in [
        ("llama", true, "int4-g32"),
        ("qwen2", true, "int3-affine-g32"),
        ("qwen3", false, "ternary-tensor"),
        ("bitnet", true, "ternary-tensor"),
        ("lfm2", true, "int4-g32"),
    ] {
        let changes = json!({"tie_word_embeddings": tied, "head_dim": 32, "num_hidden_layers": 3});
        let config = tiny::family(family, changes);
        let student = student(&config, weights, Gradient::Lsq, ScaleRule::Mse);
        for inside in [false, true] {
            let kept = Bench { inside, ..Bench::new(&config) };
            let again = Bench { inside, recompute: true, ..Bench::new(&config) };
            let [kept, again] =
                [kept, again].map(|bench| bench.gradients(&student).expect("a gradient each"));
            assert_eq!(kept.0, again.0, "{family}");
            for ((kept, again), variable) in kept.1.iter().zip(&again.1).zip(student.variables()) {
                let bits = |t: &Tensor| crate::ops::check::bits(t).expect("values");
                assert!(bits(kept) == bits(again), "{family}, inside {inside}: {}", variable.name);
            }
        }
    }
}

#[test]
fn gradients_that_are_told_as_they_come_are_the_same_bits_and_come_layer_by_layer() {
    for (family, tied, weights) in
        [("llama", true, "int4-g32"), ("qwen3", false, "int3-affine-g32"), ("lfm2", true, "float")]
    {
        let changes = json!({"tie_word_embeddings": tied, "head_dim": 32, "num_hidden_layers": 3});
        let config = tiny::family(family, changes);
        let gradient = if weights == "float" { Gradient::Ste } else { Gradient::Lsq };
        let student = student(&config, weights, gradient, ScaleRule::Mse);
        let place = |name: &str| student.variables().iter().position(|v| v.name == name).expect(name);
        for recompute in [false, true] {
            let bench = Bench { recompute, ..Bench::new(&config) };
            let (_, want) = bench.gradients(&student).expect("a gradient each");
            let told = bench.told(&student).expect("a gradient each");
            assert_eq!(told.len(), want.len(), "{family}: each is told once");
            for (index, gradient) in &told {
                let bits = |t: &Tensor| crate::ops::check::bits(t).expect("values");
                let name = &student.variables()[*index].name;
                assert!(bits(gradient) == bits(&want[*index]), "{family}, again {recompute}: {name}");
            }
            // The last layer's are through before the backward pass has left the one before it.
            let at = |name: &str| told.iter().position(|(index, _)| *index == place(name)).expect(name);
            let last = (0..3).map(|layer| format!("model.layers.{layer}.")).map(|layer| {
                let of_layer =
                    |(index, _): &&(usize, Tensor)| student.variables()[*index].name.starts_with(&layer);
                let places =
                    told.iter().filter(of_layer).map(|(index, _)| at(&student.variables()[*index].name));
                (places.clone().min().expect("a variable"), places.max().expect("a variable"))
            });
            let spans: Vec<(usize, usize)> = last.collect();
            assert!(
                spans[2].1 < spans[1].0 && spans[1].1 < spans[0].0,
                "{family}, again {recompute}: {spans:?}"
            );
            assert!(at("model.embed_tokens.weight") > spans[0].0, "{family}: the table comes last");
        }
    }
}

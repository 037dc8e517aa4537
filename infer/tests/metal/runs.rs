//! Whole models on the emulator against the CPU runtime: prompts of several lengths, tokens decoded after them, and the ids
//! that a greedy choice writes.

use std::ops::ControlFlow;
use std::path::Path;

use qat_infer::cpu::{self, KvType, RunOptions};
use qat_infer::files::Activations;
use qat_infer::metal::{self, Options};
use qat_metal_host::{Mode, available};
use qat_quant::Format;

use crate::emulator::Emulator;
use crate::models::{fixtures, format, mixed, tiny};
use crate::random_model::RandomModel;

/// Tokens decoded after each prompt.
const DECODED: usize = 16;

fn ids(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 53 + 7) % vocab) as u32).collect()
}

fn norm(x: impl Iterator<Item = f32>) -> f64 {
    x.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    norm(a.iter().zip(b).map(|(a, b)| a - b))
}

fn argmax(logits: &[f32]) -> u32 {
    let first_greatest = |best: usize, id: usize| if logits[id] > logits[best] { id } else { best };
    (0..logits.len()).fold(0, first_greatest) as u32
}

/// The logits after a prompt and after each of the tokens that the first model wrote greedily, for models that read the
/// same text.
struct Texts {
    written: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

/// Lets the CPU write, or read what was `written`.
fn on_cpu(model: &cpu::Model, kv: KvType, prompt: &[u32], written: Option<&[u32]>) -> Texts {
    let options = RunOptions { threads: Some(1), ..RunOptions::new(prompt.len() + DECODED).with_kv(kv) };
    let mut session = cpu::Session::new(&model.decoder, &options).expect("a session");
    let mut logits = vec![session.prefill(prompt).expect("a prompt").to_vec()];
    let mut own = vec![argmax(&logits[0])];
    for at in 0..DECODED {
        let id = written.map_or(own[at], |written| written[at]);
        logits.push(session.step(id).expect("a token").to_vec());
        own.push(argmax(&logits[at + 1]));
    }
    Texts { written: own, logits }
}

/// A directory opened twice.
struct Both {
    name: String,
    cpu: cpu::Model,
    /// The same without any rounding on the way: inputs of products as they are.
    exact: cpu::Model,
    metal: metal::Model,
}

impl Both {
    fn open(name: impl Into<String>, path: &Path) -> Self {
        let mut exact = cpu::Model::open(path).expect("a model");
        exact.set_activations(Activations::Float);
        let cpu = cpu::Model::open(path).expect("a model");
        Self { name: name.into(), cpu, exact, metal: metal::Model::open(path).expect("a model") }
    }

    /// Prompts of these lengths, each in a text of its own, and the tokens after them.
    ///
    /// # The bound
    ///
    /// Both runtimes sum the same products in f32 in different orders: 1e-5 of the logits' norm, as between the CPU and
    /// transformers. On the way some values are rounded (keys and values to f16 or int8, inputs to int8), and a value
    /// within such a difference of a tie is rounded the other way: a whole step apart, instead of the half at most that
    /// rounding costs. With differences of 1e-6 and steps of 5e-4 (f16) to 1e-2 (int8) of a value that happens to less
    /// than one value in 250, whose errors of a step have (√12 · √(1/250) = 0.22) a quarter of the norm of those that
    /// rounding all of them makes. What rounding makes is measured: by the CPU, with and without.
    fn agree(&self, kv: KvType, prompts: &[usize], mode: Mode) {
        let vocab = self.cpu.decoder.config.vocab_size;
        let mut worst: f64 = 0.0;
        for tokens in prompts {
            let prompt = ids(*tokens, vocab);
            let want = on_cpu(&self.cpu, kv, &prompt, None);
            let exact = on_cpu(&self.exact, KvType::F32, &prompt, Some(&want.written));
            let options = Options::new(tokens + DECODED).with_kv(kv);
            let mut session =
                metal::Session::new(&self.metal.decoder, options, Emulator::new(mode)).expect("a session");
            for at in 0..=DECODED {
                let found = match at {
                    0 => session.prefill(&prompt),
                    _ => session.step(want.written[at - 1]),
                };
                let found = found.expect("logits");
                let what = format!("{}, {kv}, token {at} after a prompt of {tokens}", self.name);
                assert!(found.iter().all(|logit| logit.is_finite()), "{what}");
                let size = norm(want.logits[at].iter().copied());
                let bound = 1e-5 * size + 0.25 * distance(&want.logits[at], &exact.logits[at]);
                let apart = distance(found, &want.logits[at]);
                assert!(apart <= bound, "{what}: {apart:e} apart, of {size:e}; want {bound:e}");
                assert_eq!(argmax(found), want.written[at], "{what}");
                worst = worst.max(apart / bound);
            }
            assert_eq!(session.position(), tokens + DECODED);
        }
        println!("{}, {kv}: at most {worst:.3} of the bound", self.name);
    }

    /// The ids that the GPU writes by itself are those of the CPU.
    fn write_the_same(&self, kv: KvType, tokens: usize) {
        let prompt = ids(tokens, self.cpu.decoder.config.vocab_size);
        let want = on_cpu(&self.cpu, kv, &prompt, None);
        let options = Options::new(tokens + DECODED).with_kv(kv);
        let device = Emulator::new(Mode::VALUE);
        let mut session = metal::Session::new(&self.metal.decoder, options, device).expect("a session");
        let before = session.device().written;
        let mut found = Vec::new();
        let mut keep = |id| {
            found.push(id);
            ControlFlow::Continue(())
        };
        session.greedy(&prompt, DECODED + 1, &mut keep).expect("tokens");
        assert_eq!(found, want.written, "{}, {kv}", self.name);
        // The prompt and where it stands; a run for it, and for each token that was read.
        let device = session.device();
        assert_eq!((device.written - before, device.runs), (4 * tokens + 8, 1 + DECODED), "{}", self.name);
    }
}

#[test]
fn the_fixtures_say_on_the_gpu_what_they_say_on_the_cpu() {
    if !available() {
        return;
    }
    for (name, path) in fixtures() {
        let both = Both::open(name, &path);
        both.agree(KvType::F16, &[1, 5, 9, 40], Mode::VALUE);
        both.agree(KvType::Int8, &[5, 40], Mode::VALUE);
        both.write_the_same(KvType::F16, 9);
    }
}

#[test]
fn models_in_every_format_say_on_the_gpu_what_they_say_on_the_cpu() {
    if !available() {
        return;
    }
    for format in Format::all() {
        let random = RandomModel::new(&tiny(), format, Activations::Float);
        Both::open(format.to_string(), &random.path).agree(KvType::F16, &[5, 9], Mode::VALUE);
    }
}

#[test]
fn inputs_are_rounded_to_int8_on_the_gpu_as_on_the_cpu() {
    if !available() {
        return;
    }
    for spelling in ["int4-g32", "int8-g32", "ternary-tensor", "int3-affine-g64"] {
        let random = RandomModel::new(&tiny(), format(spelling), Activations::Int8Token);
        let both = Both::open(format!("{spelling}, int8 inputs"), &random.path);
        both.agree(KvType::F16, &[1, 9], Mode::VALUE);
        both.agree(KvType::Int8, &[5], Mode::VALUE);
    }
}

#[test]
fn a_model_of_mixed_formats_agrees_too() {
    if !available() {
        return;
    }
    let mixed = mixed();
    let both = Both::open("mixed", &mixed.path);
    both.agree(KvType::F16, &[1, 5, 40], Mode::VALUE);
    both.write_the_same(KvType::Int8, 5);
}

#[test]
fn no_kernel_of_a_model_does_what_it_must_not() {
    if !available() {
        return;
    }
    let random = RandomModel::new(&tiny(), format("int4-g32"), Activations::Float);
    let both = Both::open("checked", &random.path);
    let options = Options::new(64).with_logit_rows(3);
    let device = Emulator::new(Mode::CHECKED);
    let mut session = metal::Session::new(&both.metal.decoder, options, device).expect("a session");
    let prompt = ids(5, 301);
    session.prefill(&prompt).expect("a prompt");
    session.greedy(&prompt[..1], 3, &mut |_| ControlFlow::Continue(())).expect("tokens");
    session.top(&prompt[..1], 4).expect("tokens");
    let hidden = session.hidden(&prompt[..3]).expect("hidden states");
    session.logits(&hidden, 0, 3).expect("logits");
}

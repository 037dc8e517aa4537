//! Whole models on the emulator against the CPU runtime: prompts of several lengths, tokens decoded after them, and the ids
//! that a greedy choice writes.

use std::ops::ControlFlow;
use std::path::Path;

use qat_infer::Runtime as _;
use qat_infer::cpu::{self, Cpu, KvType, RunOptions};
use qat_infer::eval::{Protocol, Text, Windows, score};
use qat_infer::files::Activations;
use qat_infer::metal::{self, Metal, Options, Pass, Tail};
use qat_metal_host::{Mode, available};
use qat_quant::Format;

use super::emulator::Emulator;
use super::models::{fixtures, format, mixed, others, tiny};
use crate::random_model::RandomModel;

/// Tokens decoded after each prompt.
const DECODED: usize = 16;

/// The least share of tokens that are rounded alike where steps are those of 8 bits: a value within 1e-6 of a tie is one in
/// four thousand, about as many as there are in a text; so that in some texts there is one, and nothing is alike after it.
const ALIKE: f64 = 1.0 / 3.0;

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

    /// Prompts of these lengths, each in a text of its own, and the tokens after them; gives the share of tokens at which
    /// nothing was rounded differently.
    ///
    /// # The bound
    ///
    /// Both runtimes sum the same products in f32 in different orders: logits are 1e-5 of their norm apart, as those of the
    /// CPU and of transformers. But on the way values are rounded (keys and values to f16 or int8, inputs to int8), and
    /// one that lies as near to a tie as the sums are apart is rounded the other way. From there on the two texts round
    /// different values: at worst their errors of rounding are independent, and the distance has √2 times the norm of
    /// either; 2, as norms of single draws scatter. What rounding does is measured: by the CPU, with and without.
    fn agree(&self, kv: KvType, prompts: &[usize]) -> f64 {
        let vocab = self.cpu.decoder.config.vocab_size;
        let (mut worst, mut alike): (f64, usize) = (0.0, 0);
        for tokens in prompts {
            let prompt = ids(*tokens, vocab);
            let want = on_cpu(&self.cpu, kv, &prompt, None);
            let exact = on_cpu(&self.exact, KvType::F32, &prompt, Some(&want.written));
            let options = Options::new(tokens + DECODED).with_kv(kv);
            let mut session = metal::Session::new(&self.metal.decoder, options, Emulator::new(Mode::VALUE))
                .expect("a session");
            for at in 0..=DECODED {
                let found = match at {
                    0 => session.prefill(&prompt),
                    _ => session.step(want.written[at - 1]),
                };
                let found = found.expect("logits");
                let what = format!("{}, {kv}, token {at} after a prompt of {tokens}", self.name);
                assert!(found.iter().all(|logit| logit.is_finite()), "{what}");
                let size = norm(want.logits[at].iter().copied());
                let rounding = distance(&want.logits[at], &exact.logits[at]);
                let (sums, apart) = (1e-5 * size, distance(found, &want.logits[at]));
                let bound = sums + 2.0 * rounding;
                assert!(apart <= bound, "{what}: {apart:e} apart, of {size:e}; want {bound:e}");
                assert_eq!(argmax(found), want.written[at], "{what}");
                (worst, alike) = (worst.max(apart / size), alike + usize::from(apart <= sums));
            }
            assert_eq!(session.position(), tokens + DECODED);
        }
        let share = alike as f64 / (prompts.len() * (DECODED + 1)) as f64;
        println!(
            "{}, {kv}: at most {worst:.1e} apart, {:.0} % of tokens rounded alike",
            self.name,
            100.0 * share
        );
        share
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
        both.agree(KvType::F16, &[1, 5, 9, 40]);
        assert!(both.agree(KvType::Int8, &[5, 40]) >= ALIKE, "{name}");
        both.write_the_same(KvType::F16, 9);
    }
}

#[test]
fn layers_of_other_kinds_say_on_the_gpu_what_they_say_on_the_cpu() {
    if !available() {
        return;
    }
    for (name, path) in others() {
        let both = Both::open(name, &path);
        // Shorter than a convolution's memory, and longer.
        let alike = both.agree(KvType::F16, &[1, 2, 5, 40]);
        // Inputs of 8 bits have steps as ALIKE is meant for; keys and values of f16 alone have a tie in most texts.
        assert!(alike >= ALIKE || !name.starts_with("bitnet"), "{name}");
        both.write_the_same(KvType::F16, 9);
    }
}

#[test]
fn a_long_past_is_read_in_passes_and_attended_in_parts() {
    if !available() {
        return;
    }
    for (name, path) in fixtures().iter().take(1) {
        let both = Both::open(*name, path);
        let script = metal::Script::new(&both.metal.decoder, Options::new(400)).expect("a script");
        let pass = Pass::Body { tokens: 1, past: 300, tail: Tail::Logits };
        let list = script.list(pass).expect("a list");
        assert!(list.calls().iter().any(|call| call.launch.kernel == "attention_join"));
        // One whole pass, and a rest.
        both.agree(KvType::F16, &[300]);
    }
    // What is kept of a window of 16 tokens and two passes has been gone around.
    for (name, path) in others().iter().filter(|(name, _)| *name == "gemma3") {
        let both = Both::open(*name, path);
        let script = metal::Script::new(&both.metal.decoder, Options::new(600)).expect("a script");
        let lengths: Vec<u64> = script.buffers().iter().map(|buffer| buffer.bytes).collect();
        let keys = |positions| 2 * (positions * both.metal.decoder.config.kv_size()) as u64;
        assert!(lengths.contains(&keys(16 + 512)) && lengths.contains(&keys(600)), "{lengths:?}");
        both.agree(KvType::F16, &[570]);
    }
}

#[test]
fn models_in_every_format_say_on_the_gpu_what_they_say_on_the_cpu() {
    if !available() {
        return;
    }
    for format in Format::all() {
        let random = RandomModel::new(&tiny(), format, Activations::Float);
        let both = Both::open(format.to_string(), &random.path);
        assert!(both.agree(KvType::Int8, &[5, 9]) >= ALIKE, "{format}");
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
        assert!(both.agree(KvType::F16, &[1, 9]) >= ALIKE, "{spelling}");
        assert!(both.agree(KvType::Int8, &[5]) >= ALIKE, "{spelling}");
    }
}

#[test]
fn a_model_of_mixed_formats_agrees_too() {
    if !available() {
        return;
    }
    let mixed = mixed();
    let both = Both::open("mixed", &mixed.path);
    both.agree(KvType::F16, &[1, 5, 40]);
    both.write_the_same(KvType::Int8, 5);
}

#[test]
fn no_kernel_of_a_model_does_what_it_must_not() {
    if !available() {
        return;
    }
    let random = RandomModel::new(&tiny(), format("int4-g32"), Activations::Float);
    let model = metal::Model::open(&random.path).expect("a model");
    let options = Options::new(64).with_logit_rows(3);
    let mut session =
        metal::Session::new(&model.decoder, options, Emulator::new(Mode::CHECKED)).expect("a session");
    let prompt = ids(9, 301);
    session.prefill(&prompt).expect("a prompt");
    session.greedy(&prompt[..1], 3, &mut |_| ControlFlow::Continue(())).expect("tokens");
    session.top(&prompt[..1], 4).expect("tokens");
    let hidden = session.hidden(&prompt[..3]).expect("hidden states");
    session.logits(&hidden, 0, 3).expect("logits");
}

#[test]
fn a_text_is_scored_on_the_gpu_as_on_the_cpu() {
    if !available() {
        return;
    }
    for (_, path) in fixtures().iter().take(1) {
        let (on_cpu, on_metal) =
            (cpu::Model::open(path).expect("a model"), metal::Model::open(path).expect("a model"));
        let text = "The small model runs on the phone. Count: 1, 23, 456 and 7890! It's  spaced";
        let text = Text::encode(&on_cpu.tokenizer().expect("a tokenizer"), text).expect("a text");
        let windows = Windows::new(&text, Protocol { ctx: 20, bos: None }).expect("windows");
        assert!(windows.count() > 1);
        let device = Metal { description: Default::default(), open: || Ok(Emulator::new(Mode::VALUE)) };
        let mut cpu = Cpu.sequence(&on_cpu.decoder, 20, KvType::F16).expect("a session");
        let mut gpu = device.sequence(&on_metal.decoder, 20, KvType::F16).expect("a session");
        let found = score(&mut *gpu, Some(&mut *cpu), &windows, &mut |_, _| ()).expect("a score");
        let versus = found.versus.expect("a reference");
        // Logits that are 2e-4 of a few units apart: their squares are what the divergence is made of.
        assert!(versus.kl.mean.abs() < 1e-6 && versus.delta_ln_ppl.mean.abs() < 1e-4, "{versus:?}");
        assert_eq!((versus.same_top1, found.tokens), (1.0, windows.count() * 19));
        assert!(versus.kl.mean != 0.0, "it was another runtime");
    }
}

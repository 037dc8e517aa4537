//! `qat doctor`: what this machine has to run models with, and whether it computes what it should.
//!
//! The self-test makes small models of random weights, one in each format, and holds what every set of instructions, and
//! the GPU where there is one, makes of them against the portable processor code.

use std::path::Path;

use anyhow::{Context as _, bail};
use qat_infer::cpu::{self, KvType};
use qat_infer::energy::Meter;
use qat_infer::files::Activations;
use qat_infer::{Choice, Chosen, Opened, Runtime, Sequence, with_runtime};
use qat_quant::{Format, ScaleType, kernels::Isa};

use crate::{Ending, init, table};

/// What logits of two runtimes may differ by, for logits of about one: both sum in f32, in another order, and keep keys
/// and values in f16, where a difference in the last bit of an f32 can become one in the last of an f16 (2⁻¹¹).
const TOLERANCE: f32 = 4e-3;
/// Tokens that are read at once and one by one.
const READ: [usize; 2] = [21, 6];

/// Tokens that a session has room for.
const CONTEXT: usize = 64;

/// Metal, or why there is none.
type Gpu = Result<Chosen, qat_infer::Error>;

/// Runs the command.
pub fn run() -> anyhow::Result<Ending> {
    println!("{}", machine()?);
    let folder = tempfile::tempdir().context("a folder for the self-test")?;
    let gpu = Choice::Metal.open();
    let mut header = vec!["format", "inputs"];
    header.extend(judged(gpu.is_ok()));
    let mut results = table::with_header(&header, &[0, 1]);
    let mut wrong = Vec::new();
    for format in formats()? {
        let dir = folder.path().join(format.to_string());
        init::tiny(format, &dir)?;
        for (inputs, name) in [(Activations::Float, "float"), (Activations::Int8Token, "int8")] {
            let mut row = vec![format.to_string(), name.to_owned()];
            for (who, outcome) in check(&dir, inputs, &gpu)? {
                row.push(
                    outcome.as_ref().map_or("FAILED".to_owned(), |difference| format!("{difference:.0e}")),
                );
                wrong.extend(outcome.err().map(|why| format!("{who}, {format}, {name} inputs: {why}")));
            }
            results.add_row(row);
        }
    }
    println!(
        "\nSelf-test: how far logits are from those of the portable code, for small models of random weights.\n{results}"
    );
    if let Err(why) = &gpu {
        println!("Metal was not tested ({why}). Its kernels are tested on an emulator, by cargo test.");
    }
    if !wrong.is_empty() {
        bail!("this machine doesn't compute what it should; please report it:\n{}", wrong.join("\n"));
    }
    println!("All is well.");
    Ok(Ending::Done)
}

/// Whoever is held against the portable code.
fn judged(gpu: bool) -> Vec<&'static str> {
    let tiers = Isa::available().into_iter().skip(1).map(Isa::name);
    tiers.chain(gpu.then_some("metal")).collect()
}

/// What there is.
fn machine() -> anyhow::Result<comfy_table::Table> {
    let mut table = table::lines();
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row("qat", env!("CARGO_PKG_VERSION").to_owned());
    row("system", format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH));
    row("processor", qat_infer::bench::cpu_name());
    row("threads", std::thread::available_parallelism().map_or(1, usize::from).to_string());
    let tiers: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    row("energy", Meter::open().map_or_else(|why| format!("not measured: {why}"), |meter| meter.covers()));
    row("instructions", format!("{} (of {})", Isa::active()?.name(), tiers.join(", ")));
    describe_gpu(&mut row);
    let [device, _] = with_runtime!(&Choice::Auto.open()?, runtime => runtime.describe())?;
    row("--device auto", format!("{device} to run models; qat train says its own at its start"));
    Ok(table)
}

#[cfg(target_os = "macos")]
fn describe_gpu(row: &mut impl FnMut(&str, String)) {
    match qat_infer::metal::Chip::describe() {
        Ok(gpu) => {
            let family = gpu.family.map_or("before Apple 7: not enough".to_owned(), |n| format!("Apple {n}"));
            row("GPU", format!("{} ({}, family {family})", gpu.name, gpu.architecture));
            row("working-set limit", table::bytes(gpu.working_set));
            row("longest buffer", table::bytes(gpu.longest_buffer));
            row(
                "Metal kernels",
                "simdgroup sums and 8x8 matrices, f32 sums; compiled here when first used".into(),
            );
        }
        Err(e) => row("GPU", e.to_string()),
    }
}

#[cfg(not(target_os = "macos"))]
fn describe_gpu(row: &mut impl FnMut(&str, String)) {
    row("GPU", "none that Metal could use: Metal needs macOS".into());
}

/// Each kind of block once.
fn formats() -> anyhow::Result<Vec<Format>> {
    let mut formats = vec![
        Format::Int4G32,
        Format::Int8G32,
        Format::TernaryG64,
        Format::TernaryG256,
        Format::TernaryTensor,
    ];
    for (bits, group, scale) in [
        (2, 64, ScaleType::F16),
        (3, 32, ScaleType::BF16),
        (4, 64, ScaleType::F16),
        (8, 128, ScaleType::BF16),
    ] {
        formats.push(Format::Affine(qat_quant::Affine::new(bits, group, scale)?));
    }
    Ok(formats)
}

/// Who was checked, and the greatest difference of logits that was seen, or what was wrong.
type Checked = (&'static str, Result<f32, String>);

/// Everyone's logits of a model against those of the portable code, which is the first of the tiers.
fn check(dir: &Path, inputs: Activations, gpu: &Gpu) -> anyhow::Result<Vec<Checked>> {
    let (portable, tiers) = (Isa::available()[0], &Isa::available()[1..]);
    let expected = on_cpu(dir, inputs, portable)?;
    let mut checked = Vec::new();
    for isa in tiers {
        let found = on_cpu(dir, inputs, *isa)?;
        // Products of int8 are exact, so that tiers agree to the bit; sums of floats may be taken in another order.
        let tolerance = if inputs == Activations::Float { TOLERANCE } else { 0.0 };
        checked.push((isa.name(), compare(&expected, &found, tolerance)));
    }
    if let Ok(gpu) = gpu {
        let found = with_runtime!(gpu, runtime => on(runtime, dir, inputs))?;
        checked.push(("metal", compare(&expected, &found, TOLERANCE)));
    }
    Ok(checked)
}

fn compare(expected: &[f32], found: &[f32], tolerance: f32) -> Result<f32, String> {
    let mut greatest = 0f32;
    for (at, (expected, found)) in expected.iter().zip(found).enumerate() {
        let difference = (expected - found).abs();
        if difference.is_nan() || difference > tolerance {
            return Err(format!("logit {at} is {found}, want {expected} within {tolerance:.0e}"));
        }
        greatest = greatest.max(difference);
    }
    Ok(greatest)
}

/// Logits of the model in `dir` on the processor, its products made by `isa`.
fn on_cpu(dir: &Path, inputs: Activations, isa: Isa) -> anyhow::Result<Vec<f32>> {
    let mut model = cpu::Model::open(dir)?;
    model.set_activations(inputs);
    let options = cpu::RunOptions::new(CONTEXT);
    logits(&mut cpu::Session::new(&model.decoder, &options)?.with_isa(isa))
}

/// Logits of the model in `dir` on a runtime.
fn on<R: Runtime>(runtime: &R, dir: &Path, inputs: Activations) -> anyhow::Result<Vec<f32>> {
    let mut model = Opened::<R::Matrix>::open(dir)?;
    model.set_activations(inputs);
    logits(&mut *runtime.sequence(&model.decoder, CONTEXT, KvType::F16)?)
}

/// Logits after a prompt, and after each of some tokens one by one.
fn logits(sequence: &mut dyn Sequence) -> anyhow::Result<Vec<f32>> {
    let vocab = sequence.vocab() as u32;
    let ids: Vec<u32> = (0..READ[0] + READ[1]).map(|n| (n as u32 * 37 + 5) % vocab).collect();
    let (prompt, rest) = ids.split_at(READ[0]);
    let mut all = sequence.prefill(prompt)?.to_vec();
    for id in rest {
        all.extend_from_slice(sequence.prefill(&[*id])?);
    }
    Ok(all)
}

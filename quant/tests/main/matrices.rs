//! Matrices to test with: seeded normal ones, adversarial ones, and those of the shared fixtures.

use std::{collections::BTreeMap, io::Write, path::PathBuf};

use qat_quant::{Format, ScaleRule, Scales, pack};

/// `n` draws from N(0, 1), by Box and Muller over a 64-bit linear congruential generator (Knuth's constants).
pub fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // In (0, 1]: the logarithm below stays finite.
        ((state >> 11) + 1) as f64 / (1u64 << 53) as f64
    };
    let mut draw = || ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    (0..n).map(|_| draw()).collect()
}

/// 2 rows of 256 weights that break naive quantizers, each with a name.
pub fn adversarial() -> Vec<(&'static str, Vec<f32>)> {
    const N: usize = 512;
    let of = |f: &dyn Fn(usize) -> f32| (0..N).map(f).collect::<Vec<f32>>();
    let noise = normal(7, N);
    vec![
        ("zeros", of(&|_| 0.0)),
        ("negative zeros", of(&|_| -0.0)),
        ("zeros of both signs", of(&|i| if i % 3 == 0 { -0.0 } else { 0.0 })),
        ("ones", of(&|_| 1.0)),
        ("minus ones", of(&|_| -1.0)),
        ("a constant that no scale type holds", of(&|_| 0.1)),
        ("a negative constant", of(&|_| -0.3)),
        ("equal peaks of both signs", of(&|i| if i % 2 == 0 { -2.5 } else { 2.5 })),
        ("f32 subnormals", of(&|i| f32::from_bits(i as u32) * if i % 2 == 0 { 1.0 } else { -1.0 })),
        ("below the least f16", of(&|i| noise[i] * 1e-9)),
        ("f16 subnormals", of(&|i| noise[i] * 1e-6)),
        ("huge", of(&|i| noise[i] * 1e30)),
        ("the largest floats", of(&|i| if i % 2 == 0 { f32::MAX } else { -f32::MAX })),
        ("the largest float beside the smallest", of(&|i| if i % 32 == 5 { f32::MAX } else { 1e-45 })),
        ("one outlier", of(&|i| if i == 77 { 1000.0 } else { noise[i] * 0.01 })),
        ("one weight among zeros", of(&|i| if i % 64 == 9 { -0.7 } else { 0.0 })),
        ("positive only", of(&|i| noise[i].abs() + 3.0)),
        ("narrow and far from zero", of(&|i| 100.0 + noise[i] * 1e-4)),
        ("on a ternary grid", of(&|i| 0.25 * (i % 3) as f32 - 0.25)),
        ("on an int4 grid", of(&|i| 0.0625 * ((i * 7) % 16) as f32 - 0.5)),
        ("normal", noise.clone()),
    ]
}

/// All of these; under Miri, which interprets every instruction, only the first of each `step`.
pub fn few<T>(all: impl IntoIterator<Item = T>, step: usize) -> impl Iterator<Item = T> {
    all.into_iter().step_by(if cfg!(miri) { step } else { 1 })
}

/// All formats; under Miri five of the affine ones, with every number of bits, group length and type of scale among them.
pub fn formats() -> impl Iterator<Item = Format> {
    let (affine, others): (Vec<_>, Vec<_>) =
        Format::all().into_iter().partition(|format| matches!(format, Format::Affine(_)));
    others.into_iter().chain(few(affine, 5))
}

/// Sum of squared differences, in f64.
pub fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

/// `w` packed by `rule` and decoded.
pub fn packed_and_decoded(format: Format, rule: ScaleRule, w: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let scales = Scales::choose(format, rule, w, rows, cols);
    pack("w", format, w, rows, cols, &scales).unwrap().as_ref().decode()
}

/// Bits of each value, so that −0 differs from 0 and NaN equals itself.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// A file or folder of the shared reference data, or `None` with a loud line where it isn't there.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    // Past the capture of the test harness, which hides what a passing test prints.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {} is missing", path.display());
    None
}

/// Tensors by name: shape and values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The float tensors of a Hugging Face directory of the fixtures.
pub fn fixture(name: &str) -> Option<Tensors> {
    let bytes = std::fs::read(shared(&format!("fixtures/{name}/model.safetensors"))?).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let bf16 = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    Some(
        file.iter()
            .map(|(name, view)| {
                assert_eq!(view.dtype(), safetensors::Dtype::BF16, "{name}");
                let values = view.data().as_chunks::<2>().0.iter().map(bf16).collect();
                (name.to_owned(), (view.shape().to_vec(), values))
            })
            .collect(),
    )
}

//! Products of one thread in GB/s of packed weights and GOP/s (a multiplication and an addition are two), for each tier
//! that this processor has, format and kind of activation.
//!
//! `cargo bench -p qat-quant` runs all; a name filters, as in `cargo bench -p qat-quant -- decode::int8`.

use std::hint::black_box;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use qat_quant::kernels::{self, CHUNK, FloatTokens, Int8Tokens, Isa, PANEL, Panels, Tokens};
use qat_quant::{Format, Packed, ScaleRule, Scales, pack};

const COLS: usize = 1024;
const FORMATS: [&str; 9] = [
    "int4-g32",
    "int8-g32",
    "int2-affine-g64",
    "int3-affine-g64",
    "int4-affine-g64",
    "int8-affine-g64",
    "ternary-g64",
    "ternary-g256",
    "ternary-tensor",
];

fn main() {
    divan::main();
}

/// Each tier with each format.
fn cases() -> Vec<String> {
    let tiers = Isa::available();
    tiers.iter().flat_map(|isa| FORMATS.map(|format| format!("{} {format}", isa.name()))).collect()
}

/// Matrix-vector: 64 Mi weights, more than any cache holds.
mod decode {
    use super::*;

    #[divan::bench(args = cases(), sample_count = 5)]
    fn int8(bencher: Bencher<'_, '_>, case: &str) {
        run(bencher, case, 1 << 16, 1, true);
    }

    #[divan::bench(args = cases(), sample_count = 5)]
    fn float(bencher: Bencher<'_, '_>, case: &str) {
        run(bencher, case, 1 << 16, 1, false);
    }
}

/// Matrix-matrix: 128 tokens through 1 Mi weights.
mod prefill {
    use super::*;

    #[divan::bench(args = cases(), sample_count = 5)]
    fn int8(bencher: Bencher<'_, '_>, case: &str) {
        run(bencher, case, 1024, 128, true);
    }

    #[divan::bench(args = cases(), sample_count = 5)]
    fn float(bencher: Bencher<'_, '_>, case: &str) {
        run(bencher, case, 1024, 128, false);
    }
}

/// What loading costs: blocks of 16 Mi weights to panels, on all threads.
#[divan::bench(args = FORMATS, sample_count = 5)]
fn repack(bencher: Bencher<'_, '_>, format: &str) {
    let Ok(format) = format.parse::<Format>() else { return };
    let packed = packed(format, 1 << 14);
    bencher.counter(BytesCount::new(packed.blocks.len())).bench_local(|| Panels::new(packed.as_ref()));
}

fn run(bencher: Bencher<'_, '_>, case: &str, rows: usize, n: usize, int8: bool) {
    let Some((tier, format)) = case.split_once(' ') else { return };
    let (Some(isa), Ok(format)) =
        (Isa::available().into_iter().find(|isa| isa.name() == tier), format.parse::<Format>())
    else {
        return;
    };
    let panels = Panels::new(packed(format, rows).as_ref());
    let x: Vec<f32> = (0..n * COLS).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
    let per_token = COLS / CHUNK;
    let (mut codes, mut sums) = (vec![0; x.len()], vec![0; n * per_token]);
    let mut scales = Vec::new();
    let mut float_sums = vec![0.0; sums.len()];
    for (token, x) in x.chunks(COLS).enumerate() {
        let sums = &mut sums[token * per_token..][..per_token];
        scales.push(kernels::round_int8(x, &mut codes[token * COLS..][..COLS], sums));
        kernels::float_sums(x, &mut float_sums[token * per_token..][..per_token]);
    }
    let tokens = match int8 {
        true => Tokens::Int8(Int8Tokens { codes: &codes, sums: &sums, scales: &scales }),
        false => Tokens::Float(FloatTokens { values: &x, sums: &float_sums }),
    };
    let bencher =
        bencher.counter(BytesCount::new(panels.bytes())).counter(ItemsCount::new(2 * rows * COLS * n));
    bencher.bench_local(|| {
        let mut total = 0.0;
        // As the runtime does: some panels at a time for one token, one for many.
        let mut together = [[0.0; PANEL]; 4];
        for index in (0..panels.panels()).step_by(if n == 1 { together.len() } else { 1 }) {
            if n == 1 {
                kernels::panels_of_token(isa, &panels, index, black_box(tokens), &mut together);
                total += together[0][0];
            } else {
                kernels::panel(isa, &panels, index, black_box(tokens), 0..n, &mut |_, outputs| {
                    total += outputs[0]
                });
            }
        }
        total
    });
}

fn packed(format: Format, rows: usize) -> Packed {
    // A few rows over and over: packing is not what is measured.
    const DISTINCT: usize = 64;
    let w: Vec<f32> = (0..DISTINCT * COLS).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 504.0).collect();
    let scales = Scales::choose(format, ScaleRule::Absmax, &w, DISTINCT, COLS);
    let packed = pack("w", format, &w, DISTINCT, COLS, &scales).expect("a packed matrix");
    Packed { rows, blocks: packed.blocks.repeat(rows / DISTINCT), ..packed }
}

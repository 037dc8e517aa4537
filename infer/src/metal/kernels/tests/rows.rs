//! Norms, rounding to int8, sums, gates and short convolutions.

use super::machine::{Build, Machine, f32s, u32s};
use super::{U, uniform};
use crate::metal::kernels::{Elementwise, RmsNorm, ShortConv};

/// Whether `found` is within `slack` of `want`, which is derived by the caller.
fn assert_near(found: f32, want: f64, slack: f64, what: &str) {
    assert!((f64::from(found) - want).abs() <= slack, "{what}: {found} for {want}, allowed {slack:e}");
}

/// The rows that are worked on, the residual with them.
fn summed(x: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
    match residual {
        Some(residual) => x.iter().zip(residual).map(|(x, r)| x + r).collect(),
        None => x.to_vec(),
    }
}

/// `x / sqrt(mean(x²) + eps) · weight` in f64.
fn normed(row: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
    let inverse = 1.0 / (squares / row.len() as f64 + f64::from(eps)).sqrt();
    row.iter().zip(weight).map(|(x, w)| f64::from(*x) * inverse * f64::from(*w)).collect()
}

/// A sum of `width` squares is off by at most `width` roundings, of which the root leaves half; the mean, eps, the root,
/// its inverse and two products add seven more at most, and fast math takes the root a little less exactly.
fn norm_slack(width: usize) -> f64 {
    (width as f64 / 2.0 + 16.0) * U
}

fn check(op: RmsNorm, seed: u64) {
    let (rows, width) = (op.rows as usize, op.width as usize);
    let mut x = uniform(seed, rows * width, 3.0);
    if rows > 1 {
        x[..width].fill(0.0);
    }
    let weight = uniform(seed + 1, width, 2.0);
    // Zero where x is, so that a row of zeros comes with a residual too.
    let residual: Vec<f32> =
        uniform(seed + 2, rows * width, 1.0).iter().zip(&x).map(|(r, x)| r * x).collect();
    let mut machine = Machine::new(op.dispatch(), 3).input(0, f32s(&x)).output(2, 4 * rows * width);
    if op.norm.is_some() {
        machine = machine.input(1, f32s(&weight));
    }
    if op.residual {
        machine = machine.in_out(4, f32s(&residual));
    }
    let sums = summed(&x, op.residual.then_some(&residual[..]));
    machine.verify(|_, after| {
        if op.residual {
            assert_eq!(after.f32s(4), sums, "the residual becomes the sum");
        }
        let out = after.f32s(2);
        for (row, found) in sums.chunks(width).zip(out.chunks(width)) {
            let (want, relative) = match op.norm {
                Some(eps) => (normed(row, &weight, eps), norm_slack(width)),
                None => (row.iter().map(|x| f64::from(*x)).collect(), 0.0),
            };
            if op.int8 {
                check_codes(found, &want, relative);
            } else {
                for (found, want) in found.iter().zip(&want) {
                    assert_near(*found, *want, relative * want.abs(), &format!("{op:?}"));
                }
            }
        }
    });
}

/// `found` is `scale · code` with the scale of the greatest of `want`, and codes nearest to `want`, which may be off by
/// `relative`.
fn check_codes(found: &[f32], want: &[f64], relative: f64) {
    let peak = want.iter().fold(0.0f64, |peak, x| peak.max(x.abs()));
    let scale = peak / 127.0;
    for (found, want) in found.iter().zip(want) {
        // Half a step, and what the value and the scale are off by; each of the division and the product rounds once.
        let slack = 0.5 * scale + (2.0 * relative + 4.0 * U) * peak;
        assert_near(*found, *want, slack, "rounded");
        let code = if scale > 0.0 { f64::from(*found) / scale } else { f64::from(*found) };
        assert!((code - code.round()).abs() < 127.0 * (relative + 4.0 * U) + 1e-9, "{code} is no code");
    }
}

#[test]
fn rows_are_normed_and_summed() {
    for (at, width) in [1, 4, 31, 32, 33, 64, 576, 1000, 2048].into_iter().enumerate() {
        for residual in [false, true] {
            let rows = [1, 3, 2][at % 3];
            let op = RmsNorm { rows, width, norm: Some(0.3), int8: false, residual };
            check(op, 10 * at as u64);
            check(RmsNorm { int8: true, ..op }, 10 * at as u64 + 3);
            check(RmsNorm { int8: true, norm: None, ..op }, 10 * at as u64 + 6);
        }
    }
}

#[test]
fn rounding_alone_gives_the_bits_of_the_cpu() {
    for (seed, width) in [7u32, 64, 100, 515].into_iter().enumerate() {
        let op = RmsNorm { rows: 3, width, norm: None, int8: true, residual: false };
        let width = width as usize;
        let mut x = uniform(seed as u64, 3 * width, 5.0);
        x[..width].fill(0.0);
        // Values half way between two codes, whose neighbours are even: with a peak of 127 the scale is 1.
        for (i, x) in x[width..2 * width].iter_mut().enumerate() {
            *x = if i == 0 { 127.0 } else { (i % 254) as f32 - 127.5 };
        }
        let mut want = x.clone();
        qat_quant::int8_tokens(&mut want, width);
        Machine::new(op.dispatch(), 3).input(0, f32s(&x)).output(2, 4 * x.len()).verify(|mode, after| {
            let found = after.f32s(2);
            if mode.build == Build::FastMath {
                // The zero's sign is not kept.
                assert!(found.iter().zip(&want).all(|(a, b)| a == b), "width {width}");
            } else {
                assert_eq!(found, want, "width {width}");
            }
        });
    }
}

#[test]
fn gates_and_sums_are_those_of_the_cpu() {
    for len in [1, 31, 255, 256, 257, 1000] {
        let (a, b) = (uniform(len as u64, len, 30.0), uniform(len as u64 + 1, len, 2.0));
        let mut a = a;
        (a[0], a[len - 1]) = (-100.0, 100.0);
        let run =
            |op: Elementwise| Machine::new(op.dispatch(len as u32), 2).in_out(0, f32s(&a)).input(1, f32s(&b));
        run(Elementwise::Add).verify(|_, after| {
            let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_eq!(after.f32s(0), want);
        });
        run(Elementwise::Relu2).verify(|_, after| {
            for ((found, a), b) in after.f32s(0).iter().zip(&a).zip(&b) {
                let want = f64::from(a.max(0.0)).powi(2) * f64::from(*b);
                assert_near(*found, want, 2.0 * U * want.abs(), "relu²");
            }
        });
        run(Elementwise::Gelu).verify(|_, after| {
            for ((found, a), b) in after.f32s(0).iter().zip(&a).zip(&b) {
                let (a, b) = (f64::from(*a), f64::from(*b));
                let twice = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (a + 0.044_715 * a.powi(3));
                let want = a / (1.0 + (-twice).exp()) * b;
                // As for silu, with an argument that is off by five roundings itself. Beyond −88 it stops: 6 · e⁻⁸⁸ · 2 is below 1e-37,
                // and the widest gate gives 100 · e⁻⁸⁸ · 2.
                let slack = (16.0 + 9.0 * twice.abs()) * U * want.abs() + 2e-36;
                assert_near(*found, want, slack, "gelu");
            }
        });
        run(Elementwise::Swiglu).verify(|_, after| {
            for ((found, a), b) in after.f32s(0).iter().zip(&a).zip(&b) {
                let (a, b) = (f64::from(*a), f64::from(*b));
                let want = a / (1.0 + (-a).exp()) * b;
                // The exponential is off by 4 + 4|x| roundings (Metal's table for fast math: 3 + |2x| ulp), the sum, the
                // quotient and the product by four more. Beyond 88 it stops: 100 · e⁻⁸⁸ · 2 is below 2e-36.
                assert_near(*found, want, (12.0 + 4.0 * a.abs()) * U * want.abs() + 2e-36, "silu");
            }
        });
    }
}

#[test]
fn a_convolution_goes_on_where_the_last_call_ended() {
    for (seed, (width, taps, tokens)) in
        [(1u32, 2u32, 1u32), (65, 3, 1), (7, 3, 2), (33, 4, 9)].into_iter().enumerate()
    {
        let op = ShortConv { width, taps, tokens };
        let [w, k, n] = [width, taps, tokens].map(|size| size as usize);
        let x = uniform(seed as u64, n * 3 * w, 2.0);
        let (kernel, recent) =
            (uniform(seed as u64 + 20, w * k, 1.0), uniform(seed as u64 + 40, (k - 1) * w, 4.0));
        for position in [0u32, 5] {
            // Counted from the oldest of the remembered rows, which at the beginning of a text are none.
            let product = |at: usize, channel: usize| match at.checked_sub(k - 1) {
                Some(token) => {
                    f64::from(x[token * 3 * w + channel]) * f64::from(x[token * 3 * w + 2 * w + channel])
                }
                None if position == 0 => 0.0,
                None => f64::from(recent[at * w + channel]),
            };
            Machine::new(op.dispatch(), 5)
                .input(0, f32s(&x))
                .input(1, f32s(&kernel))
                .output(2, 4 * n * w)
                .in_out(3, f32s(&recent))
                .input(4, u32s(&[position, tokens]))
                .verify(|_, after| {
                    for (at, found) in after.f32s(2).iter().enumerate() {
                        let (token, channel) = (at / w, at % w);
                        let terms = (0..k)
                            .map(|tap| f64::from(kernel[channel * k + tap]) * product(token + tap, channel));
                        let c = f64::from(x[token * 3 * w + w + channel]);
                        let size: f64 = terms.clone().map(f64::abs).sum();
                        // Each product rounds twice and each sum once, then c.
                        let slack = (f64::from(taps) + 4.0) * U * size * c.abs();
                        assert_near(*found, terms.sum::<f64>() * c, slack, "convolution");
                    }
                    for (at, found) in after.f32s(3).iter().enumerate() {
                        let want = product(n + at / w, at % w);
                        assert_near(*found, want, U * want.abs(), "what is remembered");
                    }
                });
        }
    }
}

//! GPTQ against its definition: after each column, what is left is the least-squares answer to what was rounded.

use qat_quant::{Feedback, Format, Rounded, ScaleRule, Scales, fake_quant, gptq, pack};

use crate::matrices::normal;

/// Second moments of `tokens` inputs whose neighbours correlate, `[cols, cols]`.
fn moments(seed: u64, tokens: usize, cols: usize) -> Vec<f64> {
    let noise = normal(seed, tokens * (cols + 3));
    let mut h = vec![0.0; cols * cols];
    for noise in noise.chunks(cols + 3) {
        let x: Vec<f64> = (0..cols)
            .map(|j| (0..4).map(|i| f64::from(noise[j + i])).sum::<f64>() * (1.0 + (j % 5) as f64))
            .collect();
        for (j, row) in h.chunks_mut(cols).enumerate() {
            row.iter_mut().zip(&x).for_each(|(h, v)| *h += x[j] * v);
        }
    }
    h
}

/// Solves a·x = b for symmetric positive definite a, by elimination.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for p in 0..n {
        for i in p + 1..n {
            let share = a[i][p] / a[p][p];
            let pivot_row = a[p].clone();
            a[i].iter_mut().zip(&pivot_row).for_each(|(v, p)| *v -= share * p);
            b[i] -= share * b[p];
        }
    }
    for p in (0..n).rev() {
        let known: f64 = (p + 1..n).map(|k| a[p][k] * b[k]).sum();
        b[p] = (b[p] - known) / a[p][p];
    }
    b
}

/// What the remaining weights of a row become when the first ones have moved by `moved`: −H_ff⁻¹·H_fq·moved.
fn made_good(h: &[f64], cols: usize, moved: &[f64]) -> Vec<f64> {
    let j = moved.len();
    let free = (j..cols).map(|r| (j..cols).map(|c| h[r * cols + c]).collect()).collect();
    let pull = (j..cols).map(|r| -(0..j).map(|c| h[r * cols + c] * moved[c]).sum::<f64>()).collect();
    solve(free, pull)
}

fn damped(h: &[f64], cols: usize, damping: f64) -> Vec<f64> {
    let mean = (0..cols).map(|j| h[j * (cols + 1)]).sum::<f64>() / cols as f64;
    let mut h = h.to_vec();
    (0..cols).for_each(|j| h[j * (cols + 1)] += damping * mean);
    h
}

fn rounded(format: &str, rule: ScaleRule, w: &[f32], cols: usize, h: &[f64]) -> Rounded {
    let feedback = Feedback::new("w", h.to_vec(), cols, 0.01).unwrap();
    gptq(format.parse().unwrap(), rule, w, w.len() / cols, cols, &feedback)
}

/// tr((W − Ŵ)·H·(W − Ŵ)ᵀ): the squared error of the products.
fn error(h: &[f64], w: &[f32], values: &[f32], cols: usize) -> f64 {
    let rows = w.chunks(cols).zip(values.chunks(cols));
    rows.map(|(w, v)| {
        let off: Vec<f64> = w.iter().zip(v).map(|(w, v)| f64::from(w - v)).collect();
        h.chunks(cols)
            .zip(&off)
            .map(|(h, o)| o * h.iter().zip(&off).map(|(h, p)| h * p).sum::<f64>())
            .sum::<f64>()
    })
    .sum()
}

#[test]
fn each_column_is_rounded_where_least_squares_has_put_it() {
    // Formats whose grid is chosen before the first column is rounded: one group a row, one scale a tensor.
    for (format, rows, cols) in [("ternary-tensor", 19, 48), ("int3-affine-g64", 5, 64), ("int4-g32", 33, 32)]
    {
        let (w, h) = (normal(3, rows * cols), moments(4, 200, cols));
        let found = rounded(format, ScaleRule::Mse, &w, cols, &h);
        let kind: Format = format.parse().unwrap();
        assert_eq!(found.scales, Scales::choose(kind, ScaleRule::Mse, &w, rows, cols), "{format}");
        let h = damped(&h, cols, 0.01);
        for row in 0..rows {
            let w: Vec<f64> = w[row * cols..][..cols].iter().map(|&w| w.into()).collect();
            let (mut moved, mut wanted) = (Vec::new(), Vec::new());
            for &weight in &w {
                let due = (weight + made_good(&h, cols, &moved)[0]) as f32;
                // The column alone, in a matrix of nothing but it: every group of the row has the same grid here.
                let group = found.scales.scale.len() / rows.max(1);
                let at = row * group..row * group + group;
                let own = |v: &[f32]| if v.len() > 1 { v[at.clone()].to_vec() } else { v.to_vec() };
                let grid = Scales { scale: own(&found.scales.scale), bias: own(&found.scales.bias) };
                let mut value = vec![0.0; cols];
                fake_quant(kind, &vec![due; cols], 1, cols, &grid, &mut value);
                wanted.push(value[0]);
                moved.push(f64::from(value[0]) - weight);
            }
            assert_eq!(found.values[row * cols..][..cols], wanted, "{format}, row {row}");
        }
    }
}

#[test]
fn its_products_are_nearer_to_the_float_ones_than_those_of_rounding() {
    // What GPTQ's table 1 shows on models holds for any inputs that correlate; here by a factor, so that noise can't hide it.
    for (format, factor) in [
        ("int4-g32", 0.5),
        ("int3-affine-g64", 0.5),
        ("int2-affine-g32", 0.5),
        ("ternary-g64", 0.6),
        ("ternary-tensor", 0.6),
    ] {
        let (rows, cols) = (40, 256);
        let (w, h) = (normal(5, rows * cols), moments(6, 600, cols));
        let kind: Format = format.parse().unwrap();
        let mut plain = vec![0.0; w.len()];
        fake_quant(kind, &w, rows, cols, &Scales::choose(kind, ScaleRule::Mse, &w, rows, cols), &mut plain);
        let found = rounded(format, ScaleRule::Mse, &w, cols, &h);
        let (ours, theirs) = (error(&h, &w, &found.values, cols), error(&h, &w, &plain, cols));
        assert!(ours < factor * theirs, "{format}: {ours} against {theirs}");
    }
}

#[test]
fn what_it_gives_is_on_the_grid_and_packs_as_it_is() {
    for format in Format::all() {
        let (rows, cols) = (7, 256);
        let (w, h) = (normal(7, rows * cols), moments(8, 300, cols));
        let found = rounded(&format.to_string(), ScaleRule::Mse, &w, cols, &h);
        let packed = pack("w", format, &found.values, rows, cols, &found.scales).unwrap();
        assert_eq!(packed.as_ref().decode(), found.values, "{format}");
    }
}

#[test]
fn latent_weights_round_to_what_it_gave_and_stay_near_what_they_were() {
    for format in ["int4-g32", "int3-affine-g64", "int2-affine-g128-bf16", "ternary-g64", "ternary-tensor"] {
        let (rows, cols) = (9, 256);
        let (w, h) = (normal(13, rows * cols), moments(14, 300, cols));
        let found = rounded(format, ScaleRule::Mse, &w, cols, &h);
        let kind: Format = format.parse().unwrap();
        let latent = found.latent(kind, &w, rows, cols);
        let mut values = vec![0.0; w.len()];
        fake_quant(kind, &latent, rows, cols, &found.scales, &mut values);
        assert_eq!(values, found.values, "{format}");
        let mut plain = vec![0.0; w.len()];
        fake_quant(kind, &w, rows, cols, &found.scales, &mut plain);
        for i in 0..w.len() {
            if plain[i] == found.values[i] {
                assert_eq!(latent[i], w[i], "{format}: weight {i} rounds here by itself");
            } else {
                assert!((latent[i] - w[i]).abs() < (found.values[i] - w[i]).abs(), "{format}: weight {i}");
            }
        }
    }
}

#[test]
fn without_correlation_it_is_rounding_by_the_rule() {
    let (rows, cols) = (21, 128);
    let w = normal(9, rows * cols);
    let unit: Vec<f64> = (0..cols * cols).map(|i| f64::from(u8::from(i % (cols + 1) == 0))).collect();
    for h in [unit, vec![0.0; cols * cols]] {
        for (format, rule) in [("int4-affine-g32", ScaleRule::Absmax), ("ternary-g64", ScaleRule::Mse)] {
            let kind: Format = format.parse().unwrap();
            let scales = Scales::choose(kind, rule, &w, rows, cols);
            let mut plain = vec![0.0; w.len()];
            fake_quant(kind, &w, rows, cols, &scales, &mut plain);
            assert_eq!(rounded(format, rule, &w, cols, &h), Rounded { scales, values: plain }, "{format}");
        }
    }
}

#[test]
fn a_column_that_no_input_reaches_takes_no_part() {
    let (rows, cols) = (4, 64);
    let w = normal(10, rows * cols);
    let mut h = moments(11, 200, cols);
    for k in 0..cols {
        (h[9 * cols + k], h[k * cols + 9]) = (0.0, 0.0);
    }
    let found = rounded("ternary-tensor", ScaleRule::Mse, &w, cols, &h);
    let mut plain = vec![0.0; w.len()];
    fake_quant(Format::TernaryTensor, &w, rows, cols, &found.scales, &mut plain);
    let column = |values: &[f32], j: usize| (0..rows).map(|row| values[row * cols + j]).collect::<Vec<_>>();
    assert_eq!(column(&found.values, 9), column(&plain, 9));
    // Others are moved.
    assert!((10..cols).any(|j| column(&found.values, j) != column(&plain, j)), "nothing else moved either");
}

#[test]
fn moments_that_are_no_numbers_are_refused_by_name() {
    let mut h = moments(12, 100, 32);
    h[33] = f64::NAN;
    let m = Feedback::new("model.layers.0.mlp.up_proj.weight", h, 32, 0.01).unwrap_err().to_string();
    assert_eq!(
        m,
        "model.layers.0.mlp.up_proj.weight: moment [1, 1] of its inputs is NaN, want a finite number"
    );
    // Two inputs that are always opposite, and no damping.
    let m = Feedback::new("w", vec![1.0, -2.0, -2.0, 1.0], 2, 0.0).unwrap_err().to_string();
    assert!(m.contains("no Cholesky factor") && m.contains("calibrate on more text"), "{m}");
}

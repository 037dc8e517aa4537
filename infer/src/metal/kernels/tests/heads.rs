//! What attention is to compute, in f64, with bounds for what f32 may make of it.
//!
//! Knows no kernel. Invariant: bounds are worst cases; they hold for every order of summation.

use half::f16;

use super::U;
use crate::cpu::KvType;

/// A number and how far from it a computation in f32 may end.
#[derive(Debug, Clone, Copy)]
pub struct Near {
    pub value: f64,
    pub slack: f64,
}

/// A head after its norm (weight and eps) and the rotation of its first elements (cosines, then sines: one number for each).
///
/// A sum of `n` squares is off by at most `n` roundings, of which the root leaves half; what follows of the norm adds at
/// most 16, and the rotation four of the two products' magnitudes.
pub fn turned(head: &[f32], norm: Option<(&[f32], f32)>, angles: Option<&[f32]>) -> Vec<Near> {
    let n = head.len();
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
    let (mut x, mut roundings) = (wide(head), 0.0);
    if let Some((weight, eps)) = norm {
        let squares: f64 = x.iter().map(|x| x * x).sum();
        let inverse = 1.0 / (squares / n as f64 + f64::from(eps)).sqrt();
        x = x.iter().zip(wide(weight)).map(|(x, w)| x * inverse * w).collect();
        roundings = n as f64 / 2.0 + 16.0;
    }
    let Some(angles) = angles else {
        return x.iter().map(|x| Near { value: *x, slack: roundings * U * x.abs() }).collect();
    };
    let half = angles.len() / 2;
    let (cos, sin) = (wide(&angles[..half]), wide(&angles[half..]));
    let turn = |i: usize| {
        if i >= 2 * half {
            return Near { value: x[i], slack: roundings * U * x[i].abs() };
        }
        let (l, r, c, s) = (x[i % half], x[i % half + half], cos[i % half], sin[i % half]);
        let (a, b) = if i < half { (l * c, -r * s) } else { (r * c, l * s) };
        Near { value: a + b, slack: (roundings + 4.0) * U * (a.abs() + b.abs()) }
    };
    (0..n).map(turn).collect()
}

/// A cache of keys or values: the bytes of its codes and of its scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    pub codes: Vec<u8>,
    pub scales: Vec<u8>,
}

fn f16_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]])
}

impl Side {
    /// A cache of `rows` rows of which every one holds something that must not be used: NaN, or the code −128 with a
    /// scale that is none.
    pub fn poisoned(kv: KvType, rows: usize, head_dim: usize) -> Self {
        let nan = f16::NAN.to_le_bytes();
        match kv {
            KvType::Int8 => Self { codes: vec![0x80; rows * head_dim], scales: nan.repeat(rows) },
            _ => Self { codes: nan.repeat(rows * head_dim), scales: Vec::new() },
        }
    }

    /// Keeps a row as the CPU's cache does.
    pub fn keep(&mut self, row: usize, values: &[f32]) {
        let n = values.len();
        if self.scales.is_empty() {
            for (code, x) in self.codes.as_chunks_mut::<2>().0[row * n..][..n].iter_mut().zip(values) {
                *code = f16::from_f32(x.clamp(-65_504.0, 65_504.0)).to_le_bytes();
            }
            return;
        }
        let peak = values.iter().fold(0f32, |peak, x| peak.max(x.abs()));
        let stored = f16::from_f32((peak / 127.0).min(65_504.0));
        let scale = stored.to_f32();
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        self.scales.as_chunks_mut::<2>().0[row] = stored.to_le_bytes();
        for (code, x) in self.codes[row * n..][..n].iter_mut().zip(values) {
            *code = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
        }
    }

    /// Takes over a row of `n` codes.
    pub fn copy(&mut self, row: usize, n: usize, from: &Self) {
        let width = if self.scales.is_empty() { 2 * n } else { n };
        self.codes[row * width..][..width].copy_from_slice(&from.codes[row * width..][..width]);
        if !self.scales.is_empty() {
            self.scales[2 * row..][..2].copy_from_slice(&from.scales[2 * row..][..2]);
        }
    }

    /// What a row stands for.
    pub fn row(&self, row: usize, n: usize) -> Vec<f64> {
        if self.scales.is_empty() {
            return (row * n..(row + 1) * n).map(|at| f16_at(&self.codes, at).to_f64()).collect();
        }
        let scale = f16_at(&self.scales, row).to_f64();
        self.codes[row * n..][..n].iter().map(|code| f64::from(*code as i8) * scale).collect()
    }

    /// Whether a row is the nearest that the cache can hold to `want`, give or take the slack.
    pub fn assert_kept(&self, row: usize, want: &[Near]) {
        let n = want.len();
        let round = |x: f64| f16::from_f64(x.clamp(-65_504.0, 65_504.0));
        if self.scales.is_empty() {
            for (at, Near { value, slack }) in want.iter().enumerate() {
                let found = f16_at(&self.codes, row * n + at);
                assert!(
                    round(value - slack) <= found && found <= round(value + slack),
                    "{found} for {value}"
                );
            }
            return;
        }
        let peak = |sign: f64| want.iter().fold(0f64, |peak, x| peak.max(x.value.abs() + sign * x.slack));
        let stored = f16_at(&self.scales, row);
        let (least, most) =
            (round(peak(-1.0) / 127.0 * (1.0 - 2.0 * U)), round(peak(1.0) / 127.0 * (1.0 + 2.0 * U)));
        assert!(least <= stored && stored <= most, "scale {stored} outside {least}..={most}");
        let inverse = if stored.to_f64() > 0.0 { 1.0 / stored.to_f64() } else { 0.0 };
        for (code, Near { value, slack }) in self.codes[row * n..][..n].iter().zip(want) {
            // The quotient is off by two roundings of at most 128.
            let code_of = |x: f64| (x * inverse).round_ties_even().clamp(-127.0, 127.0);
            let slack = slack + 256.0 * U / inverse.max(1e-30);
            let found = f64::from(*code as i8);
            assert!(
                code_of(value - slack) <= found && found <= code_of(value + slack),
                "code {found} for {value}"
            );
        }
    }
}

/// Softmax attention of a query over keys and values, each `[positions][head_dim]`, scores times `scale`.
///
/// A score is off by a rounding for each product and each sum, and by what its query is off by. A weight is off, relative
/// to the others, by twice the greatest error of a score, by the exponential (`4 + 4|x|` roundings with Metal's fast math,
/// the distances it is asked for adding up to the spread of the scores), and by the product with each rescaling: at most
/// three for each key and 64 for the joins and the division. The mean moves by at most twice as much as the weights, of
/// the greatest value.
pub fn attended(query: &[Near], scale: f64, keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<Near> {
    let n = query.len();
    let (mut scores, mut off) = (Vec::new(), 0.0f64);
    for key in keys {
        let pairs = query.iter().zip(key);
        scores.push(scale * pairs.clone().map(|(q, k)| q.value * k).sum::<f64>());
        let magnitude: f64 = pairs.clone().map(|(q, k)| (q.value * k).abs()).sum();
        let moved: f64 = pairs.map(|(q, k)| q.slack * k.abs()).sum();
        off = off.max(scale * ((n + 4) as f64 * U * magnitude + moved));
    }
    let most = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let least = scores.iter().fold(f64::INFINITY, |a, b| a.min(*b));
    let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let relative = 2.0 * off + (4.0 * (most - least) + 3.0 * keys.len() as f64 + 64.0) * U;
    let of_element = |d: usize| {
        let value = weights.iter().zip(values).map(|(w, v)| w * v[d]).sum::<f64>() / sum;
        let greatest = values.iter().fold(0f64, |a, v| a.max(v[d].abs()));
        Near { value, slack: 2.0 * relative * greatest }
    };
    (0..n).map(of_element).collect()
}

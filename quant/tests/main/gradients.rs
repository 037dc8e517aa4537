//! Gradients of the fake quantizer against finite differences of the function that they are the gradient of.
//!
//! Rounding has a true derivative of zero almost everywhere, so straight-through gradients belong to a surrogate: with
//! the rounding error r = q − clamp(u) held at its value, ŵ(w, s, b) = s·(clamp((w − b)/s) + r) + b. At the point
//! itself that is the fake quantizer; its derivatives are those of LSQ.

use qat_quant::{Format, ScaleRule, Scales, fake_quant, gradient};

use crate::matrices::{bits, normal};

const FORMATS: [&str; 7] = [
    "int4-g32",
    "int8-g32",
    "int2-affine-g64",
    "int3-affine-g32-bf16",
    "int4-affine-g128",
    "ternary-g64",
    "ternary-tensor",
];

/// A matrix, its scales and an incoming gradient, with a fifth of the weights outside the grid.
struct Case {
    format: Format,
    rows: usize,
    cols: usize,
    w: Vec<f32>,
    grad: Vec<f32>,
    scales: Scales,
}

impl Case {
    fn new(format: &str) -> Self {
        let format: Format = format.parse().unwrap();
        let (rows, cols) = (4, 256);
        let mut w = normal(21, rows * cols);
        let scales = Scales::choose(format, ScaleRule::Absmax, &w, rows, cols);
        for w in w.iter_mut().step_by(5) {
            *w *= 3.0;
        }
        Self { format, rows, cols, w, grad: normal(22, rows * cols), scales }
    }

    fn group(&self, i: usize) -> usize {
        self.format.group_len().map_or(0, |len| i / len)
    }

    /// Scale and bias of weight `i`.
    fn grid(&self, i: usize) -> (f64, f64) {
        let bias = self.scales.bias.get(self.group(i)).copied().unwrap_or(0.0);
        (self.scales.scale[self.group(i)].into(), bias.into())
    }

    fn levels(&self) -> (f64, f64) {
        let (lo, hi) = self.format.levels();
        (lo.into(), hi.into())
    }

    /// The surrogate ŵ at weight `i`, moved by `dw`, `ds` and `db` from where the rounding error is held.
    fn surrogate(&self, i: usize, dw: f64, ds: f64, db: f64) -> f64 {
        let ((s, b), (lo, hi), w) = (self.grid(i), self.levels(), f64::from(self.w[i]));
        let u = (w - b) / s;
        let r = u.round_ties_even().clamp(lo, hi) - u.clamp(lo, hi);
        (s + ds) * (((w + dw - b - db) / (s + ds)).clamp(lo, hi) + r) + b + db
    }

    /// Whether weight `i` lies within a thousandth of a step of a kink or a tie, where f32 and f64 may take different sides.
    fn is_near_a_kink(&self, i: usize) -> bool {
        let ((s, b), (lo, hi)) = (self.grid(i), self.levels());
        let u = (f64::from(self.w[i]) - b) / s;
        [u - lo, u - hi, u.fract().abs() - 0.5].iter().any(|d| d.abs() < 1e-3)
    }

    /// Moves weights away from kinks, by a hundredth of a step.
    fn away_from_kinks(mut self) -> Self {
        for i in 0..self.w.len() {
            if self.is_near_a_kink(i) {
                self.w[i] += 0.01 * self.grid(i).0 as f32;
                assert!(!self.is_near_a_kink(i));
            }
        }
        self
    }

    fn learned(&self) -> (Vec<f32>, gradient::ScaleGradients) {
        let mut dw = vec![f32::NAN; self.w.len()];
        let ds =
            gradient::learned(self.format, &self.w, self.rows, self.cols, &self.scales, &self.grad, &mut dw);
        (dw, ds)
    }
}

#[test]
fn the_surrogate_is_the_fake_quantizer_where_its_rounding_error_was_taken() {
    for format in FORMATS {
        let case = Case::new(format).away_from_kinks();
        let mut fake = vec![0.0; case.w.len()];
        fake_quant(case.format, &case.w, case.rows, case.cols, &case.scales, &mut fake);
        for (i, &fake) in fake.iter().enumerate() {
            let want = case.surrogate(i, 0.0, 0.0, 0.0);
            // Two f32 roundings of numbers no larger than |ŵ| + |b|.
            let bound = 2f64.powi(-23) * (want.abs() + case.grid(i).1.abs());
            assert!((f64::from(fake) - want).abs() <= bound, "{format} {i}: {fake} {want}");
        }
    }
}

/// Central differences of a piecewise linear (dw, db) or nearly linear (ds: the 1/s inside cancels) function; the step
/// is 1e-4 of the grid's, inside the 1e-3 that keeps clear of kinks, so what is left is f32 arithmetic in the gradient.
#[test]
fn learned_gradients_are_the_finite_differences_of_the_surrogate() {
    for format in FORMATS {
        let case = Case::new(format).away_from_kinks();
        let (dw, found) = case.learned();
        let (mut ds, mut db) = (vec![0f64; found.scale.len()], vec![0f64; found.scale.len()]);
        let mut size = vec![0f64; found.scale.len()];
        let (lo, hi) = case.levels();
        for i in 0..case.w.len() {
            let (g, (s, b)) = (f64::from(case.grad[i]), case.grid(i));
            let u = (f64::from(case.w[i]) - b) / s;
            let h = 1e-4 * s.abs();
            // A change of s by h moves u by u·h/s: fewer steps for far weights.
            let hs = h / u.abs().max(1.0);
            let central = |plus: f64, minus: f64, h: f64| g * (plus - minus) / (2.0 * h);
            ds[case.group(i)] +=
                central(case.surrogate(i, 0.0, hs, 0.0), case.surrogate(i, 0.0, -hs, 0.0), hs);
            db[case.group(i)] += central(case.surrogate(i, 0.0, 0.0, h), case.surrogate(i, 0.0, 0.0, -h), h);
            size[case.group(i)] += g.abs() * (hi - lo).max(u.abs());
            let want_dw = central(case.surrogate(i, h, 0.0, 0.0), case.surrogate(i, -h, 0.0, 0.0), h);
            let widened = case.format.is_ternary() && (1.0..1.5).contains(&u.abs());
            let want_dw = if widened { g } else { want_dw };
            assert!(
                (f64::from(dw[i]) - want_dw).abs() <= 1e-6 * g.abs(),
                "{format} dw {i}: {} {want_dw}",
                dw[i]
            );
        }
        // Σ G·(q − u) in f32: a rounding of u and of each partial sum, at most 2^8 of them in a row, and 1e-7 from h.
        let bound = |group: usize| 2f64.powi(-24) * 2f64.powi(8) * size[group];
        for (group, &found) in found.scale.iter().enumerate() {
            let want = ds[group];
            assert!((f64::from(found) - want).abs() <= bound(group), "{format} ds {group}: {found} {want}");
        }
        assert_eq!(found.bias.len(), if case.format.has_bias() { found.scale.len() } else { 0 });
        for (group, &found) in found.bias.iter().enumerate() {
            let want = db[group];
            assert!((f64::from(found) - want).abs() <= bound(group), "{format} db {group}: {found} {want}");
        }
    }
}

/// Outside the grid nothing is rounded, so there the scale's and the bias's gradients are true derivatives of
/// [`fake_quant`] itself: seen by differences of the f32 function.
#[test]
fn beyond_the_last_code_gradients_are_differences_of_the_fake_quantizer_itself() {
    let (rows, cols) = (1, 32);
    let w: Vec<f32> = (0..cols).map(|i| if i % 2 == 0 { 40.0 } else { -40.0 } + i as f32).collect();
    let grad = normal(5, cols);
    for format in ["int4-g32", "int3-affine-g32"] {
        let format: Format = format.parse().unwrap();
        let scales = |ds: f32, db: f32| Scales {
            scale: vec![0.5 + ds],
            bias: if format.has_bias() { vec![-1.0 + db] } else { Vec::new() },
        };
        let loss = |scales: &Scales| {
            let mut fake = vec![0.0; cols];
            fake_quant(format, &w, rows, cols, scales, &mut fake);
            fake.iter().zip(&grad).map(|(&w, &g)| f64::from(w) * f64::from(g)).sum::<f64>()
        };
        let mut dw = vec![f32::NAN; cols];
        let found = gradient::learned(format, &w, rows, cols, &scales(0.0, 0.0), &grad, &mut dw);
        assert!(dw.iter().all(|&dw| dw == 0.0));
        // A power of two: f32 holds all the values that differ by it exactly, so the differences are exact too.
        let h = 2f32.powi(-10);
        let want = (loss(&scales(h, 0.0)) - loss(&scales(-h, 0.0))) / (2.0 * f64::from(h));
        assert!((f64::from(found.scale[0]) - want).abs() < 1e-4, "{format}: {} {want}", found.scale[0]);
        if format.has_bias() {
            let want = (loss(&scales(0.0, h)) - loss(&scales(0.0, -h))) / (2.0 * f64::from(h));
            assert!((f64::from(found.bias[0]) - want).abs() < 1e-4, "{format}: {} {want}", found.bias[0]);
        }
    }
}

#[test]
fn clipping_blocks_exactly_what_lies_beyond_the_codes() {
    // On int4-g32 with scale 0.5: −4.0 and 3.5 are the outermost codes, and still inside.
    let mut w = vec![0.0; 32];
    w[..6].copy_from_slice(&[-4.0, -4.1, 3.5, 3.6, 0.3, -100.0]);
    let scales = Scales { scale: vec![0.5], bias: Vec::new() };
    let mut dw = vec![f32::NAN; 32];
    gradient::clipped(Format::Int4G32, &w, 1, 32, &scales, &[2.0; 32], &mut dw);
    assert_eq!(dw[..6], [2.0, 0.0, 2.0, 0.0, 2.0, 0.0]);
    // Ternary weights pass up to one and a half steps.
    let mut w = vec![0.0; 64];
    w[..4].copy_from_slice(&[0.74, 0.75, 0.76, -0.76]);
    let mut dw = vec![f32::NAN; 64];
    gradient::clipped(Format::TernaryG64, &w, 1, 64, &scales, &[2.0; 64], &mut dw);
    assert_eq!(dw[..4], [2.0, 2.0, 0.0, 0.0]);
}

#[test]
fn straight_through_passes_everything() {
    let grad = normal(3, 100);
    let mut dw = vec![0.0; 100];
    gradient::straight_through(&grad, &mut dw);
    assert_eq!(bits(&dw), bits(&grad));
}

#[test]
fn a_group_without_a_scale_passes_weights_and_holds_its_scale() {
    for format in FORMATS {
        let mut case = Case::new(format);
        case.scales.scale.fill(0.0);
        let (dw, found) = case.learned();
        assert_eq!(bits(&dw), bits(&case.grad), "{format}");
        assert!(found.scale.iter().chain(&found.bias).all(|&d| d == 0.0), "{format}");
    }
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    for format in FORMATS {
        let case = Case {
            w: normal(1, 256 * 512),
            grad: normal(2, 256 * 512),
            rows: 256,
            cols: 512,
            ..Case::new(format)
        };
        let scales = Scales::choose(case.format, ScaleRule::Absmax, &case.w, 256, 512);
        let case = Case { scales, ..case };
        let with_threads = |n: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            let (dw, found) = pool.install(|| case.learned());
            (bits(&dw), bits(&found.scale), bits(&found.bias))
        };
        assert!(with_threads(1) == with_threads(3), "{format}");
    }
}

/// ŵ = s·q + b is linear in both, so the derivatives are sums that can be written down.
#[test]
fn frozen_codes_pass_the_sum_of_gradients_times_codes() {
    for format in FORMATS {
        let case = Case::new(format);
        let mut codes = vec![0.0; case.w.len()];
        qat_quant::codes(case.format, &case.w, case.rows, case.cols, &case.scales, &mut codes);
        let found = gradient::of_codes(case.format, &codes, case.rows, case.cols, &case.grad);
        let (mut ds, mut db) = (vec![0f64; found.scale.len()], vec![0f64; found.scale.len()]);
        for i in 0..codes.len() {
            ds[case.group(i)] += f64::from(case.grad[i] * codes[i]);
            db[case.group(i)] += f64::from(case.grad[i]);
        }
        // Sums of up to 1024 terms of at most 127·4, in f32 and eight lanes.
        let near = |found: &[f32], want: &[f64]| {
            found.iter().zip(want).all(|(f, w)| (f64::from(*f) - w).abs() <= 1e-5 * w.abs() + 2e-3)
        };
        assert!(near(&found.scale, &ds), "{format}: {:?} and {ds:?}", found.scale);
        match case.format.has_bias() {
            true => assert!(near(&found.bias, &db), "{format}: {:?} and {db:?}", found.bias),
            false => assert!(found.bias.is_empty()),
        }
    }
}

//! The elementwise arithmetic of a decoder, in loops a compiler turns into vector instructions.
//!
//! Knows no tokens. Invariant: the same bits on every machine and at every vector width. Sums run in a fixed number of
//! lanes that are folded in a fixed tree, products and sums are rounded separately, and the exponential is ours, because
//! libm's differs from system to system.

use pulp::Simd;

use crate::model::Gate;

/// Lanes of a sum; one register of AVX-512, two of AVX2, four of NEON.
pub(super) const LANES: usize = 16;

/// A register's worth of values. Passed by value and rebuilt by [`lanes`], never updated in place: that is the form in
/// which the compiler keeps them in one register.
pub(super) type Lanes = [f32; LANES];

/// The values that `f` gives for each lane.
#[inline(always)]
pub(super) fn lanes(f: impl Fn(usize) -> f32) -> Lanes {
    std::array::from_fn(f)
}

/// Merges lanes in halves: `l` with `l + 8`, then with `l + 4`, `l + 2` and `l + 1`.
#[inline(always)]
pub(super) fn fold(x: Lanes, merge: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(
        #[inline(always)]
        |lane| merge(x[lane], x[lane + 8]),
    );
    let four: [f32; 4] = std::array::from_fn(
        #[inline(always)]
        |lane| merge(eight[lane], eight[lane + 4]),
    );
    merge(merge(four[0], four[2]), merge(four[1], four[3]))
}

/// The greater of two; a NaN is passed over if it is the second.
#[inline(always)]
pub(super) fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// `Σ x²` in f32.
#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        sums = lanes(
            #[inline(always)]
            |lane| sums[lane] + chunk[lane] * chunk[lane],
        );
    }
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    sums = lanes(
        #[inline(always)]
        |lane| sums[lane] + last[lane] * last[lane],
    );
    fold(sums, |a, b| a + b)
}

/// `out = x / sqrt(mean(x²) + eps) · weight`, the mean in f32.
#[inline(always)]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let inverse = inverse_rms(x, eps);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * weight;
    }
}

/// [`rms_norm`] in place.
#[inline(always)]
pub(super) fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let inverse = inverse_rms(x, eps);
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = *x * inverse * weight;
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt()
}

/// `gate = by(gate) · up`, where `silu(x) = x / (1 + e⁻ˣ)`.
#[inline(always)]
pub(super) fn gate(by: Gate, gate: &mut [f32], up: &[f32]) {
    let pairs = gate.iter_mut().zip(up);
    match by {
        Gate::Silu => pairs.for_each(
            #[inline(always)]
            |(gate, up)| *gate = *gate / (1.0 + exp(-*gate)) * up,
        ),
        Gate::Relu2 => pairs.for_each(
            #[inline(always)]
            |(gate, up)| {
                let open = if *gate > 0.0 { *gate } else { 0.0 };
                *gate = open * open * up;
            },
        ),
        Gate::GeluTanh => pairs.for_each(
            #[inline(always)]
            |(gate, up)| *gate = *gate / (1.0 + exp(-gelu_argument(*gate))) * up,
        ),
    }
}

/// `2·√(2/π) · (x + 0.044715·x³)`: half of `1 + tanh` of half of it is the logistic function of it.
#[inline(always)]
fn gelu_argument(x: f32) -> f32 {
    const TWICE_ROOT: f32 = 1.595_769_1;
    TWICE_ROOT * (x + 0.044_715 * x * x * x)
}

/// `a += b`.
#[inline(always)]
pub(super) fn add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// Turns the pairs `(x[i], x[i + half])` by the angles whose cosines and sines are given, `[half]` each. What lies behind them stays.
#[inline(always)]
pub(super) fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (left, right) = x.split_at_mut(cos.len());
    for (((l, r), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
        (*l, *r) = (*l * cos - *r * sin, *r * cos + *l * sin);
    }
}

/// Where [`exp`] stops.
const LEAST: f32 = -87.3;
const MOST: f32 = 88.3;
/// 1.5 · 2²³: adding it leaves no fraction bits, so that taking it off again rounds to the nearest integer; in between, that
/// integer stands in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has so few bits that its product with the power is exact.
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// The polynomial, highest power first.
const P: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];

/// eˣ within 2 ulp (tested); below −87.3 the smallest normal number, above 88.3 about the largest finite one.
///
/// The method and the polynomial are those of `expf` in Cephes (Moshier): split off a whole power of two, then a
/// polynomial on ±ln 2 / 2.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = x.clamp(LEAST, MOST);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = (x - power * LN2[0]) - power * LN2[1];
    let mut p = P[0];
    for c in &P[1..] {
        p = p * r + c;
    }
    let mantissa = p * (r * r) + r + 1.0;
    // The clamp keeps the biased exponent in 1..=254. A NaN has zeros there: its power is 0 and its mantissa a NaN.
    mantissa * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// [`exp`] of each lane of a register, products fused into sums: within 2 ulp as well, not the same bits. A NaN becomes
/// one of the ends or stays one.
#[inline(always)]
pub(super) fn exp_of_register<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value| simd.splat_f32s(value);
    let x = simd.min_f32s(simd.max_f32s(x, splat(LEAST)), splat(MOST));
    let shifted = simd.mul_add_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let power = simd.sub_f32s(shifted, splat(ROUND));
    let r = simd.mul_add_f32s(power, splat(-LN2[0]), x);
    let r = simd.mul_add_f32s(power, splat(-LN2[1]), r);
    let mut p = splat(P[0]);
    for c in &P[1..] {
        p = simd.mul_add_f32s(p, r, splat(*c));
    }
    let mantissa = simd.add_f32s(simd.mul_add_f32s(p, simd.mul_f32s(r, r), r), splat(1.0));
    let biased = simd.add_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(127));
    let power = simd.wrapping_dyn_shl_u32s(biased, simd.splat_u32s(23));
    simd.mul_f32s(mantissa, simd.transmute_f32s_u32s(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `exp` by registers.
    struct Exp<'a>(&'a mut [f32]);

    impl pulp::WithSimd for Exp<'_> {
        type Output = ();
        fn with_simd<S: Simd>(self, simd: S) {
            S::as_mut_simd_f32s(self.0).0.iter_mut().for_each(|x| *x = exp_of_register(simd, *x));
        }
    }

    #[test]
    fn the_exponential_of_a_register_is_within_two_ulp_too_and_has_the_same_bits_everywhere() {
        let inputs: Vec<f32> = (0..1 << 20).map(|i| -87.0 + i as f32 * (175.0 / (1 << 20) as f32)).collect();
        let mut found = inputs.clone();
        qat_quant::with_simd(Exp(&mut found));
        for (x, found) in inputs.iter().zip(&found) {
            let truth = f64::from(*x).exp();
            assert!((f64::from(*found) - truth).abs() <= f64::from(f32::EPSILON) * truth, "{x}: {found}");
        }
        let mut portable = inputs[..4096].to_vec();
        pulp::Arch::Scalar.dispatch(Exp(&mut portable));
        assert_eq!(portable, found[..4096]);
        let mut ends = [0.0, f32::NEG_INFINITY, f32::INFINITY, -0.0].repeat(4);
        qat_quant::with_simd(Exp(&mut ends));
        assert!(ends[0] == 1.0 && ends[1] < 2e-38 && ends[2].is_finite() && ends[3] == 1.0, "{ends:?}");
    }

    #[test]
    fn the_exponential_is_within_two_ulp_of_the_true_one() {
        let mut worst = 0.0f64;
        for step in 0..2_000_000 {
            let x = -87.0 + step as f32 * (175.0 / 2_000_000.0);
            let truth = f64::from(x).exp();
            let ulp = f64::from(f32::EPSILON) * truth;
            // An ulp is between ε/2 and ε of the value, so two of the smallest are ε.
            worst = worst.max((f64::from(exp(x)) - truth).abs() / ulp);
        }
        assert!(worst <= 1.0, "worst error {worst} ε");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn a_norm_of_known_numbers() {
        // The mean of 3² and 4² is 12.5, whose root is 3.5355339.
        let mut out = [0.0; 2];
        rms_norm(&[3.0, 4.0], &[1.0, 2.0], 0.0, &mut out);
        assert!((out[0] - 0.848_528_1).abs() < 1e-6 && (out[1] - 2.262_741_7).abs() < 1e-6);
        let mut x = [3.0, 4.0];
        rms_norm_in_place(&mut x, &[1.0, 2.0], 0.0);
        assert_eq!(x, out);
    }

    #[test]
    fn a_quarter_turn_swaps_a_pair() {
        let mut x = [1.0, 2.0, 3.0, 4.0];
        rotate(&mut x, &[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!(x, [-3.0, 2.0, 1.0, 4.0]);
        let mut part = [1.0, 2.0, 3.0, 4.0];
        rotate(&mut part, &[0.0], &[1.0]);
        assert_eq!(part, [-2.0, 1.0, 3.0, 4.0]);
    }

    #[test]
    fn gelu_is_that_of_its_definition() {
        for step in -2000..2000 {
            let x = step as f32 / 100.0;
            let (mut found, wide) = ([x], f64::from(x));
            gate(Gate::GeluTanh, &mut found, &[1.0]);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            let want = 0.5 * wide * (1.0 + inner.tanh());
            // The argument is off by three roundings, and its exponential by its magnitude times that.
            let bound = 1e-6 * (1.0 + want.abs());
            assert!((f64::from(found[0]) - want).abs() <= bound, "{x}: {} for {want}", found[0]);
        }
    }
}

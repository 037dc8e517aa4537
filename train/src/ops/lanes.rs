//! Loops over f32 slices that the compiler turns into vector instructions without being asked.
//!
//! Sums run in [`LANES`] independent accumulators joined in a fixed order, so that a result is the same bits on every
//! machine and for every number of threads. `exp` and `ln` are polynomials in plain arithmetic, because the ones of
//! the standard library are calls that keep a loop scalar. Knows no tensors.

/// Independent accumulators of a sum: enough to hide the latency of an addition on every machine we know.
pub(crate) const LANES: usize = 16;

/// Σ `f(x[i])` over one slice.
#[inline(always)]
pub(crate) fn sum_map(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f(v);
    }
    join(lanes)
}

/// Σ `f(x[i], y[i])` over two slices of one length.
#[inline(always)]
pub(crate) fn sum_map2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (mut xs, mut ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    for (a, b) in (&mut xs).zip(&mut ys) {
        for (lane, (&a, &b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += f(a, b);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(xs.remainder().iter().zip(ys.remainder())) {
        *lane += f(a, b);
    }
    join(lanes)
}

/// Σ `x[i]·y[i]·z[i]` over three slices of one length.
#[inline(always)]
pub(crate) fn dot3(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (mut xs, mut ys, mut zs) = (x.chunks_exact(LANES), y.chunks_exact(LANES), z.chunks_exact(LANES));
    for ((a, b), c) in (&mut xs).zip(&mut ys).zip(&mut zs) {
        for (lane, ((&a, &b), &c)) in lanes.iter_mut().zip(a.iter().zip(b).zip(c)) {
            *lane += a * b * c;
        }
    }
    let rest = xs.remainder().iter().zip(ys.remainder()).zip(zs.remainder());
    for (lane, ((&a, &b), &c)) in lanes.iter_mut().zip(rest) {
        *lane += a * b * c;
    }
    join(lanes)
}

/// Σ `x[i]·y[i]`.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    sum_map2(x, y, |a, b| a * b)
}

/// The largest element; NaN elements are passed over, an empty slice gives −∞.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    max_of(x, |v| v)
}

/// The largest `f(x[i])`, under the same rules.
#[inline(always)]
pub(crate) fn max_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let larger = |m: f32, v: f32| if v > m { v } else { m };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, f(v));
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = larger(*lane, f(v));
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// `out[i] = f(x[i])`, giving Σ `out[i]`.
#[inline(always)]
pub(crate) fn map_sum(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut xs = x.chunks_exact(LANES);
    let mut outs = out.chunks_exact_mut(LANES);
    for (a, o) in (&mut xs).zip(&mut outs) {
        for (lane, (&a, o)) in lanes.iter_mut().zip(a.iter().zip(o)) {
            *o = f(a);
            *lane += *o;
        }
    }
    let rest = xs.remainder().iter().zip(outs.into_remainder());
    for (lane, (&a, o)) in lanes.iter_mut().zip(rest) {
        *o = f(a);
        *lane += *o;
    }
    join(lanes)
}

/// `x[i] *= factor`.
#[inline(always)]
pub(crate) fn scale(x: &mut [f32], factor: f32) {
    for v in x {
        *v *= factor;
    }
}

/// `x[i] += y[i]`.
#[inline(always)]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    for (a, &b) in x.iter_mut().zip(y) {
        *a += b;
    }
}

/// eˣ within 2 units in the last place; 0 below −87.33 (where the result would be subnormal), ∞ above 88.37 (2²⁷·⁵⁻
/// short of the largest float), NaN for NaN.
///
/// Cody and Waite's two-part reduction to |r| ≤ ½ln 2 and the polynomial of Cephes `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves the nearest integer in the low bits of the significand.
    const ROUNDER: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let power = (shifted.to_bits().wrapping_sub(ROUNDER.to_bits())).wrapping_add(127) << 23;
    let y = (p * (r * r) + r + 1.0) * f32::from_bits(power);
    let y = if x < -87.33 { 0.0 } else { y };
    if x > 88.37 { f32::INFINITY } else { y }
}

/// ln x for positive normal x, within 2 units in the last place (1e-7 absolute near 1); the polynomial of Cephes
/// `logf`. Other arguments give a meaningless number, NaN gives NaN.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    // x = m·2ᵉ with m in [√½, √2): the offset moves the cut between exponents from 1 to √½.
    const SQRT_HALF_BITS: u32 = 0x3f35_04f3;
    let offset = x.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let e = ((offset as i32) >> 23) as f32;
    let m = f32::from_bits((offset & 0x007f_ffff).wrapping_add(SQRT_HALF_BITS));
    let r = m - 1.0;
    let z = r * r;
    let mut p = 7.037_683_6e-2;
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = p * r + c;
    }
    let small = p * r * z + e * -2.121_944_4e-4 - 0.5 * z;
    let y = r + small + e * 0.693_359_4;
    if x.is_nan() { x } else { y }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn join(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps through the floats of `from..to` with a stride that visits every exponent and 10⁶ significands.
    fn sweep(from: f32, to: f32) -> impl Iterator<Item = f32> {
        let (low, high) = (from.to_bits(), to.to_bits());
        (low..high).step_by(((high - low) / 1_000_003).max(1) as usize).map(f32::from_bits)
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for magnitude in sweep(1e-30, 88.3) {
            for x in [magnitude, -magnitude] {
                if x < -87.33 {
                    continue;
                }
                let want = f64::from(x).exp();
                let unit = f64::from(want as f32).abs() * f64::from(f32::EPSILON);
                let error = (f64::from(exp(x)) - want).abs();
                assert!(error <= 2.0 * unit, "exp({x}): want {want}, found {}", exp(x));
            }
        }
    }

    #[test]
    fn exp_has_the_limits_that_a_softmax_relies_on() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(-3.4e38), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(3.4e38), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn ln_is_within_two_units_in_the_last_place_or_one_e_minus_seven() {
        for x in sweep(f32::MIN_POSITIVE, f32::MAX) {
            let want = f64::from(x).ln();
            let bound = (want.abs() * 2.0 * f64::from(f32::EPSILON)).max(1e-7);
            assert!((f64::from(ln(x)) - want).abs() <= bound, "ln({x}): want {want}, found {}", ln(x));
        }
        assert_eq!(ln(1.0), 0.0);
        assert!(ln(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_see_every_element_of_ragged_lengths() {
        for n in [0, 1, LANES - 1, LANES, LANES + 1, 3 * LANES + 5] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let mut y = vec![0.0; n];
            let (count, triangle) = (n as f32, (n * n.saturating_sub(1) / 2) as f32);
            assert_eq!(sum_map(&x, |v| v + 1.0), triangle + count);
            assert_eq!(map_sum(&x, &mut y, |v| v + 1.0), triangle + count);
            assert_eq!(dot(&x, &vec![2.0; n]), 2.0 * triangle);
            assert_eq!(dot3(&x, &vec![2.0; n], &vec![0.5; n]), triangle);
            assert_eq!(max(&x), if n == 0 { f32::NEG_INFINITY } else { count - 1.0 });
        }
    }
}

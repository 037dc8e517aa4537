//! Divergences between the next-token distributions of a teacher and a student, both softened by a temperature.
//!
//! Forward KL is Hinton's distillation loss (arXiv 1503.02531), reverse KL is MiniLLM's (arXiv 2306.08543), the
//! generalized Jensen-Shannon divergence is GKD's (arXiv 2306.13649), the skewed ones are DistiLLM's (arXiv 2402.03898). The
//! teacher gets no gradient.

use candle_core::{Result, Tensor};

use super::{NAME, kernels::RowKernels};
use crate::ops::gpu::{Typed, typed, word};
use crate::ops::lanes;

const LIBRARY: Typed = typed!("divergence", "../ops/gpu/common.metal", "divergence.metal");

/// Buffers of `vocab` floats that a row needs besides its gradient.
pub(super) const SCRATCH: usize = 3;

/// Which divergence, with P the teacher's and Q the student's distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// KL(P‖Q) = Σ P ln(P/Q): the student covers everything the teacher says.
    ForwardKl,
    /// KL(Q‖P) = Σ Q ln(Q/P): the student stays where the teacher is.
    ReverseKl,
    /// β·KL(P‖M) + (1−β)·KL(Q‖M) with M = β·P + (1−β)·Q; β = ½ is the Jensen-Shannon divergence.
    Jsd {
        /// Weight of the teacher in the mixture, strictly between 0 and 1.
        beta: f32,
    },
    /// KL(P‖M) with M = α·P + (1−α)·Q: forward KL whose gradient stays bounded where the student denies what the teacher says.
    SkewKl {
        /// Weight of the teacher in the mixture, strictly between 0 and 1.
        alpha: f32,
    },
    /// KL(Q‖M) with M = α·P + (1−α)·Q, for reverse KL the same.
    SkewReverseKl {
        /// Weight of the teacher in the mixture, strictly between 0 and 1.
        alpha: f32,
    },
}

impl Divergence {
    /// Refuses a mixture without one of the two.
    pub(super) fn check(self) -> Result<()> {
        let share = match self {
            Self::ForwardKl | Self::ReverseKl => return Ok(()),
            Self::Jsd { beta } => beta,
            Self::SkewKl { alpha } | Self::SkewReverseKl { alpha } => alpha,
        };
        if share > 0.0 && share < 1.0 {
            return Ok(());
        }
        candle_core::bail!("{NAME}: {self:?}: want a number strictly between 0 and 1")
    }
}

/// τ²·D(row) in nats, with τ = `temperature`; and its gradient, unless `gradient` is empty. `scratch` holds [`SCRATCH`] rows.
#[inline(always)]
pub(super) fn row(
    kind: Divergence,
    temperature: f32,
    teacher: &[f32],
    logits: &[f32],
    scratch: &mut [f32],
    gradient: &mut [f32],
) -> f64 {
    let (p, scratch) = scratch.split_at_mut(logits.len());
    let (q, ratio) = scratch.split_at_mut(logits.len());
    distributions(1.0 / temperature, teacher, logits, p, q, ratio);
    // τ² from the definition, 1/τ from the derivative of softmax(x/τ).
    let value = match kind {
        Divergence::ForwardKl => forward_kl(p, q, ratio, temperature, gradient),
        Divergence::ReverseKl => reverse_kl(q, ratio, temperature, gradient),
        Divergence::Jsd { beta } => jsd(beta, p, q, ratio, temperature, gradient),
        Divergence::SkewKl { alpha } => skew_kl(alpha, p, q, ratio, temperature, gradient),
        Divergence::SkewReverseKl { alpha } => skew_reverse_kl(alpha, q, ratio, temperature, gradient),
    };
    f64::from(value) * f64::from(temperature).powi(2)
}

/// The same in kernels, for rows like those of `logits`; compared with the teacher's logits.
pub(super) fn kernels(logits: &Tensor, temperature: f32, kind: Divergence) -> Result<RowKernels> {
    let (forward, backward, share) = match kind {
        Divergence::ForwardKl => ("forward_kl", "forward_kl_backward", 0.0),
        Divergence::ReverseKl => ("reverse_kl", "reverse_kl_backward", 0.0),
        Divergence::Jsd { beta } => ("jsd", "jsd_backward", beta),
        Divergence::SkewKl { alpha } => ("skew_kl", "skew_kl_backward", alpha),
        Divergence::SkewReverseKl { alpha } => ("skew_reverse_kl", "skew_reverse_kl_backward", alpha),
    };
    let [sharpness, temperature, share] = [1.0 / temperature, temperature, share].map(f32::to_bits);
    let shape = vec![word(logits.dim(1)?)?, sharpness, temperature, share];
    Ok(RowKernels { library: LIBRARY, forward, backward, shape, kept: 6 })
}

/// Fills `p` and `q` with the softened distributions and `ratio` with ln(p/q), the last from the logits, because a quotient of
/// probabilities would be 0/0 where both underflow.
#[inline(always)]
fn distributions(
    sharpness: f32,
    teacher: &[f32],
    student: &[f32],
    p: &mut [f32],
    q: &mut [f32],
    ratio: &mut [f32],
) {
    let (top_p, top_q) = (lanes::max(teacher), lanes::max(student));
    let total_p = lanes::map_sum(teacher, p, |x| lanes::exp((x - top_p) * sharpness));
    let total_q = lanes::map_sum(student, q, |x| lanes::exp((x - top_q) * sharpness));
    lanes::scale(p, 1.0 / total_p);
    lanes::scale(q, 1.0 / total_q);
    let offset = total_q.ln() - total_p.ln();
    for ((ratio, &x), &y) in ratio.iter_mut().zip(teacher).zip(student) {
        *ratio = ((x - top_p) - (y - top_q)) * sharpness + offset;
    }
}

/// Σ p·ln(p/q); the derivative by the student's logit is (q − p)/τ.
#[inline(always)]
fn forward_kl(p: &[f32], q: &[f32], ratio: &[f32], factor: f32, gradient: &mut [f32]) -> f32 {
    for ((g, &p), &q) in gradient.iter_mut().zip(p).zip(q) {
        *g = factor * (q - p);
    }
    lanes::dot(p, ratio)
}

/// Σ q·ln(q/p); the derivative by the student's logit is q·(ln(q/p) − value)/τ.
#[inline(always)]
fn reverse_kl(q: &[f32], ratio: &[f32], factor: f32, gradient: &mut [f32]) -> f32 {
    let value = -lanes::dot(q, ratio);
    for ((g, &q), &ratio) in gradient.iter_mut().zip(q).zip(ratio) {
        *g = factor * q * (-ratio - value);
    }
    value
}

/// β·Σ p·ln(p/m) + (1−β)·Σ q·ln(q/m); the derivative by the student's logit is (1−β)·q·(ln(q/m) − Σ q·ln(q/m))/τ.
/// Overwrites `ratio` and `p`.
#[inline(always)]
fn jsd(beta: f32, p: &mut [f32], q: &[f32], ratio: &mut [f32], factor: f32, gradient: &mut [f32]) -> f32 {
    for (p, r) in p.iter_mut().zip(ratio.iter_mut()) {
        let quotient = quotient(*r);
        *p *= -lanes::ln(beta + (1.0 - beta) / quotient);
        *r = -lanes::ln((1.0 - beta) + beta * quotient);
    }
    let of_teacher = lanes::sum_map(p, |v| v);
    let of_student = lanes::dot(q, ratio);
    for ((g, &q), &log) in gradient.iter_mut().zip(q).zip(&*ratio) {
        *g = factor * (1.0 - beta) * q * (log - of_student);
    }
    beta * of_teacher + (1.0 - beta) * of_student
}

/// Σ p·ln(p/m); the derivative by the student's logit is (1−α)·q·(Σ q·p/m − p/m)/τ. Overwrites `ratio` and `p`.
#[inline(always)]
fn skew_kl(
    alpha: f32,
    p: &mut [f32],
    q: &[f32],
    ratio: &mut [f32],
    factor: f32,
    gradient: &mut [f32],
) -> f32 {
    for (p, r) in p.iter_mut().zip(ratio.iter_mut()) {
        let m_over_p = alpha + (1.0 - alpha) / quotient(*r);
        *p *= -lanes::ln(m_over_p);
        *r = 1.0 / m_over_p;
    }
    let centre = lanes::dot(q, ratio);
    for ((g, &q), &p_over_m) in gradient.iter_mut().zip(q).zip(&*ratio) {
        *g = factor * (1.0 - alpha) * q * (centre - p_over_m);
    }
    lanes::sum_map(p, |v| v)
}

/// Σ q·ln(q/m); with h = ln(q/m) − (1−α)·q/m the derivative by the student's logit is q·(h − Σ q·h)/τ. Overwrites `ratio`.
#[inline(always)]
fn skew_reverse_kl(alpha: f32, q: &[f32], ratio: &mut [f32], factor: f32, gradient: &mut [f32]) -> f32 {
    let rest = 1.0 - alpha;
    for r in ratio.iter_mut() {
        *r = rest + alpha * quotient(*r);
    }
    // q/m is the reciprocal of what `ratio` holds.
    let value = -lanes::sum_map2(q, ratio, |q, m_over_q| q * lanes::ln(m_over_q));
    let centre = value - rest * lanes::sum_map2(q, ratio, |q, m_over_q| q / m_over_q);
    for ((g, &q), &m_over_q) in gradient.iter_mut().zip(q).zip(&*ratio) {
        *g = factor * q * (-lanes::ln(m_over_q) - rest / m_over_q - centre);
    }
    value
}

/// p/q from ln(p/q). Beyond e^±80 the smaller of the two is 0 in f32, and its logarithm no longer matters.
#[inline(always)]
fn quotient(ratio: f32) -> f32 {
    const FAR: f32 = 80.0;
    lanes::exp(ratio.clamp(-FAR, FAR))
}

#[cfg(test)]
mod tests {
    use super::super::{Rows, Term, tests::sum_of};
    use super::*;
    use crate::ops::check::{assert_matches, backward, flat, uniform};
    use crate::ops::gpu::host::{self, Care};
    use candle_core::{DType, Device, Var};

    const KINDS: [Divergence; 6] = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd { beta: 0.5 },
        Divergence::Jsd { beta: 0.1 },
        Divergence::SkewKl { alpha: 0.1 },
        Divergence::SkewReverseKl { alpha: 0.1 },
    ];

    /// What they are where P and Q are sure of different outcomes 2000 apart.
    const OPPOSITE: [f32; 6] =
        [2000.0, 2000.0, std::f32::consts::LN_2, 0.325_083, std::f32::consts::LN_10, 0.105_360_5];

    fn divergence(student: &Tensor, teacher: &Tensor, tau: f32, kind: Divergence) -> Result<Tensor> {
        let against = Rows { text: &[], teacher: Some(teacher), temperature: tau };
        sum_of(student, Term::Divergence(kind), &against)
    }

    /// The definitions, in candle's operations.
    fn reference(student: &Tensor, teacher: &Tensor, tau: f32, kind: Divergence) -> Result<Tensor> {
        let tau = f64::from(tau);
        let log_q = candle_nn::ops::log_softmax(&(student / tau)?, 1)?;
        let log_p = candle_nn::ops::log_softmax(&(teacher / tau)?, 1)?;
        let (p, q) = (log_p.exp()?, log_q.exp()?);
        let log_mixture = |share: f64| ((&p * share)? + (&q * (1.0 - share))?)?.log();
        let kl =
            |from: &Tensor, log_from: &Tensor, log_to: &Tensor| from.mul(&(log_from - log_to)?)?.sum_all();
        let sum = match kind {
            Divergence::ForwardKl => kl(&p, &log_p, &log_q)?,
            Divergence::ReverseKl => kl(&q, &log_q, &log_p)?,
            Divergence::Jsd { beta } => {
                let beta = f64::from(beta);
                let log_m = log_mixture(beta)?;
                ((kl(&p, &log_p, &log_m)? * beta)? + (kl(&q, &log_q, &log_m)? * (1.0 - beta))?)?
            }
            Divergence::SkewKl { alpha } => kl(&p, &log_p, &log_mixture(f64::from(alpha))?)?,
            Divergence::SkewReverseKl { alpha } => kl(&q, &log_q, &log_mixture(f64::from(alpha))?)?,
        };
        sum * (tau * tau)
    }

    fn assert_agrees(n: usize, vocab: usize, tau: f32, kind: Divergence, tolerance: f64) -> Result<()> {
        let (student, teacher) = (uniform(14, 4.0, &[n, vocab])?, uniform(15, 4.0, &[n, vocab])?);
        let wide = teacher.to_dtype(DType::F64)?;
        let reference = |t: &[Tensor]| reference(&t[0], &wide, tau, kind);
        assert_matches(|t| divergence(&t[0], &teacher, tau, kind), reference, &[student], tolerance)
    }

    /// Logarithms of magnitude ≤ 16 carry 16·6e-8 = 1e-6 absolute, exp and sums another 1e-6. Skewed divergences are as small as
    /// 0.04, of logarithms of numbers near 1, which are good to 1e-7 times τ².
    fn tolerance(kind: Divergence) -> f64 {
        match kind {
            Divergence::SkewKl { .. } | Divergence::SkewReverseKl { .. } => 1.6e-5,
            _ => 3e-6,
        }
    }

    #[test]
    fn value_and_gradient_agree_with_finite_differences() -> Result<()> {
        for (n, vocab) in [(1, 1), (2, 3), (3, 37)] {
            for kind in KINDS {
                assert_agrees(n, vocab, 1.0, kind, tolerance(kind))?;
                assert_agrees(n, vocab, 2.5, kind, tolerance(kind))?;
            }
        }
        Ok(())
    }

    #[test]
    fn the_kernels_agree_with_finite_differences() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for (n, vocab) in [(1, 1), (2, 3), (3, 137), (1, 600)] {
            for (kind, tau) in KINDS.into_iter().zip([1.0, 2.5].into_iter().cycle()) {
                // As on the CPU, with Metal's exp and log good to 4 units in the last place.
                host::emulating(Care::EveryMode, || {
                    assert_agrees(n, vocab, tau, kind, 1.4 * tolerance(kind))
                })?;
            }
        }
        Ok(())
    }

    #[test]
    fn equal_logits_up_to_a_constant_have_divergence_zero() -> Result<()> {
        let teacher = uniform(16, 5.0, &[6, 50])?;
        let student = Var::from_tensor(&(&teacher + 1.0)?)?;
        for kind in KINDS {
            let one = Tensor::new(1f32, &Device::Cpu)?;
            let (loss, grads) = backward(|| divergence(&student, &teacher, 1.0, kind), &one)?;
            // Per row: 50 terms p·δ with Σp = 1 and δ a few roundings of logits ≤ 10, each 5e-7; six rows.
            assert!(loss.to_scalar::<f32>()?.abs() < 6.0 * 3e-6, "{kind:?}: {loss}");
            let Some(gradient) = grads.get(&student) else { panic!("no gradient") };
            assert!(flat(gradient)?.iter().all(|g| g.abs() < 1e-6), "{kind:?}");
        }
        Ok(())
    }

    #[test]
    fn forward_kl_of_two_outcomes_is_the_number_one_computes_by_hand() -> Result<()> {
        // P = (¾, ¼), Q = (½, ½): ¾ ln 1.5 + ¼ ln ½.
        let teacher = Tensor::new(&[[3f32.ln(), 0.0]], &Device::Cpu)?;
        let student = Tensor::new(&[[7f32, 7.0]], &Device::Cpu)?;
        let value = divergence(&student, &teacher, 1.0, Divergence::ForwardKl)?.to_scalar::<f32>()?;
        assert!((value - 0.130_812).abs() < 1e-6, "{value}");
        Ok(())
    }

    fn opposite_certainties() -> Result<()> {
        let teacher = Tensor::new(&[[1000f32, 0.0, -1000.0]], &Device::Cpu)?;
        let student = Var::new(&[[-1000f32, 0.0, 1000.0]], &Device::Cpu)?;
        for (kind, want) in KINDS.into_iter().zip(OPPOSITE) {
            let one = Tensor::new(1f32, &Device::Cpu)?;
            let (loss, grads) = backward(|| divergence(&student, &teacher, 1.0, kind), &one)?;
            let value = loss.to_scalar::<f32>()?;
            assert!((value - want).abs() <= 1e-6 * want, "{kind:?}: want {want}, found {value}");
            let Some(gradient) = grads.get(&student) else { panic!("no gradient") };
            assert!(flat(gradient)?.iter().all(|g| g.is_finite()), "{kind:?}");
        }
        Ok(())
    }

    fn spoilt_logits() -> Result<()> {
        let good = Tensor::new(&[[0f32, 1.0], [2.0, 0.0]], &Device::Cpu)?;
        for (kind, bad) in KINDS.into_iter().flat_map(|kind| [(kind, f32::NAN), (kind, f32::INFINITY)]) {
            let spoilt = Tensor::new(&[[0f32, 1.0], [2.0, bad]], &Device::Cpu)?;
            for (student, teacher) in [(&spoilt, &good), (&good, &spoilt)] {
                let value = divergence(student, teacher, 1.0, kind)?.to_scalar::<f32>()?;
                assert!(value.is_nan(), "{kind:?} {bad}: {value}");
            }
        }
        Ok(())
    }

    #[test]
    fn opposite_certainties_stay_finite_and_nan_and_infinite_logits_show() -> Result<()> {
        opposite_certainties()?;
        spoilt_logits()?;
        if host::available() {
            // For their values: where two equal numbers cancel, what fast math leaves is small beside nothing.
            host::emulating(Care::Values, opposite_certainties)?;
            host::emulating(Care::Values, spoilt_logits)?;
        }
        Ok(())
    }
}

//! Divergences between the next-token distributions of a teacher and a student, both softened by a temperature.
//!
//! Forward KL is Hinton's distillation loss (arXiv 1503.02531), reverse KL is MiniLLM's (arXiv 2306.08543), the
//! generalized Jensen-Shannon divergence is GKD's (arXiv 2306.13649). The teacher gets no gradient.

use candle_core::{Result, Tensor};

use super::{LogitsGradient, RowKernels, RowLoss, Term, check_logits, gradient_rows, sum_of, sum_rows};
use crate::ops::gpu::{Library, Path, library, path, word};
use crate::ops::{Floats, lanes};

const NAME: &str = "divergence_sum";
const LIBRARY: Library = library!("divergence", "../ops/gpu/common.metal", "divergence.metal");

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
}

/// τ²·Σ D(row) over the rows of `student` and `teacher`, both `[n, vocab]`, in nats; the distributions are
/// softmax(logits/τ) with τ = `temperature`.
///
/// The factor τ² keeps the size of the gradient independent of τ (arXiv 1503.02531, section 2); it multiplies every
/// kind. `teacher` gets no gradient; `student` is contiguous.
///
/// # Errors
/// Shapes that differ, a temperature that is not positive and finite, β outside (0, 1), logits other than f32 on the
/// CPU.
pub fn divergence(student: &Tensor, teacher: &Tensor, temperature: f32, kind: Divergence) -> Result<Term> {
    check_logits(NAME, student)?;
    if teacher.dims() != student.dims() {
        candle_core::bail!(
            "{NAME}: want student and teacher [n, vocab], found {:?} and {:?}",
            student.dims(),
            teacher.dims()
        );
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        candle_core::bail!("{NAME}: temperature: want a positive number, found {temperature}");
    }
    if let Divergence::Jsd { beta } = kind
        && !(beta > 0.0 && beta < 1.0)
    {
        candle_core::bail!(
            "{NAME}: beta: want a number strictly between 0 and 1 (the ends are the forward and the reverse KL), found {beta}"
        );
    }
    let teacher = teacher.detach().contiguous()?;
    match path(student.device()) {
        Path::Cpu => {
            let rows = DivergenceSum { teacher, temperature, kind };
            let sum = sum_rows(NAME, &rows.rows(&Floats::of(NAME, &rows.teacher)?), student)?;
            Ok(Term { sum, gradient: Box::new(rows) })
        }
        Path::Kernels => on_gpu(student, teacher, temperature, kind),
    }
}

/// [`divergence`] as a scalar in the graph of `student`.
///
/// # Errors
/// As there.
pub fn divergence_sum(
    student: &Tensor,
    teacher: &Tensor,
    temperature: f32,
    kind: Divergence,
) -> Result<Tensor> {
    let student = student.contiguous()?;
    divergence(&student, teacher, temperature, kind)?.attached(&student)
}

fn on_gpu(student: &Tensor, teacher: Tensor, temperature: f32, kind: Divergence) -> Result<Term> {
    let (forward, backward, beta) = match kind {
        Divergence::ForwardKl => ("forward_kl", "forward_kl_backward", 0.0),
        Divergence::ReverseKl => ("reverse_kl", "reverse_kl_backward", 0.0),
        Divergence::Jsd { beta } => ("jsd", "jsd_backward", beta),
    };
    let [sharpness, temperature, beta] = [1.0 / temperature, temperature, beta].map(f32::to_bits);
    let shape = vec![word(student.dim(1)?)?, sharpness, temperature, beta];
    RowKernels { name: NAME, library: LIBRARY, forward, backward, shape, kept: 6 }.term(student, teacher)
}

/// What the tests hold every implementation to, in operations of candle.
#[cfg(test)]
fn composed(student: &Tensor, teacher: &Tensor, temperature: f32, kind: Divergence) -> Result<Tensor> {
    let tau = f64::from(temperature);
    let log_q = candle_nn::ops::log_softmax(&(student / tau)?, 1)?;
    let log_p = candle_nn::ops::log_softmax(&(teacher / tau)?, 1)?;
    let sum = match kind {
        Divergence::ForwardKl => log_p.exp()?.mul(&(&log_p - &log_q)?)?.sum_all()?,
        Divergence::ReverseKl => log_q.exp()?.mul(&(&log_q - &log_p)?)?.sum_all()?,
        Divergence::Jsd { beta } => {
            let beta = f64::from(beta);
            let (p, q) = (log_p.exp()?, log_q.exp()?);
            // The addend keeps the logarithm finite where both probabilities underflow; it is far below f32's 1.
            let log_m = ((&p * beta)? + (&q * (1.0 - beta))?)?.affine(1.0, 1e-30)?.log()?;
            let of_teacher = p.mul(&(log_p - &log_m)?)?.sum_all()?;
            let of_student = q.mul(&(log_q - &log_m)?)?.sum_all()?;
            ((of_teacher * beta)? + (of_student * (1.0 - beta))?)?
        }
    };
    sum * (tau * tau)
}

struct DivergenceSum {
    teacher: Tensor,
    temperature: f32,
    kind: Divergence,
}

impl DivergenceSum {
    fn rows<'a>(&self, teacher: &'a [f32]) -> Rows<'a> {
        Rows { teacher, temperature: self.temperature, kind: self.kind }
    }
}

impl LogitsGradient for DivergenceSum {
    fn gradient(&self, student: &Tensor, upstream: &Tensor, to: Option<Tensor>) -> Result<Tensor> {
        let teacher = Floats::of(NAME, &self.teacher)?;
        sum_of(gradient_rows(NAME, &self.rows(&teacher), student, upstream)?, to)
    }
}

struct Rows<'a> {
    teacher: &'a [f32],
    temperature: f32,
    kind: Divergence,
}

impl RowLoss for Rows<'_> {
    const SCRATCH: usize = 3;

    #[inline(always)]
    fn row(&self, index: usize, logits: &[f32], scratch: &mut [f32], gradient: &mut [f32]) -> f64 {
        let vocab = logits.len();
        let (p, scratch) = scratch.split_at_mut(vocab);
        let (q, ratio) = scratch.split_at_mut(vocab);
        let teacher = &self.teacher[index * vocab..][..vocab];
        self.distributions(teacher, logits, p, q, ratio);
        // τ² from the definition, 1/τ from the derivative of softmax(x/τ).
        let value = match self.kind {
            Divergence::ForwardKl => forward_kl(p, q, ratio, self.temperature, gradient),
            Divergence::ReverseKl => reverse_kl(q, ratio, self.temperature, gradient),
            Divergence::Jsd { beta } => jsd(beta, p, q, ratio, self.temperature, gradient),
        };
        f64::from(value) * f64::from(self.temperature).powi(2)
    }
}

impl Rows<'_> {
    /// Fills `p` and `q` with the softened distributions and `ratio` with ln(p/q), the last from the logits, because
    /// a quotient of probabilities would be 0/0 where both underflow.
    #[inline(always)]
    fn distributions(
        &self,
        teacher: &[f32],
        student: &[f32],
        p: &mut [f32],
        q: &mut [f32],
        ratio: &mut [f32],
    ) {
        let sharpness = 1.0 / self.temperature;
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
    // Beyond e^±80 the smaller of p and q is 0 in f32 and its logarithm no longer matters.
    const FAR: f32 = 80.0;
    for (p, r) in p.iter_mut().zip(ratio.iter_mut()) {
        let quotient = lanes::exp(r.clamp(-FAR, FAR));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_matches, flat, uniform};
    use crate::ops::gpu::host;
    use candle_core::{DType, Device, Var};

    const KINDS: [Divergence; 4] = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd { beta: 0.5 },
        Divergence::Jsd { beta: 0.1 },
    ];

    #[test]
    fn value_and_gradient_agree_with_finite_differences() -> Result<()> {
        for (n, vocab) in [(1, 1), (2, 3), (3, 37)] {
            let (student, teacher) = (uniform(14, 4.0, &[n, vocab])?, uniform(15, 4.0, &[n, vocab])?);
            let teacher64 = teacher.to_dtype(DType::F64)?;
            for kind in KINDS {
                for tau in [1.0, 2.5] {
                    // Logarithms of magnitude ≤ 16 carry 16·6e-8 = 1e-6 absolute, exp and sums another 1e-6.
                    let reference = |t: &[Tensor]| composed(&t[0], &teacher64, tau, kind);
                    let inputs = [student.clone()];
                    assert_matches(|t| divergence_sum(&t[0], &teacher, tau, kind), reference, &inputs, 3e-6)?;
                    assert_matches(|t| composed(&t[0], &teacher, tau, kind), reference, &inputs, 3e-6)?;
                }
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
            let (student, teacher) = (uniform(14, 4.0, &[n, vocab])?, uniform(15, 4.0, &[n, vocab])?);
            let teacher64 = teacher.to_dtype(DType::F64)?;
            for (kind, tau) in KINDS.into_iter().zip([1.0, 2.5, 1.0, 2.5]) {
                let reference = |t: &[Tensor]| composed(&t[0], &teacher64, tau, kind);
                let found = |t: &[Tensor]| on_gpu(&t[0], teacher.clone(), tau, kind)?.attached(&t[0]);
                // As on the CPU, with Metal's exp and log good to 4 units in the last place.
                assert_matches(found, reference, std::slice::from_ref(&student), 4e-6)?;
            }
        }
        Ok(())
    }

    #[test]
    fn the_kernels_keep_opposite_certainties_finite_and_nan_visible() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        let teacher = Tensor::new(&[[1000f32, 0.0, -1000.0]], &Device::Cpu)?;
        let student = Var::new(&[[-1000f32, 0.0, 1000.0]], &Device::Cpu)?;
        let spoilt = Tensor::new(&[[0f32, f32::NAN, 1.0]], &Device::Cpu)?;
        for (kind, want) in KINDS.into_iter().zip([2000.0, 2000.0, 0.5 * 2.0 * 2f32.ln(), 0.325_083]) {
            let loss = on_gpu(&student, teacher.clone(), 1.0, kind)?.attached(&student)?;
            let value = loss.to_scalar::<f32>()?;
            assert!((value - want).abs() <= 1e-6 * want, "{kind:?}: want {want}, found {value}");
            let grads = loss.backward()?;
            let Some(gradient) = grads.get(&student) else { panic!("no gradient") };
            assert!(flat(gradient)?.iter().all(|g| g.is_finite()), "{kind:?}");
            assert!(on_gpu(&spoilt, teacher.clone(), 1.0, kind)?.sum()?.is_nan(), "{kind:?}");
            assert!(on_gpu(&student, spoilt.clone(), 1.0, kind)?.sum()?.is_nan(), "{kind:?}");
        }
        Ok(())
    }

    #[test]
    fn equal_logits_up_to_a_constant_have_divergence_zero() -> Result<()> {
        let teacher = uniform(16, 5.0, &[6, 50])?;
        let student = Var::from_tensor(&(&teacher + 1.0)?)?;
        for kind in KINDS {
            let loss = divergence_sum(&student, &teacher, 1.0, kind)?;
            let grads = loss.backward()?;
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
        let value = divergence_sum(&student, &teacher, 1.0, Divergence::ForwardKl)?.to_scalar::<f32>()?;
        assert!((value - 0.130_812).abs() < 1e-6, "{value}");
        Ok(())
    }

    #[test]
    fn opposite_certainties_stay_finite() -> Result<()> {
        let teacher = Tensor::new(&[[1000f32, 0.0, -1000.0]], &Device::Cpu)?;
        let student = Var::new(&[[-1000f32, 0.0, 1000.0]], &Device::Cpu)?;
        for (kind, want) in KINDS.into_iter().zip([2000.0, 2000.0, 0.5 * 2.0 * 2f32.ln(), 0.325_083]) {
            let loss = divergence_sum(&student, &teacher, 1.0, kind)?;
            let value = loss.to_scalar::<f32>()?;
            assert!((value - want).abs() <= 1e-6 * want, "{kind:?}: want {want}, found {value}");
            let grads = loss.backward()?;
            let Some(gradient) = grads.get(&student) else { panic!("no gradient") };
            assert!(flat(gradient)?.iter().all(|g| g.is_finite()), "{kind:?}");
        }
        Ok(())
    }

    #[test]
    fn nan_and_infinite_logits_give_nan_and_no_panic() -> Result<()> {
        for kind in KINDS {
            for bad in [f32::NAN, f32::INFINITY] {
                let good = Tensor::new(&[[0f32, 1.0], [2.0, 0.0]], &Device::Cpu)?;
                let spoilt = Var::new(&[[0f32, 1.0], [2.0, bad]], &Device::Cpu)?;
                let loss = divergence_sum(&spoilt, &good, 1.0, kind)?;
                assert!(loss.to_scalar::<f32>()?.is_nan(), "{kind:?} {bad}");
                loss.backward()?;
                assert!(
                    divergence_sum(&good, &spoilt, 1.0, kind)?.to_scalar::<f32>()?.is_nan(),
                    "{kind:?} {bad}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn a_beta_at_the_ends_and_a_zero_temperature_are_refused() -> Result<()> {
        let x = uniform(1, 1.0, &[2, 3])?;
        let message = divergence_sum(&x, &x, 1.0, Divergence::Jsd { beta: 0.0 }).unwrap_err().to_string();
        assert!(message.contains("strictly between 0 and 1"), "{message}");
        let message = divergence_sum(&x, &x, 0.0, Divergence::ForwardKl).unwrap_err().to_string();
        assert!(message.contains("temperature: want a positive number, found 0"), "{message}");
        Ok(())
    }
}

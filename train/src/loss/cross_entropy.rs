//! Cross entropy with one right answer per row: logsumexp(x) − (logit of the answer).

use candle_core::{Result, Tensor};

use super::kernels::RowKernels;
use crate::ops::gpu::{Typed, typed, word};
use crate::ops::lanes;

const LIBRARY: Typed = typed!("cross_entropy", "../ops/gpu/common.metal", "cross_entropy.metal");

/// The loss of one row, in nats. Its gradient, softmax(x) less one at the `target`, unless `gradient` is empty.
#[inline(always)]
pub(super) fn row(target: u32, logits: &[f32], gradient: &mut [f32]) -> f64 {
    let target = target as usize;
    let shift = lanes::max(logits);
    let total = if gradient.is_empty() {
        lanes::sum_map(logits, |x| lanes::exp(x - shift))
    } else {
        let total = lanes::map_sum(logits, gradient, |x| lanes::exp(x - shift));
        lanes::scale(gradient, 1.0 / total);
        gradient[target] -= 1.0;
        total
    };
    f64::from(total).ln() - f64::from(logits[target] - shift)
}

/// The same in kernels, for rows like those of `logits`; compared with the targets as u32.
pub(super) fn kernels(logits: &Tensor) -> Result<RowKernels> {
    Ok(RowKernels {
        library: LIBRARY,
        forward: "cross_entropy",
        backward: "cross_entropy_backward",
        shape: vec![word(logits.dim(1)?)?],
        kept: 2,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Rows, Term, tests::sum_of};
    use super::*;
    use crate::ops::check::{assert_matches, uniform};
    use crate::ops::gpu::host::{self, Care};
    use candle_core::{Device, Var};

    fn cross_entropy(logits: &Tensor, text: &[u32]) -> Result<Tensor> {
        sum_of(logits, Term::CrossEntropy, &Rows { text, teacher: None, temperature: 1.0 })
    }

    fn assert_agrees(n: usize, vocab: usize, tolerance: f64) -> Result<()> {
        let text: Vec<u32> = (0..n as u32).map(|i| i * 7 % vocab as u32).collect();
        let ids = Tensor::new(text.as_slice(), &Device::Cpu)?.unsqueeze(1)?;
        let reference =
            |t: &[Tensor]| candle_nn::ops::log_softmax(&t[0], 1)?.gather(&ids, 1)?.sum_all()?.neg();
        assert_matches(
            |t| cross_entropy(&t[0], &text),
            reference,
            &[uniform(12, 6.0, &[n, vocab])?],
            tolerance,
        )
    }

    #[test]
    fn value_and_gradient_agree_with_finite_differences() -> Result<()> {
        // exp 2.4e-7 on arguments rounded to 12·6e-8, a sum of 37 in 16 lanes: 7 more roundings.
        [(1, 1), (4, 3), (3, 37)].into_iter().try_for_each(|(n, vocab)| assert_agrees(n, vocab, 2e-6))
    }

    #[test]
    fn the_kernels_agree_with_finite_differences() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        // As on the CPU; sums of 1050 run in 256 threads, 5 + 8 + 3 roundings one after the other.
        let shapes = [(1, 1), (4, 3), (3, 137), (1, 1050)];
        shapes
            .into_iter()
            .try_for_each(|(n, vocab)| host::emulating(Care::EveryMode, || assert_agrees(n, vocab, 3e-6)))
    }

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_vocabulary() -> Result<()> {
        let logits = Tensor::full(3.5f32, (5, 8), &Device::Cpu)?;
        let loss = cross_entropy(&logits, &[0; 5])?.to_scalar::<f32>()?;
        assert!((loss - 5.0 * 8f32.ln()).abs() < 1e-5, "{loss}");
        Ok(())
    }

    #[test]
    fn nan_and_infinite_logits_give_nan_and_no_panic() -> Result<()> {
        for bad in [f32::NAN, f32::INFINITY] {
            let logits = Var::new(&[[0.5f32, 1.0, 2.0], [0.0, bad, 1.0]], &Device::Cpu)?;
            assert!(cross_entropy(&logits, &[0, 0])?.to_scalar::<f32>()?.is_nan());
            if host::available() {
                let found = host::emulating(Care::EveryMode, || cross_entropy(&logits, &[0, 0]))?;
                assert!(found.to_scalar::<f32>()?.is_nan(), "{bad}");
            }
        }
        Ok(())
    }
}

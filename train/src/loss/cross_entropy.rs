//! Cross entropy with one right answer per row: logsumexp(x) − (logit of the answer).

use candle_core::{Result, Tensor};

use super::{LogitsGradient, RowKernels, RowLoss, Term, check_logits, gradient_rows, sum_of, sum_rows};
use crate::ops::gpu::{Library, Path, library, path, word};
use crate::ops::lanes;

const NAME: &str = "cross_entropy_sum";
const LIBRARY: Library = library!("cross_entropy", "../ops/gpu/common.metal", "cross_entropy.metal");

/// −Σ ln softmax(`logits`)\[row, target\] over the rows of `logits` `[n, vocab]`, in nats; one target a row. `logits` are contiguous.
///
/// # Errors
/// Another number of targets than rows, or one not below `vocab`; logits other than f32 on the CPU.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Term> {
    let (n, vocab) = check_logits(NAME, logits)?;
    if targets.len() != n {
        candle_core::bail!("{NAME}: targets: want {n}, one a row, found {}", targets.len());
    }
    if let Some(row) = targets.iter().position(|&id| id as usize >= vocab) {
        candle_core::bail!("{NAME}: targets[{row}]: want an id below {vocab}, found {}", targets[row]);
    }
    match path(logits.device()) {
        Path::Cpu => {
            let rows = CrossEntropy { targets: targets.to_vec() };
            Ok(Term { sum: sum_rows(NAME, &rows, logits)?, gradient: Box::new(rows) })
        }
        Path::Kernels => on_gpu(logits, targets),
    }
}

/// [`cross_entropy`] as a scalar in the graph of `logits`.
///
/// # Errors
/// As there.
pub fn cross_entropy_sum(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let logits = logits.contiguous()?;
    cross_entropy(&logits, targets)?.attached(&logits)
}

/// What the tests hold every implementation to, in operations of candle.
#[cfg(test)]
fn composed(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    candle_nn::ops::log_softmax(logits, 1)?.gather(&targets.unsqueeze(1)?, 1)?.sum_all()?.neg()
}

fn on_gpu(logits: &Tensor, targets: &[u32]) -> Result<Term> {
    let kernels = RowKernels {
        name: NAME,
        library: LIBRARY,
        forward: "cross_entropy",
        backward: "cross_entropy_backward",
        shape: vec![word(logits.dim(1)?)?],
        kept: 2,
    };
    kernels.term(logits, Tensor::new(targets, logits.device())?)
}

struct CrossEntropy {
    /// One per row, all below the number of columns.
    targets: Vec<u32>,
}

impl LogitsGradient for CrossEntropy {
    fn gradient(&self, logits: &Tensor, upstream: &Tensor, to: Option<Tensor>) -> Result<Tensor> {
        sum_of(gradient_rows(NAME, self, logits, upstream)?, to)
    }
}

impl RowLoss for CrossEntropy {
    const SCRATCH: usize = 0;

    /// The gradient is softmax(x), less one at the target.
    #[inline(always)]
    fn row(&self, index: usize, logits: &[f32], _: &mut [f32], gradient: &mut [f32]) -> f64 {
        let target = self.targets[index] as usize;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_matches, uniform};
    use crate::ops::gpu::host;
    use candle_core::{Device, Var};

    #[test]
    fn value_and_gradient_agree_with_finite_differences() -> Result<()> {
        for (n, vocab) in [(1, 1), (4, 3), (3, 37)] {
            let targets: Vec<u32> = (0..n as u32).map(|i| i * 7 % vocab as u32).collect();
            let ids = Tensor::new(targets.as_slice(), &Device::Cpu)?;
            let inputs = [uniform(12, 6.0, &[n, vocab])?];
            // exp 2.4e-7 on arguments rounded to 12·6e-8, a sum of 37 in 16 lanes: 7 more roundings.
            let reference = |t: &[Tensor]| composed(&t[0], &ids);
            assert_matches(|t| cross_entropy_sum(&t[0], &targets), reference, &inputs, 2e-6)?;
            assert_matches(|t| composed(&t[0], &ids), reference, &inputs, 2e-6)?;
        }
        Ok(())
    }

    #[test]
    fn the_kernels_agree_with_finite_differences() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for (n, vocab) in [(1, 1), (4, 3), (3, 137), (1, 1050)] {
            let targets: Vec<u32> = (0..n as u32).map(|i| i * 7 % vocab as u32).collect();
            let ids = Tensor::new(targets.as_slice(), &Device::Cpu)?;
            let inputs = [uniform(12, 6.0, &[n, vocab])?];
            let reference = |t: &[Tensor]| composed(&t[0], &ids);
            // As on the CPU; sums of 1050 run in 256 threads, 5 + 8 + 3 roundings one after the other.
            assert_matches(|t| on_gpu(&t[0], &targets)?.attached(&t[0]), reference, &inputs, 3e-6)?;
        }
        Ok(())
    }

    #[test]
    fn the_kernels_make_nan_of_nan_and_infinite_logits() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for bad in [f32::NAN, f32::INFINITY] {
            let logits = Tensor::new(&[[0.5f32, 1.0, 2.0], [0.0, bad, 1.0]], &Device::Cpu)?;
            assert!(on_gpu(&logits, &[0, 0])?.sum()?.is_nan(), "{bad}");
        }
        Ok(())
    }

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_vocabulary() -> Result<()> {
        let logits = Tensor::full(3.5f32, (5, 8), &Device::Cpu)?;
        let loss = cross_entropy_sum(&logits, &[0; 5])?.to_scalar::<f32>()?;
        assert!((loss - 5.0 * 8f32.ln()).abs() < 1e-5, "{loss}");
        Ok(())
    }

    #[test]
    fn a_division_after_the_sum_reaches_the_gradient() -> Result<()> {
        let logits = Var::from_tensor(&uniform(13, 1.0, &[4, 6])?)?;
        let targets = [0; 4];
        let sum = cross_entropy_sum(&logits, &targets)?.backward()?;
        let mean = (cross_entropy_sum(&logits, &targets)? / 4.0)?.backward()?;
        let (sum, mean) = (sum.get(&logits), mean.get(&logits));
        let (Some(sum), Some(mean)) = (sum, mean) else { panic!("no gradient") };
        assert_eq!((sum / 4.0)?.to_vec2::<f32>()?, mean.to_vec2::<f32>()?);
        Ok(())
    }

    #[test]
    fn nan_and_infinite_logits_give_nan_and_no_panic() -> Result<()> {
        for bad in [f32::NAN, f32::INFINITY] {
            let logits = Var::new(&[[0.5f32, 1.0, 2.0], [0.0, bad, 1.0]], &Device::Cpu)?;
            let loss = cross_entropy_sum(&logits, &[0, 0])?;
            assert!(loss.to_scalar::<f32>()?.is_nan());
            loss.backward()?;
        }
        Ok(())
    }

    #[test]
    fn a_target_outside_the_vocabulary_is_refused_by_row() -> Result<()> {
        let message = cross_entropy_sum(&uniform(1, 1.0, &[2, 3])?, &[0, 3]).unwrap_err().to_string();
        assert!(message.contains("targets[1]: want an id below 3, found 3"), "{message}");
        Ok(())
    }
}

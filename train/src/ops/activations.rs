//! int8 activations with one scale per token, straight through.
//!
//! Knows no codec: on the CPU the value is `qat_quant::int8_tokens`, the same call that the runtime makes. On Metal
//! a kernel, elsewhere candle's operations do the same arithmetic, so that activations never leave their device.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};

use super::gpu::{Backward, Bind, Grid, Path, Typed, Work, attach, path, typed, word};
use super::{blend, floats, floats_out, tape};

const NAME: &str = "quantize_activations";
const LIBRARY: Typed = typed!("activations", "gpu/common.metal", "activations.metal");

/// Rounds each row of `x` `[.., cols]` to 8 bits: x̂ = a·clamp(round_ties_even(x·(127/max|x|)), −128, 127) with a = max|x|/127.
///
/// The value is x + `lambda`·(x̂ − x), and exactly x̂ at 1. The gradient passes unchanged.
///
/// # Errors
/// Rows of length 0; dtypes other than f32 on the CPU.
pub fn quantize_activations(x: &Tensor, lambda: f32) -> Result<Tensor> {
    if x.dim(D::Minus1)? == 0 {
        candle_core::bail!("{NAME}: want rows of at least one element, found {:?}", x.dims());
    }
    match path(x.device()) {
        Path::Cpu => tape::apply1(&x.contiguous()?, Int8Tokens { lambda }),
        Path::Kernels => on_gpu(x, lambda),
    }
}

fn on_gpu(x: &Tensor, lambda: f32) -> Result<Tensor> {
    let x = x.contiguous()?;
    let width = x.dim(D::Minus1)?;
    let mut work = Work::default();
    let value = work.output_like(&x);
    let grid = Grid::Rows { rows: x.elem_count() / width, width };
    work.add(
        LIBRARY.of(x.dtype())?,
        "int8_tokens",
        grid,
        [Bind::Input(0), Bind::Output(value)],
        &[word(width)?, lambda.to_bits()],
    )?;
    let [value] = work.run(NAME, &[&x])?;
    attach(value, &[&x], StraightThrough)
}

/// What the tests hold every implementation to, in operations of candle.
#[cfg(test)]
fn composed(x: &Tensor, lambda: f32) -> Result<Tensor> {
    // Adding and subtracting 1.5·2²³, in two kernels, rounds |v| ≤ 2²² to the nearest integer, ties to even; candle's
    // own round takes ties away from zero. |x/a| ≤ 127 up to rounding, so that no clamp is needed.
    const ROUNDER: f64 = 12_582_912.0;
    let latent = x.detach();
    let scale = (latent.abs()?.max_keepdim(D::Minus1)? / 127.0)?;
    // A zero row is divided by 1 instead.
    let scale = (&scale + scale.eq(0.0)?.to_dtype(scale.dtype())?)?;
    let codes = latent.broadcast_div(&scale)?.affine(1.0, ROUNDER)?.affine(1.0, -ROUNDER)?;
    let mut value = codes.broadcast_mul(&scale)?;
    if lambda != 1.0 {
        value = (&latent + ((value - &latent)? * f64::from(lambda))?)?;
    }
    Ok(value)
}

struct Int8Tokens {
    lambda: f32,
}

impl CustomOp1 for Int8Tokens {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(NAME, x, layout)?;
        let mut quantized = x.to_vec();
        qat_quant::int8_tokens(&mut quantized, layout.shape().dim(D::Minus1)?);
        blend(x, &mut quantized, self.lambda);
        floats_out(quantized, layout.shape().clone())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.clone()))
    }
}

/// The gradient passes unchanged: exact, unlike `x + (value − x).detach()`.
pub(super) struct StraightThrough;

impl Backward for StraightThrough {
    const NAME: &'static str = "straight_through";
    const READS_INPUTS: bool = false;

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(grad.clone())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_rounds_once, backward, bits, uniform};
    use crate::ops::gpu::host;
    use candle_core::{Device, Var};

    /// Rows of several magnitudes, one of zeros, one with exact ties between codes.
    fn rows() -> Result<Tensor> {
        let random = uniform(22, 3.0, &[4, 24])?;
        let zeros = random.narrow(0, 0, 1)?.zeros_like()?;
        let ties: Vec<f32> = (0..24).map(|i| i as f32 + 0.5).chain([127.0]).skip(1).collect();
        let ties = Tensor::from_vec(ties, (1, 24), &Device::Cpu)?;
        Tensor::cat(&[&random, &zeros, &ties, &(&random * 1e-20)?], 0)
    }

    #[test]
    fn the_value_is_the_runtimes_to_the_bit_on_both_paths() -> Result<()> {
        let x = rows()?;
        let mut want = x.flatten_all()?.to_vec1::<f32>()?;
        qat_quant::int8_tokens(&mut want, 24);
        assert_ne!(want, x.flatten_all()?.to_vec1::<f32>()?);
        let want: Vec<u32> = want.into_iter().map(f32::to_bits).collect();
        assert_eq!(bits(&quantize_activations(&x, 1.0)?)?, want);
        assert_eq!(bits(&composed(&x, 1.0)?)?, want);
        Ok(())
    }

    #[test]
    fn the_kernel_gives_the_runtimes_value_to_the_bit() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for x in [rows()?, uniform(24, 3.0, &[3, 1])?, uniform(25, 3.0, &[2, 1100])?] {
            for lambda in [1.0, 0.3] {
                assert_eq!(
                    bits(&on_gpu(&x, lambda)?)?,
                    bits(&quantize_activations(&x, lambda)?)?,
                    "{lambda}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn warm_up_starts_at_the_activations_and_both_paths_agree_on_the_way() -> Result<()> {
        let x = rows()?;
        assert_eq!(bits(&quantize_activations(&x, 0.0)?)?, bits(&x)?);
        assert_eq!(bits(&quantize_activations(&x, 0.3)?)?, bits(&composed(&x, 0.3)?)?);
        Ok(())
    }

    #[test]
    fn the_gradient_passes_unchanged_on_both_paths() -> Result<()> {
        let x = Var::from_tensor(&rows()?)?;
        let g = uniform(23, 1.0, x.dims())?;
        for lambda in [1.0, 0.5] {
            let mut ways = vec![backward(|| quantize_activations(&x, lambda), &g)?];
            if host::available() {
                ways.push(backward(|| on_gpu(&x, lambda), &g)?);
            }
            for (_, grads) in ways {
                let Some(dx) = grads.get(&x) else { panic!("no gradient") };
                assert_eq!(bits(dx)?, bits(&g)?);
            }
        }
        Ok(())
    }

    #[test]
    fn in_bf16_the_kernel_rounds_once() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for lambda in [1.0, 0.3] {
            assert_rounds_once(|t| quantize_activations(&t[0], lambda), &[rows()?], &[])?;
        }
        Ok(())
    }
}

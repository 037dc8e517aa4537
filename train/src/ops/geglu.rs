//! The gate of Gemma's MLPs: gelu(gate)·up, with the approximation that PyTorch calls `tanh` (Hendrycks and Gimpel, arXiv 1606.08415).
//!
//! Knows no projections. `½·(1 + tanh(y/2))` is the logistic function of y, so that no hyperbolic function is needed.

use candle_core::{Result, Tensor};

use super::{
    gate::{Gate, gated},
    gpu::{Typed, typed},
    lanes,
};

/// gelu(`gate`)·`up`, elementwise over two tensors of one shape.
///
/// # Errors
/// Shapes that differ; dtypes other than f32 on the CPU.
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated::<GeGlu>(gate, up)
}

/// 2·√(2/π)
const TWICE_ROOT: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715;

/// The share of x that passes.
#[inline(always)]
fn share(x: f32) -> f32 {
    lanes::sigmoid(TWICE_ROOT * (x + CUBIC * x * x * x))
}

struct GeGlu;

impl Gate for GeGlu {
    const NAME: &'static str = "geglu";
    const BACKWARD: &'static str = "geglu_backward";
    const LIBRARY: Typed = typed!("geglu", "gpu/common.metal", "geglu.metal");

    #[inline(always)]
    fn value(gate: f32, up: f32) -> f32 {
        gate * share(gate) * up
    }

    /// With s the share of x = gate and s' = s·(1 − s)·2√(2/π)·(1 + 3·0.044715·x²): d gate = g·up·(s + x·s'), d up = g·x·s.
    #[inline(always)]
    fn gradients(gate: f32, up: f32, g: f32) -> (f32, f32) {
        let s = share(gate);
        let inner = TWICE_ROOT * (1.0 + 3.0 * CUBIC * gate * gate);
        (g * up * s * (1.0 + gate * (1.0 - s) * inner), g * gate * s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gate::held;

    /// What the tests hold every implementation to, in operations of candle.
    fn composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        gate.gelu()? * up
    }

    /// The argument is off by six roundings of up to 24, exp by 2.4e-7 more, and the products by four.
    const TOLERANCE: f64 = 6e-6;

    #[test]
    fn value_and_gradients_agree_with_finite_differences() -> Result<()> {
        held::on_the_cpu::<GeGlu>(composed, TOLERANCE)
    }

    #[test]
    fn the_kernels_agree_with_finite_differences() -> Result<()> {
        held::in_kernels::<GeGlu>(composed, TOLERANCE)
    }

    #[test]
    fn far_from_zero_a_gate_is_open_or_shut() -> Result<()> {
        let gate = Tensor::new(&[-300f32, -40.0, 0.0, 40.0, f32::NAN], &candle_core::Device::Cpu)?;
        let y = geglu(&gate, &gate.ones_like()?)?.to_vec1::<f32>()?;
        assert_eq!(y[..4], [0.0, 0.0, 0.0, 40.0]);
        assert!(y[4].is_nan());
        Ok(())
    }

    #[test]
    fn in_bf16_the_kernels_round_once() -> Result<()> {
        held::in_bf16::<GeGlu>()
    }
}

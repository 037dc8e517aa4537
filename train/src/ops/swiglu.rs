//! The gate of a gated MLP: silu(gate)·up, with silu(x) = x·σ(x) (Shazeer, arXiv 2002.05202).
//!
//! Knows no projections. The backward pass recomputes σ instead of keeping it.

use candle_core::{Result, Tensor};

use super::{
    gate::{Gate, gated},
    gpu::{Typed, typed},
    lanes,
};

/// silu(`gate`)·`up`, elementwise over two tensors of one shape.
///
/// # Errors
/// Shapes that differ; dtypes other than f32 on the CPU.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated::<SwiGlu>(gate, up)
}

struct SwiGlu;

impl Gate for SwiGlu {
    const NAME: &'static str = "swiglu";
    const BACKWARD: &'static str = "swiglu_backward";
    const LIBRARY: Typed = typed!("swiglu", "gpu/common.metal", "swiglu.metal");

    #[inline(always)]
    fn value(gate: f32, up: f32) -> f32 {
        gate * lanes::sigmoid(gate) * up
    }

    /// d gate = g·up·σ·(1 + gate·(1 − σ)), d up = g·gate·σ.
    #[inline(always)]
    fn gradients(gate: f32, up: f32, g: f32) -> (f32, f32) {
        let sigmoid = lanes::sigmoid(gate);
        (g * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), g * gate * sigmoid)
    }
}

/// What the tests hold every implementation to, in operations of candle.
#[cfg(test)]
fn composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::uniform;
    use crate::ops::gate::held;

    #[test]
    fn value_and_gradients_agree_with_finite_differences() -> Result<()> {
        // exp 2.4e-7, then at most six roundings of 6e-8.
        held::on_the_cpu::<SwiGlu>(composed, 8e-7)
    }

    #[test]
    fn the_kernels_agree_with_finite_differences() -> Result<()> {
        // As on the CPU; Metal's precise exp is good to 4 units in the last place, 5e-7.
        held::in_kernels::<SwiGlu>(composed, 1e-6)
    }

    #[test]
    fn a_very_negative_gate_closes_without_overflow() -> Result<()> {
        let gate = Tensor::new(&[-1e4f32, -90.0, 90.0], &candle_core::Device::Cpu)?;
        let y = swiglu(&gate, &gate.ones_like()?)?.to_vec1::<f32>()?;
        assert_eq!((y[0].abs(), y[2]), (0.0, 90.0));
        assert!(y[1].abs() < 1e-36, "{y:?}");
        Ok(())
    }

    #[test]
    fn shapes_that_differ_are_refused() -> Result<()> {
        let message = swiglu(&uniform(1, 1.0, &[2, 8])?, &uniform(2, 1.0, &[4])?).unwrap_err().to_string();
        assert!(message.contains("want the shape of gate [2, 8], found [4]"), "{message}");
        Ok(())
    }

    #[test]
    fn in_bf16_the_kernels_round_once() -> Result<()> {
        held::in_bf16::<SwiGlu>()
    }
}

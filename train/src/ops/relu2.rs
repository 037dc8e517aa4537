//! The gate of BitNet b1.58's MLP: max(gate, 0)²·up (So et al., arXiv 2109.08668; Ma et al., arXiv 2504.12285).
//!
//! Knows no projections. Where the gate is shut, so is the way of gradients.

use candle_core::{Result, Tensor};

use super::{
    gate::{Gate, gated},
    gpu::{Typed, typed},
};

/// max(`gate`, 0)²·`up`, elementwise over two tensors of one shape.
///
/// # Errors
/// Shapes that differ; dtypes other than f32 on the CPU.
pub fn relu2(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated::<Relu2>(gate, up)
}

/// max(x, 0), but a NaN stays one: that is how a diverged run is noticed.
#[inline(always)]
fn open(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

struct Relu2;

impl Gate for Relu2 {
    const NAME: &'static str = "relu2";
    const BACKWARD: &'static str = "relu2_backward";
    const LIBRARY: Typed = typed!("relu2", "gpu/common.metal", "relu2.metal");

    #[inline(always)]
    fn value(gate: f32, up: f32) -> f32 {
        let x = open(gate);
        x * x * up
    }

    /// With x = max(gate, 0): d gate = 2·g·up·x, d up = g·x².
    #[inline(always)]
    fn gradients(gate: f32, up: f32, g: f32) -> (f32, f32) {
        let x = open(gate);
        (2.0 * g * up * x, g * x * x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::uniform;
    use crate::ops::gate::held;

    /// What the tests hold every implementation to, in operations of candle.
    fn composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        gate.relu()?.sqr()? * up
    }

    /// The gate's square has a bend of its slope at 0 and no step: finite differences over it are off by 1e-4·2·up at most,
    /// relative to slopes of up to 12, within the 2e-5 that are allowed. Three roundings are 2e-7.
    const TOLERANCE: f64 = 2e-5;

    #[test]
    fn value_and_gradients_agree_with_finite_differences() -> Result<()> {
        held::on_the_cpu::<Relu2>(composed, TOLERANCE)
    }

    #[test]
    fn the_kernels_agree_with_finite_differences() -> Result<()> {
        held::in_kernels::<Relu2>(composed, TOLERANCE)
    }

    #[test]
    fn a_shut_gate_gives_nothing_and_a_broken_one_is_seen() -> Result<()> {
        let gate = Tensor::new(&[-3f32, -0.0, 0.0, 2.0, f32::NAN], &candle_core::Device::Cpu)?;
        let y = relu2(&gate, &gate.ones_like()?)?.to_vec1::<f32>()?;
        assert_eq!(y[..4], [0.0, 0.0, 0.0, 4.0]);
        assert!(y[4].is_nan());
        Ok(())
    }

    #[test]
    fn shapes_that_differ_are_refused() -> Result<()> {
        let message = relu2(&uniform(1, 1.0, &[2, 8])?, &uniform(2, 1.0, &[4])?).unwrap_err().to_string();
        assert!(message.contains("want the shape of gate [2, 8], found [4]"), "{message}");
        Ok(())
    }

    #[test]
    fn in_bf16_the_kernels_round_once() -> Result<()> {
        held::in_bf16::<Relu2>()
    }
}

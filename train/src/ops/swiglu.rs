//! The gate of a gated MLP: silu(gate)·up, with silu(x) = x·σ(x) (Shazeer, arXiv 2002.05202).
//!
//! Knows no projections. The backward pass recomputes σ instead of keeping it.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::gpu::{Backward, Bind, Grid, Path, Typed, Work, attach, path, typed, word};
use super::{Floats, floats, floats_out, for_each_chunk, lanes, tape};

const NAME: &str = "swiglu";
const LIBRARY: Typed = typed!("swiglu", "gpu/common.metal", "swiglu.metal");

/// silu(`gate`)·`up`, elementwise over two tensors of one shape.
///
/// # Errors
/// Shapes that differ; dtypes other than f32 on the CPU.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        candle_core::bail!("{NAME}: up: want the shape of gate {:?}, found {:?}", gate.dims(), up.dims());
    }
    match path(gate.device()) {
        Path::Cpu => tape::apply2(&gate.contiguous()?, &up.contiguous()?, SwiGlu),
        Path::Kernels => on_gpu(gate, up),
    }
}

fn on_gpu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let n = gate.elem_count();
    let mut work = Work::default();
    let y = work.output_like(&gate);
    let binds = [Bind::Input(0), Bind::Input(1), Bind::Output(y)];
    work.add(LIBRARY.of(gate.dtype())?, "swiglu", Grid::Each(n), binds, &[word(n)?])?;
    let [y] = work.run(NAME, &[&gate, &up])?;
    attach(y, &[&gate, &up], GpuSwiGlu)
}

struct GpuSwiGlu;

impl Backward for GpuSwiGlu {
    const NAME: &'static str = NAME;

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (gate, up) = (inputs[0], inputs[1]);
        let n = gate.elem_count();
        let mut work = Work::default();
        let (d_gate, d_up) = (work.output_like(gate), work.output_like(gate));
        let binds =
            [Bind::Input(0), Bind::Input(1), Bind::Input(2), Bind::Output(d_gate), Bind::Output(d_up)];
        work.add(LIBRARY.of(gate.dtype())?, "swiglu_backward", Grid::Each(n), binds, &[word(n)?])?;
        let [d_gate, d_up] = work.run(NAME, &[gate, up, g])?;
        Ok(vec![Some(d_gate), Some(d_up)])
    }
}

/// What the tests hold every implementation to, in operations of candle.
#[cfg(test)]
fn composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        lg: &Layout,
        up: &CpuStorage,
        lu: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (floats(NAME, gate, lg)?, floats(NAME, up, lu)?);
        let mut y = vec![0f32; gate.len()];
        for_each_chunk(
            1,
            [&mut y],
            [gate, up],
            #[inline(always)]
            |_, [y], [gate, up]| {
                for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                    *y = gate * lanes::sigmoid(gate) * up;
                }
            },
        );
        floats_out(y, lg.shape().clone())
    }

    /// d gate = g·up·σ·(1 + gate·(1 − σ)), d up = g·gate·σ.
    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (mut d_gate, mut d_up) = (vec![0f32; gate.elem_count()], vec![0f32; gate.elem_count()]);
        for_each_chunk(
            1,
            [&mut d_gate, &mut d_up],
            [&Floats::of(NAME, gate)?, &Floats::of(NAME, up)?, &Floats::of(NAME, &g)?],
            #[inline(always)]
            |_, [d_gate, d_up], [gate, up, g]| {
                let inputs = gate.iter().zip(up).zip(g);
                for ((d_gate, d_up), ((&gate, &up), &g)) in d_gate.iter_mut().zip(d_up).zip(inputs) {
                    let sigmoid = lanes::sigmoid(gate);
                    *d_gate = g * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
                    *d_up = g * gate * sigmoid;
                }
            },
        );
        let d_gate = Tensor::from_vec(d_gate, gate.shape(), gate.device())?;
        let d_up = Tensor::from_vec(d_up, gate.shape(), gate.device())?;
        Ok((Some(d_gate), Some(d_up)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_matches, assert_rounds_once, uniform};
    use crate::ops::gpu::host;

    #[test]
    fn value_and_gradients_agree_with_finite_differences() -> Result<()> {
        for shape in [vec![1], vec![3, 37]] {
            let inputs = [uniform(7, 6.0, &shape)?, uniform(8, 2.0, &shape)?];
            // exp 2.4e-7, then at most six roundings of 6e-8.
            assert_matches(|t| swiglu(&t[0], &t[1]), |t| composed(&t[0], &t[1]), &inputs, 8e-7)?;
        }
        Ok(())
    }

    #[test]
    fn the_kernels_agree_with_finite_differences() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for shape in [vec![1], vec![3, 137]] {
            let inputs = [uniform(7, 6.0, &shape)?, uniform(8, 2.0, &shape)?];
            // As on the CPU; Metal's precise exp is good to 4 units in the last place, 5e-7.
            assert_matches(|t| on_gpu(&t[0], &t[1]), |t| composed(&t[0], &t[1]), &inputs, 1e-6)?;
        }
        Ok(())
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
        if !host::available() {
            return Ok(());
        }
        let inputs = [uniform(7, 6.0, &[3, 137])?, uniform(8, 2.0, &[3, 137])?];
        assert_rounds_once(|t| swiglu(&t[0], &t[1]), &inputs, &[])
    }
}

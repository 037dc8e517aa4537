//! The gate of BitNet b1.58's MLP: max(gate, 0)²·up (So et al., arXiv 2109.08668; Ma et al., arXiv 2504.12285).
//!
//! Knows no projections. Where the gate is shut, so is the way of gradients.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::gpu::{Backward, Bind, Grid, Path, Typed, Work, attach, path, typed, word};
use super::{Floats, floats, floats_out, for_each_chunk, tape};

const NAME: &str = "relu2";
const LIBRARY: Typed = typed!("relu2", "gpu/common.metal", "relu2.metal");

/// max(`gate`, 0)²·`up`, elementwise over two tensors of one shape.
///
/// # Errors
/// Shapes that differ; dtypes other than f32 on the CPU.
pub fn relu2(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        candle_core::bail!("{NAME}: up: want the shape of gate {:?}, found {:?}", gate.dims(), up.dims());
    }
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    match path(gate.device()) {
        Path::Cpu => tape::apply2(&gate, &up, Relu2),
        Path::Kernels => on_gpu(&gate, &up),
    }
}

fn on_gpu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let n = gate.elem_count();
    let mut work = Work::default();
    let y = work.output_like(gate);
    let binds = [Bind::Input(0), Bind::Input(1), Bind::Output(y)];
    work.add(LIBRARY.of(gate.dtype())?, "relu2", Grid::Each(n), binds, &[word(n)?])?;
    let [y] = work.run(NAME, &[gate, up])?;
    attach(y, &[gate, up], GpuRelu2)
}

struct GpuRelu2;

impl Backward for GpuRelu2 {
    const NAME: &'static str = NAME;

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (gate, up) = (inputs[0], inputs[1]);
        let n = gate.elem_count();
        let mut work = Work::default();
        let gradients = [work.output_like(gate), work.output_like(gate)];
        let [d_gate, d_up] = gradients.map(Bind::Output);
        let binds = [Bind::Input(0), Bind::Input(1), Bind::Input(2), d_gate, d_up];
        work.add(LIBRARY.of(gate.dtype())?, "relu2_backward", Grid::Each(n), binds, &[word(n)?])?;
        let [d_gate, d_up] = work.run(NAME, &[gate, up, g])?;
        Ok(vec![Some(d_gate), Some(d_up)])
    }
}

/// max(x, 0), but a NaN stays one: that is how a diverged run is noticed.
#[inline(always)]
fn open(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

struct Relu2;

impl CustomOp2 for Relu2 {
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
                    let x = open(gate);
                    *y = x * x * up;
                }
            },
        );
        floats_out(y, lg.shape().clone())
    }

    /// With x = max(gate, 0): d gate = 2·g·up·x, d up = g·x².
    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let mut gradients = [vec![0f32; gate.elem_count()], vec![0f32; gate.elem_count()]];
        for_each_chunk(
            1,
            gradients.each_mut().map(Vec::as_mut_slice),
            [&Floats::of(NAME, gate)?, &Floats::of(NAME, up)?, &Floats::of(NAME, &g)?],
            #[inline(always)]
            |_, [d_gate, d_up], [gate, up, g]| {
                let inputs = gate.iter().zip(up).zip(g);
                for ((d_gate, d_up), ((&gate, &up), &g)) in d_gate.iter_mut().zip(d_up).zip(inputs) {
                    let x = open(gate);
                    *d_gate = 2.0 * g * up * x;
                    *d_up = g * x * x;
                }
            },
        );
        let [d_gate, d_up] = gradients.map(|values| Tensor::from_vec(values, gate.shape(), gate.device()));
        Ok((Some(d_gate?), Some(d_up?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_matches, assert_rounds_once, uniform};
    use crate::ops::gpu::host;

    /// What the tests hold every implementation to, in operations of candle.
    fn composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        gate.relu()?.sqr()? * up
    }

    /// The gate's square has a bend of its slope at 0 and no step: finite differences over it are off by 1e-4·2·up at most,
    /// relative to slopes of up to 12, within the 2e-5 that are allowed. Three roundings are 2e-7.
    const TOLERANCE: f64 = 2e-5;

    #[test]
    fn value_and_gradients_agree_with_finite_differences() -> Result<()> {
        for shape in [vec![1], vec![3, 37]] {
            let inputs = [uniform(7, 6.0, &shape)?, uniform(8, 2.0, &shape)?];
            assert_matches(|t| relu2(&t[0], &t[1]), |t| composed(&t[0], &t[1]), &inputs, TOLERANCE)?;
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
            assert_matches(|t| on_gpu(&t[0], &t[1]), |t| composed(&t[0], &t[1]), &inputs, TOLERANCE)?;
        }
        Ok(())
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
        if !host::available() {
            return Ok(());
        }
        let inputs = [uniform(7, 6.0, &[3, 137])?, uniform(8, 2.0, &[3, 137])?];
        assert_rounds_once(|t| relu2(&t[0], &t[1]), &inputs, &[])
    }
}

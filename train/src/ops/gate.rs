//! The gate of a gated MLP: what one product lets through of the other, elementwise, with its gradients.
//!
//! Knows no projections and no function: those are [`Gate`]s, a file each. Both tensors come back in the backward pass; nothing
//! else is kept.

use std::marker::PhantomData;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::gpu::{Backward, Bind, Grid, Path, Typed, Work, attach, path, word};
use super::{Floats, floats, floats_out, for_each_chunk, tape};

/// A gate's function, as the CPU computes it and as kernels do.
pub(super) trait Gate: Send + Sync + 'static {
    /// Of the operation, and of its kernel.
    const NAME: &'static str;
    /// Of the kernel of its gradients.
    const BACKWARD: &'static str;
    /// With both kernels.
    const LIBRARY: Typed;

    /// What goes through.
    fn value(gate: f32, up: f32) -> f32;

    /// The gradients of `gate` and `up`, where that of the value is `g`.
    fn gradients(gate: f32, up: f32, g: f32) -> (f32, f32);
}

/// `G` of `gate` and `up`, elementwise over two tensors of one shape.
///
/// # Errors
/// Shapes that differ; dtypes other than f32 on the CPU.
pub(super) fn gated<G: Gate>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        candle_core::bail!(
            "{}: up: want the shape of gate {:?}, found {:?}",
            G::NAME,
            gate.dims(),
            up.dims()
        );
    }
    match path(gate.device()) {
        Path::Cpu => tape::apply2(&gate.contiguous()?, &up.contiguous()?, Gated::<G>(PhantomData)),
        Path::Kernels => on_gpu::<G>(gate, up),
    }
}

fn on_gpu<G: Gate>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let n = gate.elem_count();
    let mut work = Work::default();
    let y = work.output_like(&gate);
    let binds = [Bind::Input(0), Bind::Input(1), Bind::Output(y)];
    work.add(G::LIBRARY.of(gate.dtype())?, G::NAME, Grid::Each(n), binds, &[word(n)?])?;
    let [y] = work.run(G::NAME, &[&gate, &up])?;
    attach(y, &[&gate, &up], Gated::<G>(PhantomData))
}

struct Gated<G>(PhantomData<G>);

impl<G: Gate> Backward for Gated<G> {
    const NAME: &'static str = G::NAME;

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (gate, up) = (inputs[0], inputs[1]);
        let n = gate.elem_count();
        let mut work = Work::default();
        let (d_gate, d_up) = (work.output_like(gate), work.output_like(gate));
        let binds =
            [Bind::Input(0), Bind::Input(1), Bind::Input(2), Bind::Output(d_gate), Bind::Output(d_up)];
        work.add(G::LIBRARY.of(gate.dtype())?, G::BACKWARD, Grid::Each(n), binds, &[word(n)?])?;
        let [d_gate, d_up] = work.run(G::NAME, &[gate, up, g])?;
        Ok(vec![Some(d_gate), Some(d_up)])
    }
}

impl<G: Gate> CustomOp2 for Gated<G> {
    fn name(&self) -> &'static str {
        G::NAME
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        lg: &Layout,
        up: &CpuStorage,
        lu: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (floats(G::NAME, gate, lg)?, floats(G::NAME, up, lu)?);
        let mut y = vec![0f32; gate.len()];
        for_each_chunk(
            1,
            [&mut y],
            [gate, up],
            #[inline(always)]
            |_, [y], [gate, up]| {
                for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                    *y = G::value(gate, up);
                }
            },
        );
        floats_out(y, lg.shape().clone())
    }

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
            [&Floats::of(G::NAME, gate)?, &Floats::of(G::NAME, up)?, &Floats::of(G::NAME, &g)?],
            #[inline(always)]
            |_, [d_gate, d_up], [gate, up, g]| {
                let inputs = gate.iter().zip(up).zip(g);
                for ((d_gate, d_up), ((&gate, &up), &g)) in d_gate.iter_mut().zip(d_up).zip(inputs) {
                    (*d_gate, *d_up) = G::gradients(gate, up, g);
                }
            },
        );
        let d_gate = Tensor::from_vec(d_gate, gate.shape(), gate.device())?;
        let d_up = Tensor::from_vec(d_up, gate.shape(), gate.device())?;
        Ok((Some(d_gate), Some(d_up)))
    }
}

/// What every gate is held to, against `composed`, its function in operations of candle.
#[cfg(test)]
pub(super) mod held {
    use super::*;
    use crate::ops::check::{assert_matches, assert_rounds_once, uniform};
    use crate::ops::gpu::host;

    type Composed = fn(&Tensor, &Tensor) -> Result<Tensor>;

    fn inputs(shape: &[usize]) -> Result<[Tensor; 2]> {
        Ok([uniform(7, 6.0, shape)?, uniform(8, 2.0, shape)?])
    }

    pub fn on_the_cpu<G: Gate>(composed: Composed, tolerance: f64) -> Result<()> {
        for shape in [vec![1], vec![3, 37]] {
            let reference = |t: &[Tensor]| composed(&t[0], &t[1]);
            assert_matches(|t| gated::<G>(&t[0], &t[1]), reference, &inputs(&shape)?, tolerance)?;
        }
        Ok(())
    }

    pub fn in_kernels<G: Gate>(composed: Composed, tolerance: f64) -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for shape in [vec![1], vec![3, 137]] {
            let reference = |t: &[Tensor]| composed(&t[0], &t[1]);
            assert_matches(|t| on_gpu::<G>(&t[0], &t[1]), reference, &inputs(&shape)?, tolerance)?;
        }
        Ok(())
    }

    pub fn in_bf16<G: Gate>() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        assert_rounds_once(|t| gated::<G>(&t[0], &t[1]), &inputs(&[3, 137])?, &[])
    }
}

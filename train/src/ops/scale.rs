//! A tensor by a number that its device has.
//!
//! Knows no gradient. The product is rounded once: the factor is not rounded to the tensor's type before.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::gpu::{Bind, Grid, Path, Typed, Work, path, typed, word};
use super::{floats, floats_out, for_each_chunk};

const NAME: &str = "scale";
const LIBRARY: Typed = typed!("scale", "gpu/common.metal", "scale.metal");

/// `x`, contiguous, by `factor`, an f32 with one element.
///
/// # Errors
/// A factor of several elements; the device is out of memory.
pub(crate) fn scale(x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    if factor.elem_count() != 1 {
        candle_core::bail!("{NAME}: want a factor of one element, found {:?}", factor.dims());
    }
    if path(x.device()) == Path::Cpu {
        return x.apply_op2_no_bwd(factor, &Scale);
    }
    let n = x.elem_count();
    let mut work = Work::default();
    let y = work.output_like(x);
    let binds = [Bind::Input(0), Bind::Input(1), Bind::Output(y)];
    work.add(LIBRARY.of(x.dtype())?, "scale", Grid::Each(n), binds, &[word(n)?])?;
    let [y] = work.run(NAME, &[x, factor])?;
    Ok(y)
}

struct Scale;

impl CustomOp2 for Scale {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        of_x: &Layout,
        factor: &CpuStorage,
        of_factor: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, factor) = (floats(NAME, x, of_x)?, floats(NAME, factor, of_factor)?[0]);
        let mut y = vec![0.0; x.len()];
        for_each_chunk(
            1,
            [&mut y],
            [x],
            #[inline(always)]
            |_, [y], [x]| y.iter_mut().zip(x).for_each(|(y, x)| *y = x * factor),
        );
        floats_out(y, of_x.shape())
    }
}

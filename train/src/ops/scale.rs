//! A tensor by a number that its device has.
//!
//! Knows no gradient. The product is rounded once: the factor is not rounded to the tensor's type before.

use candle_core::{Result, Tensor};

use super::gpu::{Bind, Grid, Path, Typed, Work, path, typed, word};

const NAME: &str = "scale";
const LIBRARY: Typed = typed!("scale", "gpu/common.metal", "scale.metal");

/// `x`, contiguous, by `factor`, an f32 with one element.
///
/// # Errors
/// A factor of several elements; the device is out of memory.
pub(crate) fn scale(x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    if path(x.device()) == Path::Cpu {
        return x.broadcast_mul(factor);
    }
    if factor.elem_count() != 1 {
        candle_core::bail!("{NAME}: want a factor of one element, found {:?}", factor.dims());
    }
    let n = x.elem_count();
    let mut work = Work::default();
    let y = work.output_like(x);
    let binds = [Bind::Input(0), Bind::Input(1), Bind::Output(y)];
    work.add(LIBRARY.of(x.dtype())?, "scale", Grid::Each(n), binds, &[word(n)?])?;
    let [y] = work.run(NAME, &[x, factor])?;
    Ok(y)
}

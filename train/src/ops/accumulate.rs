//! sum += x in place: what gradients of parts are added up with.
//!
//! candle adds into a new tensor, so that a running sum of gradients is held twice. Knows no gradient.

use candle_core::{CpuStorage, Error, InplaceOp2, Layout, Result, Tensor};

use super::gpu::{Bind, Grid, Path, Typed, Work, path, typed, word};
use super::{floats, for_each_chunk, lanes};

const NAME: &str = "accumulate";
const LIBRARY: Typed = typed!("accumulate", "gpu/common.metal", "accumulate.metal");

/// Adds `x` to `sum`, f32 of the same shape, in place: whoever else holds the storage of `sum` sees it change.
///
/// # Errors
/// Shapes that differ, operands that are not contiguous; an `x` that is not f32, or on a GPU bf16.
pub(crate) fn accumulate(sum: &Tensor, x: &Tensor) -> Result<()> {
    if sum.dims() != x.dims() {
        candle_core::bail!(
            "{NAME}: want two tensors of one shape, found {:?} and {:?}",
            sum.dims(),
            x.dims()
        );
    }
    if path(sum.device()) == Path::Cpu {
        return sum.inplace_op2(x, &Accumulate);
    }
    let n = sum.elem_count();
    let mut work = Work::default();
    let binds = [Bind::InOut(0), Bind::Input(1)];
    work.add(LIBRARY.of(x.dtype())?, "accumulate", Grid::Each(n), binds, &[word(n)?])?;
    work.run_all(NAME, &[sum, x]).map(|_| ())
}

struct Accumulate;

impl InplaceOp2 for Accumulate {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, sum: &mut CpuStorage, of_sum: &Layout, x: &CpuStorage, of_x: &Layout) -> Result<()> {
        let (CpuStorage::F32(sum), Some((start, end))) = (sum, of_sum.contiguous_offsets()) else {
            return Err(Error::RequiresContiguous { op: NAME }.bt());
        };
        for_each_chunk(
            1,
            [&mut sum[start..end]],
            [floats(NAME, x, of_x)?],
            #[inline(always)]
            |_, [sum], [x]| lanes::add(sum, x),
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::ops::check::{bits, uniform};
    use crate::ops::gpu::host::{self, Care};

    #[test]
    fn a_sum_in_place_has_the_bits_of_candles_on_the_cpu_and_in_the_kernel() -> Result<()> {
        let (a, x) = (uniform(1, 1.0, &[70, 301])?, uniform(2, 1.0, &[70, 301])?);
        let want = bits(&(&a + &x)?)?;
        let summed = || -> Result<Vec<u32>> {
            let sum = a.copy()?;
            accumulate(&sum, &x)?;
            bits(&sum)
        };
        assert!(summed()? == want);
        if host::available() {
            assert!(host::emulating(Care::EveryMode, summed)? == want);
        }
        let message = accumulate(&a, &uniform(3, 1.0, &[301, 70])?).unwrap_err().to_string();
        assert!(message.contains("one shape, found [70, 301] and [301, 70]"), "{message}");
        Ok(())
    }

    #[test]
    fn the_kernel_adds_what_is_narrower_than_the_sum_as_it_is() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        let (a, x) = (uniform(1, 1.0, &[7, 301])?, uniform(2, 1.0, &[7, 301])?.to_dtype(DType::BF16)?);
        let want = bits(&(&a + x.to_dtype(DType::F32)?)?)?;
        host::emulating(Care::EveryMode, || accumulate(&a, &x))?;
        assert!(bits(&a)? == want);
        Ok(())
    }
}

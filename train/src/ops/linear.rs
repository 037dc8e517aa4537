//! y = x·Wᵀ, the matrix product of a projection.
//!
//! candle's own `x.matmul(&w.t())` produces the weight gradient transposed and then copies it element by element;
//! here dW = gᵀ·x comes out in W's own layout. One implementation for every device: the products are candle's.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, D, Layout, MetalStorage, Result, Shape, Tensor};

use super::gpu::{Backward, attach};

const NAME: &str = "linear";

/// `x` `[.., in]` times the transpose of `weight` `[out, in]`, giving `[.., out]`. Any float dtype, any device.
///
/// # Errors
/// A weight that is no matrix with as many columns as `x`.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let columns = x.dim(D::Minus1)?;
    if weight.rank() != 2 || weight.dim(1)? != columns {
        candle_core::bail!("{NAME}: weight: want [out, {columns}], found {:?}", weight.dims());
    }
    if x.elem_count() == 0 || weight.elem_count() == 0 {
        candle_core::bail!("{NAME}: empty operand: x {:?}, weight {:?}", x.dims(), weight.dims());
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let y = x.detach().apply_op2_no_bwd(&weight.detach(), &Product)?;
    attach(y, &[&x, &weight], Linear)
}

struct Linear;

impl Backward for Linear {
    const NAME: &'static str = NAME;

    /// dx = g·W, dW = gᵀ·x.
    fn backward(&self, inputs: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (dx, dw) = gradients(inputs[0], inputs[1], grad)?;
        Ok(vec![Some(dx), Some(dw)])
    }
}

/// The value alone.
struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        product(x, lx, w, lw)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        product(x, lx, w, lw)
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        lx: &Layout,
        w: &MetalStorage,
        lw: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        product(x, lx, w, lw)
    }
}

/// The gradients of `x` `[.., in]` and `w` `[out, in]` from that of their product.
pub(crate) fn gradients(x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Tensor, Tensor)> {
    let (out, columns) = w.dims2()?;
    let g = g.contiguous()?.reshape(((), out))?;
    let dx = g.matmul(&w.detach())?.reshape(x.shape())?;
    let dw = g.t()?.matmul(&x.detach().reshape(((), columns))?)?;
    Ok((dx, dw))
}

fn product<S: BackendStorage>(x: &S, lx: &Layout, w: &S, lw: &Layout) -> Result<(S, Shape)> {
    let (out, columns) = lw.shape().dims2()?;
    let rows = lx.shape().elem_count() / columns;
    let flat = Layout::contiguous_with_offset((rows, columns), lx.start_offset());
    let y = x.matmul(w, (1, rows, out, columns), &flat, &lw.transpose(0, 1)?)?;
    let mut dims = lx.dims().to_vec();
    dims.pop();
    dims.push(out);
    Ok((y, dims.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_matches, assert_rounds_once, uniform};
    use crate::ops::gpu::host;

    #[test]
    fn value_and_gradients_agree_with_finite_differences() -> Result<()> {
        for (leading, out, columns) in [(vec![1], 1, 1), (vec![2, 5], 7, 19)] {
            let shape = [leading, vec![columns]].concat();
            let inputs = [uniform(9, 1.0, &shape)?, uniform(10, 1.0, &[out, columns])?];
            // Sums of at most 19 products in unknown order: 20 roundings of 6e-8.
            let reference = |t: &[Tensor]| t[0].broadcast_matmul(&t[1].t()?.contiguous()?);
            if shape.len() > 2 {
                assert_matches(|t| linear(&t[0], &t[1]), reference, &inputs, 1.2e-6)?;
            } else {
                assert_matches(|t| linear(&t[0], &t[1]), |t| t[0].matmul(&t[1].t()?), &inputs, 1.2e-6)?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_weight_with_other_columns_is_refused() -> Result<()> {
        let message = linear(&uniform(1, 1.0, &[2, 8])?, &uniform(2, 1.0, &[4, 3])?).unwrap_err().to_string();
        assert!(message.contains("want [out, 8], found [4, 3]"), "{message}");
        Ok(())
    }

    #[test]
    fn in_bf16_sums_of_products_are_rounded_once() -> Result<()> {
        let inputs = [uniform(9, 1.0, &[2, 5, 19])?, uniform(10, 1.0, &[7, 19])?];
        if host::available() {
            assert_rounds_once(|t| linear(&t[0], &t[1]), &inputs, &[])?;
        }
        Ok(())
    }
}

//! What a tensor is made of others with by candle's operations as they are: sums, multiples, other shapes and other types.
//!
//! Knows no model. Values are candle's, gradients go through the tape like those of every other operation. Only sums on the CPU are our
//! own: candle has threads for them beside rayon's, which spin while they wait and take its processors from the products that follow.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};

use super::gpu::{Backward, Bind, Grid, Path, SUM, Work, attach, path, word};
use super::{floats, floats_out, for_each_chunk};

/// a + b, of one shape.
///
/// # Errors
/// Shapes that differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    attach(sum(&a.detach(), &b.detach())?, &[a, b], Sum)
}

/// a + b, of one shape and type, of which nobody asks for a gradient.
///
/// # Errors
/// Shapes that differ.
pub(super) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match path(a.device()) {
        Path::Cpu => a.contiguous()?.apply_op2_no_bwd(&b.contiguous()?, &Sum),
        Path::Kernels => a + b,
    }
}

struct Sum;

impl CustomOp2 for Sum {
    fn name(&self) -> &'static str {
        <Self as Backward>::NAME
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        of_a: &Layout,
        b: &CpuStorage,
        of_b: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if of_a.shape() != of_b.shape() {
            candle_core::bail!("add: want one shape, found {:?} and {:?}", of_a.shape(), of_b.shape());
        }
        let (a, b) = (floats(self.name(), a, of_a)?, floats(self.name(), b, of_b)?);
        let mut sum = vec![0.0; a.len()];
        for_each_chunk(
            1,
            [&mut sum],
            [a, b],
            #[inline(always)]
            |_, [sum], [a, b]| {
                for (sum, (a, b)) in sum.iter_mut().zip(a.iter().zip(b)) {
                    *sum = a + b;
                }
            },
        );
        floats_out(sum, of_a.shape())
    }
}

impl Backward for Sum {
    const NAME: &'static str = "add";
    const READS_INPUTS: bool = false;

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(grad.clone()), Some(grad.clone())])
    }
}

/// `x` `[n, width]` with `bias` `[width]`, in f32 or rounded to the type of `x`, added to each row.
///
/// # Errors
/// Shapes other than these.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.dims2()?;
    let rounded = bias.detach().to_dtype(x.dtype())?;
    attach(x.detach().broadcast_add(&rounded)?, &[x, bias], Biased)
}

struct Biased;

impl Backward for Biased {
    const NAME: &'static str = "add_bias";
    const READS_INPUTS: bool = false;

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let of_bias = if grad.dtype() == DType::F32 { grad.sum(0)? } else { sum_rows(grad)? };
        Ok(vec![Some(grad.clone()), Some(of_bias)])
    }
}

/// The sum of the rows of `x` `[n, width]` in f32, on a GPU.
fn sum_rows(x: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let mut work = Work::default();
    let binds = [Bind::Input(0), Bind::Output(work.output(width))];
    let shape = [word(rows)?, word(width)?, 1f32.to_bits()];
    work.add(SUM.of(x.dtype())?, "sum_rows", Grid::Columns(width), binds, &shape)?;
    let [sums] = work.run("add_bias", &[x])?;
    Ok(sums)
}

/// `x` times a number.
///
/// # Errors
/// The device is out of memory.
pub fn multiply(x: &Tensor, factor: f64) -> Result<Tensor> {
    attach((x.detach() * factor)?, &[x], Multiplied(factor))
}

/// The factor.
struct Multiplied(f64);

impl Backward for Multiplied {
    const NAME: &'static str = "multiply";
    const READS_INPUTS: bool = false;

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some((grad * self.0)?)])
    }
}

/// `x` rounded to a `dtype`; `x` itself where it is one. Its gradient is in the type of `x`.
///
/// # Errors
/// The device is out of memory.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    attach(x.detach().to_dtype(dtype)?, &[x], Cast(x.dtype()))
}

/// The type before.
struct Cast(DType);

impl Backward for Cast {
    const NAME: &'static str = "cast";
    const READS_INPUTS: bool = false;

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(grad.to_dtype(self.0)?)])
    }
}

/// The elements of `x` in another shape.
///
/// # Errors
/// Another number of elements.
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    attach(x.detach().reshape(shape.into())?, &[x], Reshaped(x.shape().clone()))
}

/// The shape before.
struct Reshaped(Shape);

impl Backward for Reshaped {
    const NAME: &'static str = "reshape";
    const READS_INPUTS: bool = false;

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(grad.reshape(&self.0)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{
        assert_close, assert_matches, assert_rounds_once, bits, flat, uniform, value_and_gradients,
    };
    use crate::ops::gpu::host;

    #[test]
    fn values_and_gradients_agree_with_finite_differences() -> Result<()> {
        let inputs = [uniform(1, 1.0, &[3, 4])?, uniform(2, 1.0, &[3, 4])?];
        assert_matches(|x| add(&x[0], &x[1]), |x| &x[0] + &x[1], &inputs, 1e-6)?;
        let inputs = [uniform(1, 1.0, &[3, 4])?, uniform(2, 1.0, &[4])?];
        // Sums of three.
        assert_matches(|x| add_bias(&x[0], &x[1]), |x| x[0].broadcast_add(&x[1]), &inputs, 1e-6)?;
        assert!(add(&inputs[0], &inputs[1]).is_err(), "of two shapes");
        assert_matches(|x| multiply(&x[0], -0.3), |x| &x[0] * -0.3, &inputs[..1], 1e-6)?;
        assert_matches(|x| reshape(&x[0], (2, 6)), |x| x[0].reshape((2, 6)), &inputs[..1], 1e-6)
    }

    #[test]
    fn in_bf16_sums_are_rounded_once_and_a_kernel_sums_the_gradient_of_a_bias_in_f32() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        let (a, b) = (uniform(1, 1.0, &[300, 40])?, uniform(2, 1.0, &[300, 40])?);
        assert_rounds_once(|t| add(&t[0], &t[1]), &[a.clone(), b], &[])?;
        assert_rounds_once(|t| cast(&t[0], DType::F32), std::slice::from_ref(&a), &[])?;
        // A bias that bf16 holds: it is rounded before it is added.
        let bias = uniform(3, 1.0, &[40])?.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
        let narrow = [a.to_dtype(DType::BF16)?, bias.clone()];
        let wide = [narrow[0].to_dtype(DType::F32)?, bias];
        let biased = |x: &[Tensor]| value_and_gradients(|t| add_bias(&t[0], &t[1]), x);
        let [found, want] = [biased(&narrow)?, biased(&wide)?];
        let rounded = |t: &Tensor| t.to_dtype(DType::BF16)?.to_dtype(DType::F32);
        for at in [0, 1] {
            let (found, want) = (found[at].as_ref().unwrap(), want[at].as_ref().unwrap());
            assert_eq!(bits(&found.to_dtype(DType::F32)?)?, bits(&rounded(want)?)?);
        }
        // 300 terms in another order: typically 17 roundings of 6e-8, at most 300.
        let (found, want) = (found[2].as_ref().unwrap(), want[2].as_ref().unwrap());
        assert_eq!(found.dtype(), DType::F32);
        assert_close("bias", found, &flat(want)?, 2e-5)
    }

    #[test]
    fn a_weight_that_is_cast_gets_its_gradient_in_its_own_type() -> Result<()> {
        if host::available() {
            let w = uniform(4, 1.0, &[5, 3])?;
            let found = value_and_gradients(|t| cast(&t[0], DType::BF16), &[w])?;
            let types: Vec<DType> = found.iter().flatten().map(Tensor::dtype).collect();
            assert_eq!(types, [DType::BF16, DType::F32]);
        }
        Ok(())
    }
}

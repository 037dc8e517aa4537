//! Rotary position embedding in the half-split layout of Hugging Face: of the elements of a head that turn, its first, element j is
//! rotated with element j + rotary/2 (Su et al., arXiv 2104.09864); the others stay.
//!
//! Knows no frequencies: the caller gives cosines and sines, which may have been multiplied by a number. The transpose of a rotation is
//! the rotation back, so the backward pass is the forward pass with the sines negated.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::gpu::{Backward, Bind, Grid, Path, Typed, Work, attach, path, typed, word};
use super::{Floats, floats, floats_out, for_each_chunk, tape};

const NAME: &str = "rope";
const LIBRARY: Typed = typed!("rope", "gpu/common.metal", "rope.metal");

/// Rotates `x` `[b, t, heads, head_dim]` by the angles whose cosines and sines are `cos`, `sin` `[t, pairs]`, where two elements of a
/// pair are at most a head. `cos` and `sin` get no gradient.
///
/// # Errors
/// Shapes other than these; dtypes other than f32 on the CPU.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (_, t, _, head_dim) = x.dims4()?;
    let fits = matches!(cos.dims(), [rows, pairs] if *rows == t && *pairs > 0 && 2 * pairs <= head_dim);
    if x.elem_count() == 0 || !fits || sin.dims() != cos.dims() {
        let most = head_dim / 2;
        candle_core::bail!(
            "{NAME}: x {:?} (not empty): want cos and sin [{t}, 1 to {most}], found {:?} and {:?}",
            x.dims(),
            cos.dims(),
            sin.dims()
        );
    }
    let (cos, sin) = (cos.detach().contiguous()?, sin.detach().contiguous()?);
    match path(x.device()) {
        Path::Cpu => tape::apply1(&x.contiguous()?, Rope { cos, sin, direction: 1.0 }),
        Path::Kernels => on_gpu(x, cos, sin),
    }
}

fn on_gpu(x: &Tensor, cos: Tensor, sin: Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let y = rotate_on_gpu(&x, &cos, &sin, 1.0)?;
    attach(y, &[&x], GpuRope { cos, sin })
}

/// Turns `x` forward (`direction` 1) or back (−1).
fn rotate_on_gpu(x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f32) -> Result<Tensor> {
    let (_, t, heads, head_dim) = x.dims4()?;
    let turned = cos.dim(1)?;
    // What doesn't turn has a thread for each element, what does one for each pair.
    let threads = x.elem_count() / head_dim * (head_dim - turned);
    let mut work = Work::default();
    let y = work.output_like(x);
    let binds = [Bind::Input(0), Bind::Input(1), Bind::Input(2), Bind::Output(y)];
    let sizes = [threads, t, heads, head_dim, turned].map(word);
    let [threads_word, t, heads, head_dim, turned] = sizes;
    let shape = [threads_word?, t?, heads?, head_dim?, turned?, direction.to_bits()];
    work.add(LIBRARY.of(x.dtype())?, "rope", Grid::Each(threads), binds, &shape)?;
    let [y] = work.run(NAME, &[x, cos, sin])?;
    Ok(y)
}

struct GpuRope {
    cos: Tensor,
    sin: Tensor,
}

impl Backward for GpuRope {
    const NAME: &'static str = NAME;
    const READS_INPUTS: bool = false;

    fn backward(&self, _: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(rotate_on_gpu(grad, &self.cos, &self.sin, -1.0)?)])
    }
}

/// What the tests hold every implementation to, in operations of candle.
#[cfg(test)]
fn composed(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = cos.dim(1)?;
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let (low, high) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let rest = x.narrow(3, 2 * half, x.dim(3)? - 2 * half)?;
    let rotated_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let rotated_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    Tensor::cat(&[rotated_low, rotated_high, rest], 3)
}

struct Rope {
    cos: Tensor,
    sin: Tensor,
    /// 1 rotates forward, −1 back.
    direction: f32,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, t, heads, head_dim) = layout.shape().dims4()?;
        let x = floats(NAME, x, layout)?;
        let (cos, sin) = (Floats::of(NAME, &self.cos)?, Floats::of(NAME, &self.sin)?);
        let (cos, sin): (&[f32], &[f32]) = (&cos, &sin);
        let (row, half) = (heads * head_dim, self.cos.dim(1)?);
        let mut y = vec![0f32; x.len()];
        for_each_chunk(
            row,
            [&mut y],
            [x],
            #[inline(always)]
            |first, [y], [x]| {
                for (i, (y, x)) in y.chunks_exact_mut(row).zip(x.chunks_exact(row)).enumerate() {
                    let position = (first + i) % t;
                    let angle = position * half..(position + 1) * half;
                    self.rotate_heads(head_dim, x, (&cos[angle.clone()], &sin[angle]), y);
                }
            },
        );
        floats_out(y, layout.shape().clone())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { cos: self.cos.clone(), sin: self.sin.clone(), direction: -self.direction };
        grad.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}

impl Rope {
    /// Rotates all heads of one position.
    #[inline(always)]
    fn rotate_heads(&self, head_dim: usize, x: &[f32], (cos, sin): (&[f32], &[f32]), y: &mut [f32]) {
        let half = cos.len();
        for (y, x) in y.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim)) {
            y[2 * half..].copy_from_slice(&x[2 * half..]);
            let (y, x) = (&mut y[..2 * half], &x[..2 * half]);
            let ((low, high), (y_low, y_high)) = (x.split_at(half), y.split_at_mut(half));
            for ((((y_low, y_high), (&low, &high)), &cos), &sin) in
                y_low.iter_mut().zip(y_high).zip(low.iter().zip(high)).zip(cos).zip(sin)
            {
                let sin = sin * self.direction;
                *y_low = low * cos - high * sin;
                *y_high = high * cos + low * sin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_close, assert_matches, assert_rounds_once, flat, uniform};
    use crate::ops::gpu::host;
    use candle_core::DType;

    fn angles(t: usize, half: usize) -> Result<(Tensor, Tensor)> {
        let angle = uniform(3, 3.0, &[t, half])?;
        Ok((angle.cos()?, angle.sin()?))
    }

    #[test]
    fn value_and_gradient_agree_with_finite_differences() -> Result<()> {
        for head_dim in [8, 11] {
            let (cos, sin) = angles(5, 4)?;
            let (cos64, sin64) = (cos.to_dtype(DType::F64)?, sin.to_dtype(DType::F64)?);
            let x = [uniform(4, 2.0, &[2, 5, 3, head_dim])?];
            // Two products and one addition: three roundings of 6e-8.
            let reference = |t: &[Tensor]| composed(&t[0], &cos64, &sin64);
            assert_matches(|t| rope(&t[0], &cos, &sin), reference, &x, 3e-7)?;
        }
        Ok(())
    }

    #[test]
    fn the_kernels_agree_with_finite_differences() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for head_dim in [8, 11] {
            let (cos, sin) = angles(5, 4)?;
            let (cos64, sin64) = (cos.to_dtype(DType::F64)?, sin.to_dtype(DType::F64)?);
            let x = [uniform(4, 2.0, &[2, 5, 3, head_dim])?];
            let reference = |t: &[Tensor]| composed(&t[0], &cos64, &sin64);
            assert_matches(|t| on_gpu(&t[0], cos.clone(), sin.clone()), reference, &x, 3e-7)?;
        }
        Ok(())
    }

    #[test]
    fn a_rotation_keeps_the_dot_product_of_equally_distant_positions() -> Result<()> {
        // The point of rope: with angle = position·frequency, ⟨R_p q, R_p' k⟩ depends on p − p' only.
        let frequency = Tensor::new(&[[1.0f32, 0.1, 0.01, 0.001]], &candle_core::Device::Cpu)?;
        let position = Tensor::new(&[[0f32], [1.], [2.], [3.]], &candle_core::Device::Cpu)?;
        let angle = position.matmul(&frequency)?;
        let same = |seed| uniform(seed, 1.0, &[1, 1, 1, 8])?.broadcast_as((1, 4, 1, 8));
        let q = rope(&same(1)?, &angle.cos()?, &angle.sin()?)?.reshape((4, 8))?;
        let k = rope(&same(2)?, &angle.cos()?, &angle.sin()?)?.reshape((4, 8))?;
        let scores = q.matmul(&k.t()?)?;
        let first = flat(&scores.narrow(0, 1, 1)?.narrow(1, 0, 3)?)?;
        let second = scores.narrow(0, 2, 1)?.narrow(1, 1, 3)?;
        assert_close("scores at the same distances", &second, &first, 1e-6)
    }

    #[test]
    fn angles_of_another_length_are_refused() -> Result<()> {
        let (cos, sin) = angles(4, 4)?;
        let message = rope(&uniform(4, 2.0, &[2, 5, 3, 8])?, &cos, &sin).unwrap_err().to_string();
        assert!(message.contains("want cos and sin [5, 1 to 4]"), "{message}");
        Ok(())
    }

    #[test]
    fn in_bf16_the_kernel_rounds_once() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        let (cos, sin) = angles(5, 4)?;
        assert_rounds_once(|t| rope(&t[0], &cos, &sin), &[uniform(4, 2.0, &[2, 5, 3, 8])?], &[])?;
        assert_rounds_once(|t| rope(&t[0], &cos, &sin), &[uniform(4, 2.0, &[2, 5, 3, 12])?], &[])
    }
}

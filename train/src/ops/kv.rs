//! Keys and values as a cache gives them back, straight through.
//!
//! Knows no codec and no attention: on the CPU the value is the runtime's own rounding, elsewhere a kernel does the same arithmetic.

use candle_core::{D, Result, Tensor};
use qat_infer::cpu::KvType;

use super::activations::StraightThrough;
use super::gpu::{Bind, Grid, Path, Typed, Work, attach, path, typed, word};
use super::{Floats, blend, for_each_chunk};

const NAME: &str = "quantize_kv";
const LIBRARY: Typed = typed!("kv", "gpu/common.metal", "kv.metal");

/// Elements of a head that share a scale in int4.
const INT4_GROUP: usize = 32;

/// What a cache of type `kv` gives back of the keys or values `x` `[.., head_dim]`: x + `lambda`·(x̂ − x), and exactly x̂ at 1.
///
/// The gradient passes unchanged.
///
/// # Errors
/// Heads of an odd size; dtypes other than f32.
pub fn quantize_kv(x: &Tensor, kv: KvType, lambda: f32) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if width == 0 || !width.is_multiple_of(2) {
        candle_core::bail!("{NAME}: want heads of an even size, found {:?}", x.dims());
    }
    let x = x.contiguous()?;
    let value = match path(x.device()) {
        Path::Cpu => on_cpu(&x, kv, lambda)?,
        Path::Kernels => on_gpu(&x, kv, lambda)?,
    };
    attach(value, &[&x], StraightThrough)
}

fn on_cpu(x: &Tensor, kv: KvType, lambda: f32) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let held = Floats::of(NAME, x)?;
    let mut rounded = held.to_vec();
    for_each_chunk(width, [&mut rounded], [], |_, [rows], []| kv.round(width, rows));
    blend(&held, &mut rounded, lambda);
    Tensor::from_vec(rounded, x.shape(), x.device())
}

fn on_gpu(x: &Tensor, kv: KvType, lambda: f32) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let (kind, group) = match kv {
        KvType::F32 => return Ok(x.clone()),
        KvType::F16 => (0, width),
        KvType::Int8 => (1, width),
        KvType::Int4 => (2, INT4_GROUP),
    };
    let groups = x.elem_count() / width * width.div_ceil(group);
    let mut work = Work::default();
    let value = work.output_like(x);
    let shape = [word(groups)?, word(width)?, word(group)?, kind, lambda.to_bits()];
    let binds = [Bind::Input(0), Bind::Output(value)];
    work.add(LIBRARY.of(x.dtype())?, "kv_cache", Grid::Each(groups), binds, &shape)?;
    let [value] = work.run(NAME, &[x])?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::{
        check::{assert_rounds_once, backward, bits, uniform},
        gpu::host,
    };

    /// Heads of several magnitudes, one of zeros, one that f16 can't hold.
    fn heads(width: usize) -> Result<Tensor> {
        let random = uniform(7, 3.0, &[70, width])?;
        let zeros = random.narrow(0, 0, 1)?.zeros_like()?;
        Tensor::cat(&[&random, &zeros, &(&random * 1e-7)?, &(&random * 1e6)?], 0)?.reshape((1, 211, 1, width))
    }

    #[test]
    fn the_kernel_gives_what_the_runtimes_cache_gives_to_the_bit() -> Result<()> {
        for width in [64, 48, 6] {
            for kv in KvType::ALL {
                let x = heads(width)?;
                let mut want = x.flatten_all()?.to_vec1::<f32>()?;
                kv.round(width, &mut want);
                let want: Vec<u32> = want.into_iter().map(f32::to_bits).collect();
                assert!(bits(&quantize_kv(&x, kv, 1.0)?)? == want, "{kv}");
                assert_eq!(bits(&x)? == want, kv == KvType::F32, "{kv} of {width}");
                if host::available() {
                    for lambda in [1.0, 0.3] {
                        let ours = quantize_kv(&x, kv, if kv == KvType::F32 { 1.0 } else { lambda })?;
                        assert!(bits(&on_gpu(&x, kv, lambda)?)? == bits(&ours)?, "{kv} of {width}, {lambda}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_gradient_passes_unchanged() -> Result<()> {
        let x = Var::from_tensor(&uniform(8, 2.0, &[3, 32])?)?;
        let g = uniform(9, 1.0, &[3, 32])?;
        for kv in [KvType::Int8, KvType::Int4] {
            let (_, grads) = backward(|| quantize_kv(&x, kv, 0.5), &g)?;
            assert_eq!(grads.get(&x).map(bits).transpose()?, Some(bits(&g)?));
        }
        Ok(())
    }

    #[test]
    fn in_bf16_the_kernel_rounds_once() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        for kv in KvType::ALL {
            assert_rounds_once(|t| quantize_kv(&t[0], kv, 0.7), &[heads(48)?], &[])?;
        }
        Ok(())
    }
}

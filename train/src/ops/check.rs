//! Tests hold an operation to one f64 reference: its own candle composition, evaluated and differentiated in f64.
//!
//! The gradient of the reference is a central difference of the f64 *values*, so that no backward pass, ours or
//! candle's, is trusted. Knows nothing of any particular operation.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    gpu::host::{self, Care},
    tape::{Gradients, Tape},
};

/// A seeded tensor with elements uniform in (−`range`, `range`).
pub(crate) fn uniform(seed: u64, range: f32, shape: &[usize]) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-range..range)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Holds `op` (f32, with the backward under test) to `reference` (any dtype) at `inputs`: values, and gradients of a
/// fixed random projection of the output with respect to every input.
///
/// `tolerance` is relative to the largest magnitude of the tensor compared: f32 rounding of sums is relative to the
/// terms, not to a result in which they cancel.
pub(crate) fn assert_matches(
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    tolerance: f64,
) -> Result<()> {
    let wide: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F64)).collect::<Result<_>>()?;
    let want = reference(&wide)?;
    let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let weights = uniform(99, 1.0, want.dims())?;
    let (found, grads) = backward(|| op(&tensors), &weights)?;
    assert_close("value", &found, &flat(&want)?, tolerance)?;
    let weights = weights.to_dtype(DType::F64)?;
    for (i, var) in vars.iter().enumerate() {
        let want = central_difference(&reference, &wide, i, &weights)?;
        let found = grads.get(var).unwrap_or_else(|| panic!("input {i} got no gradient"));
        assert_close(&format!("gradient of input {i}"), found, &want, tolerance)?;
    }
    Ok(())
}

/// Holds `op` in bf16 to itself in f32, in kernels: from the same numbers, which both types hold, what it gives and all gradients are
/// those of f32, rounded once where they are bf16, to the bit. Those of `inputs` whose place is in `wide` are f32 in both.
pub(crate) fn assert_rounds_once(
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    wide: &[usize],
) -> Result<()> {
    let narrow = |(at, t): (usize, &Tensor)| match wide.contains(&at) {
        true => Ok(t.clone()),
        false => t.to_dtype(DType::BF16),
    };
    let narrow = inputs.iter().enumerate().map(narrow).collect::<Result<Vec<_>>>()?;
    let all_wide = narrow.iter().map(|t| t.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
    let [found, want] = [value_and_gradients(&op, &narrow)?, value_and_gradients(&op, &all_wide)?];
    for (at, (found, want)) in found.iter().zip(&want).enumerate() {
        assert_eq!(found.is_some(), want.is_some(), "{at}: a gradient in one type alone");
        let (Some(found), Some(want)) = (found, want) else { continue };
        // f32 holds both.
        let [found, want] =
            [found.to_dtype(DType::F32)?, want.to_dtype(found.dtype())?.to_dtype(DType::F32)?];
        assert!(bits(&found)? == bits(&want)?, "{at} (0: the value): {found} in bf16, {want} in f32");
    }
    Ok(())
}

/// What `op` makes in kernels of variables like `inputs`, then the gradient of each, of a fixed projection of that.
pub(crate) fn value_and_gradients(
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
) -> Result<Vec<Option<Tensor>>> {
    host::emulating(Care::EveryMode, || {
        let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let (value, tape) = Tape::of(|| op(&tensors));
        let value = value?;
        // A projection that bf16 holds.
        let weights = uniform(99, 1.0, value.dims())?.to_dtype(DType::BF16)?.to_dtype(value.dtype())?;
        let mut gradients = tape.gradients_from(vec![(value.id(), weights)])?;
        Ok(std::iter::once(Some(value)).chain(vars.iter().map(|var| gradients.take(var))).collect())
    })
}

/// What `op` makes, and the gradients of its product with `weights`, of the same shape.
pub(crate) fn backward(op: impl FnOnce() -> Result<Tensor>, weights: &Tensor) -> Result<(Tensor, Gradients)> {
    let (value, tape) = Tape::of(op);
    let value = value?;
    let gradients = tape.gradients_from(vec![(value.id(), weights.clone())])?;
    Ok((value, gradients))
}

/// Compares `found` with `want`, elementwise, relative to the largest magnitude of `want` (at least 1e-3).
pub(crate) fn assert_close(what: &str, found: &Tensor, want: &[f64], tolerance: f64) -> Result<()> {
    let found = flat(found)?;
    assert_eq!(found.len(), want.len(), "{what}: number of elements");
    let bound = tolerance * want.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    for (i, (f, w)) in found.iter().zip(want).enumerate() {
        assert!((f - w).abs() <= bound, "{what}[{i}]: want {w}, found {f}, bound {bound:e}");
    }
    Ok(())
}

/// All elements in row-major order, as f64.
pub(crate) fn flat(t: &Tensor) -> Result<Vec<f64>> {
    t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// The bits of all elements in row-major order: for comparisons that allow no rounding.
pub(crate) fn bits(t: &Tensor) -> Result<Vec<u32>> {
    Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

/// d⟨weights, reference(inputs)⟩/d inputs[i]. With h = 1e-4 in f64 the truncation error is h²/6·f‴ ≈ 2e-9·f‴ and
/// the rounding error 1e-16/h = 1e-12: both far below any f32 tolerance.
fn central_difference(
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    i: usize,
    weights: &Tensor,
) -> Result<Vec<f64>> {
    const STEP: f64 = 1e-4;
    let base = flat(&inputs[i])?;
    let value_at = |j: usize, x: f64| -> Result<f64> {
        let mut moved = base.clone();
        moved[j] = x;
        let mut inputs = inputs.to_vec();
        inputs[i] = Tensor::from_vec(moved, inputs[i].shape(), &Device::Cpu)?;
        reference(&inputs)?.mul(weights)?.sum_all()?.to_scalar::<f64>()
    };
    (0..base.len())
        .map(|j| Ok((value_at(j, base[j] + STEP)? - value_at(j, base[j] - STEP)?) / (2.0 * STEP)))
        .collect()
}

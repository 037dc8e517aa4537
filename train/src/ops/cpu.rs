//! How an operation reads and writes f32 tensors that live on the CPU.
//!
//! Keeps the rule that makes results independent of the number of threads: the cut of a tensor
//! into chunks is a function of its shape alone.

use std::{
    cell::Cell,
    ops::{Deref, Range},
};

use candle_core::{CpuStorage, Error, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor};
use qat_quant::vectorized;
use rayon::prelude::*;

/// About this many elements are one task: 64 KiB of f32, far above the cost of handing a task to a thread and small
/// enough that a chunk of each operand stays in a core's L2.
const CHUNK_LEN: usize = 16 * 1024;

/// How many rows of `row_len` elements make one task; at least one.
pub(crate) fn rows_per_chunk(row_len: usize) -> usize {
    (CHUNK_LEN / row_len.max(1)).max(1)
}

/// The elements of a contiguous f32 operand inside a custom op's `cpu_fwd`.
///
/// # Errors
/// Another dtype, or a layout with gaps: callers make their operands contiguous first.
pub(crate) fn floats<'a>(op: &'static str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let range = contiguous_range(op, layout)?;
    match storage {
        CpuStorage::F32(values) => Ok(&values[range]),
        other => Err(wrong_dtype(op, other)),
    }
}

/// What a custom op's `cpu_fwd` returns for `values` of `shape`.
pub(crate) fn floats_out(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}

/// Calls `f(first row, outputs, inputs)` for each chunk of rows of `row_len`, in parallel and compiled for the best
/// instruction set. All tensors have the same length; `f` should be an `#[inline(always)]` closure, and its chunks are
/// whole rows.
pub(crate) fn for_each_chunk<const OUT: usize, const IN: usize>(
    row_len: usize,
    outputs: [&mut [f32]; OUT],
    inputs: [&[f32]; IN],
    f: impl Fn(usize, [&mut [f32]; OUT], [&[f32]; IN]) + Sync,
) {
    let rows = rows_per_chunk(row_len);
    let chunk_len = (rows * row_len).max(1);
    let chunks = outputs.iter().map(|x| x.len()).max().unwrap_or(0).div_ceil(chunk_len);
    let (mut outputs, mut inputs) =
        (outputs.map(|x| x.chunks_mut(chunk_len)), inputs.map(|x| x.chunks(chunk_len)));
    let mut cut = || {
        let outputs = outputs.each_mut().map(|x| x.next().unwrap_or_default());
        (outputs, inputs.each_mut().map(|x| x.next().unwrap_or_default()))
    };
    let tasks: Vec<_> = (0..chunks).map(|_| cut()).collect();
    tasks.into_par_iter().enumerate().for_each(|(chunk, (outputs, inputs))| {
        vectorized(
            #[inline(always)]
            || f(chunk * rows, outputs, inputs),
        );
    });
}

/// Moves `quantized` to x + λ·(quantized − x); at λ = 1 it stays as it is, to the bit.
pub(crate) fn blend(x: &[f32], quantized: &mut [f32], lambda: f32) {
    if lambda != 1.0 {
        for_each_chunk(
            1,
            [quantized],
            [x],
            #[inline(always)]
            |_, [quantized], [x]| {
                for (q, &x) in quantized.iter_mut().zip(x) {
                    *q = x + (*q - x) * lambda;
                }
            },
        );
    }
}

/// A read lock on a contiguous f32 CPU tensor that derefs to its elements; for backward passes, which see tensors.
pub(crate) struct Floats<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Floats<'a> {
    /// Locks `tensor` for reading on behalf of the operation `op`.
    ///
    /// # Errors
    /// A tensor that is not f32, not contiguous, or not on the CPU.
    pub(crate) fn of(op: &'static str, tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let range = contiguous_range(op, layout)?;
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_)) => {}
            Storage::Cpu(other) => return Err(wrong_dtype(op, other)),
            _ => candle_core::bail!("{op}: want a tensor on the CPU, found {:?}", tensor.device().location()),
        }
        Ok(Self { storage, range })
    }
}

impl Deref for Floats<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => unreachable!("`of` accepts only f32 on the CPU, and a lock is held since"),
        }
    }
}

/// Calls `change` with the elements of contiguous f32 `tensors`, each of a storage of its own, to be written where they lie.
///
/// # Errors
/// A tensor that is not f32, not contiguous, or not on the CPU.
pub(crate) fn in_place<const N: usize>(
    op: &'static str,
    tensors: [&Tensor; N],
    change: impl FnOnce([&mut [f32]; N]),
) -> Result<()> {
    let change = |held: Vec<&mut [f32]>| {
        if let Ok(held) = held.try_into() {
            change(held);
        }
    };
    hold(op, &tensors, Vec::new(), change)
}

/// Takes the locks of `tensors` one inside the other, as candle's one-tensor operation gives them, until all are `held`.
fn hold<F: FnOnce(Vec<&mut [f32]>)>(
    op: &'static str,
    tensors: &[&Tensor],
    held: Vec<&mut [f32]>,
    change: F,
) -> Result<()> {
    match tensors {
        [] => change(held),
        [first, rest @ ..] => {
            first.inplace_op1(&Hold { op, rest, state: Cell::new(Some((held, change))) })?
        }
    }
    Ok(())
}

/// The tensors that are held, and what is to be done with them all.
type Held<'b, F> = (Vec<&'b mut [f32]>, F);

struct Hold<'a, 'b, F> {
    op: &'static str,
    rest: &'a [&'a Tensor],
    state: Cell<Option<Held<'b, F>>>,
}

impl<F: FnOnce(Vec<&mut [f32]>)> InplaceOp1 for Hold<'_, '_, F> {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let range = contiguous_range(self.op, layout)?;
        let CpuStorage::F32(values) = storage else { return Err(wrong_dtype(self.op, storage)) };
        let Some((held, change)) = self.state.take() else { return Ok(()) };
        let mut held = held;
        held.push(&mut values[range]);
        hold(self.op, self.rest, held, change)
    }
}

fn contiguous_range(op: &'static str, layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => Err(Error::RequiresContiguous { op }.bt()),
    }
}

fn wrong_dtype(op: &'static str, storage: &CpuStorage) -> Error {
    use candle_core::backend::BackendStorage;
    Error::UnsupportedDTypeForOp(storage.dtype(), op).bt()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn several_tensors_are_changed_where_they_lie() -> Result<()> {
        let [a, b] = [[1f32, 2.0], [3.0, 4.0]].map(|v| Tensor::new(&v, &Device::Cpu));
        let (a, b) = (a?, b?);
        in_place("swap", [&a, &b], |[a, b]| a.swap_with_slice(b))?;
        assert_eq!((a.to_vec1::<f32>()?, b.to_vec1::<f32>()?), (vec![3.0, 4.0], vec![1.0, 2.0]));
        Ok(())
    }

    #[test]
    fn what_is_no_contiguous_f32_is_not_changed() -> Result<()> {
        let [gaps, bits] = [DType::F32, DType::U32].map(|dtype| Tensor::ones((2, 2), dtype, &Device::Cpu));
        let message = in_place("op", [&gaps?.t()?], |_| ()).unwrap_err().to_string();
        assert!(message.contains("op") && message.contains("contiguous"), "{message}");
        let message = in_place("op", [&bits?], |_| ()).unwrap_err().to_string();
        assert!(message.contains("U32"), "{message}");
        Ok(())
    }
}

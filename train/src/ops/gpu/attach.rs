//! A value that was computed outside the graph, with a gradient of its own.
//!
//! The value is taken as it is, on any device and without a copy where storage is shared. Knows no operation.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape, Storage,
    Tensor,
};

/// How a gradient comes back through a value.
pub(crate) trait Backward: Send + Sync + 'static {
    /// The operation, as error messages call it.
    const NAME: &'static str;

    /// Whether [`Self::backward`] reads the inputs; if not, they are let go of, and it may get none.
    const READS_INPUTS: bool = true;

    /// Whether it reads the value; if not, that is let go of, and it may get the gradient in its place.
    const READS_VALUE: bool = false;

    /// The gradients of `inputs`, one for each that has one; `grad`, contiguous, is that of `value`.
    fn backward(&self, inputs: &[&Tensor], value: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// `value` with `backward` as its gradient by `inputs`, one to three.
///
/// # Errors
/// Another number of inputs.
pub(crate) fn attach<B: Backward>(value: Tensor, inputs: &[&Tensor], backward: B) -> Result<Tensor> {
    let op = Attached { value: Mutex::new(Some(value.detach())), backward };
    match *inputs {
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => candle_core::bail!("{}: want one to three operands, found {}", B::NAME, inputs.len()),
    }
}

struct Attached<B> {
    /// Until the forward pass has taken it, so that it is not held twice.
    value: Mutex<Option<Tensor>>,
    backward: B,
}

impl<B: Backward> Attached<B> {
    /// The value's storage, if `pick` finds it where the operands are.
    fn value<S: BackendStorage>(&self, pick: impl Fn(&Storage) -> Option<&S>) -> Result<(S, Shape)> {
        let Some(value) = self.value.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            candle_core::bail!("{}: the value is taken already", B::NAME)
        };
        let (storage, layout) = value.storage_and_layout();
        let Some(found) = pick(&storage) else {
            candle_core::bail!(
                "{}: the value is on {:?}, its operands are not",
                B::NAME,
                storage.device().location()
            )
        };
        Ok((found.try_clone(layout)?, layout.shape().clone()))
    }

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        self.value(|s| if let Storage::Cpu(s) = s { Some(s) } else { None })
    }

    fn on_cuda(&self) -> Result<(CudaStorage, Shape)> {
        self.value(|s| if let Storage::Cuda(s) = s { Some(s) } else { None })
    }

    fn on_gpu(&self) -> Result<(MetalStorage, Shape)> {
        self.value(|s| if let Storage::Metal(s) = s { Some(s) } else { None })
    }

    fn gradients<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        value: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        let inputs = inputs.map(Tensor::detach);
        let inputs = inputs.each_ref();
        let gradients = self.backward.backward(&inputs, &value.detach(), &grad.contiguous()?.detach())?;
        <[Option<Tensor>; N]>::try_from(gradients).map_err(|found| {
            candle_core::Error::Msg(format!("{}: {} gradients of {N} operands", B::NAME, found.len())).bt()
        })
    }
}

impl<B: Backward> CustomOp1 for Attached<B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.on_gpu()
    }

    fn bwd(&self, a: &Tensor, value: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [da] = self.gradients([a], value, grad)?;
        Ok(da)
    }
}

impl<B: Backward> CustomOp2 for Attached<B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.on_gpu()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        value: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db] = self.gradients([a, b], value, grad)?;
        Ok((da, db))
    }
}

impl<B: Backward> CustomOp3 for Attached<B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.on_gpu()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        value: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = self.gradients([a, b, c], value, grad)?;
        Ok((da, db, dc))
    }
}

//! A forward pass that keeps what stands between the layers, and nothing inside them: the backward pass makes that again
//! (Chen et al., arXiv 1604.06174), one layer at a time, from the same inputs by the same operations, so that gradients are the same bits.
//!
//! Knows no loss. A layer is one operation in the graph of its input; the gradients of its weights come out beside the graph.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Result as CandleResult, Tensor, Var, backprop::GradStore};
use qat_infer::model::{Decoder, Exec as _};

use super::{Matrix, RopeTable, TrainExec};
use crate::{
    Result,
    ops::gpu::{Backward, attach},
};

/// Gradients of the weights inside layers that were computed again, until the pass is over.
#[derive(Debug, Clone, Default)]
pub struct Recomputed(Arc<Mutex<Option<GradStore>>>);

impl Recomputed {
    /// As [`Decoder::forward`], in a graph without the insides of layers; but for a layer that `exec` listens to.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn forward(
        &self,
        decoder: &Decoder<Matrix, Tensor>,
        exec: &mut TrainExec,
        ids: &[u32],
    ) -> Result<Tensor> {
        // Shares all tensors.
        let shared = Arc::new(decoder.clone());
        let mut x = exec.embed(&decoder.embed, ids)?;
        for index in 0..decoder.layers.len() {
            let heard = exec.tap.as_ref().is_some_and(|tap| tap.layer == index);
            x = if heard { decoder.layer(exec, index, x)? } else { self.layer(&shared, exec, index, &x)? };
        }
        exec.rms_norm(&x, &decoder.norm, decoder.config.rms_norm_eps)
    }

    fn layer(
        &self,
        decoder: &Arc<Decoder<Matrix, Tensor>>,
        exec: &TrainExec,
        index: usize,
        x: &Tensor,
    ) -> Result<Tensor> {
        let layer = Layer {
            decoder: decoder.clone(),
            index,
            windows: [exec.batch, exec.ctx],
            rope: exec.rope.clone(),
            gradients: self.clone(),
        };
        // What the layer's own graph holds is let go of here.
        let y = layer.forward(x.detach())?.detach();
        Ok(attach(y, &[x], layer)?)
    }

    /// Moves the gradients that a backward pass left here into its `store`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn join(&self, store: &mut GradStore) -> Result<()> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(found.map_or(Ok(()), |found| store.extend(found))?)
    }

    fn add(&self, found: GradStore) -> CandleResult<()> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_mut() {
            Some(held) => held.extend(found)?,
            None => *held = Some(found),
        }
        Ok(())
    }
}

/// One layer as an operation.
struct Layer {
    decoder: Arc<Decoder<Matrix, Tensor>>,
    index: usize,
    /// How many, and their length.
    windows: [usize; 2],
    rope: RopeTable,
    gradients: Recomputed,
}

impl Layer {
    fn forward(&self, x: Tensor) -> Result<Tensor> {
        let [batch, ctx] = self.windows;
        self.decoder.layer(&mut TrainExec::new(batch, ctx, &self.rope), self.index, x)
    }
}

impl Backward for Layer {
    const NAME: &'static str = "layer";

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, grad: &Tensor) -> CandleResult<Vec<Option<Tensor>>> {
        let x = Var::from_tensor(inputs[0])?;
        let y = self.forward(x.as_tensor().clone()).map_err(candle_core::Error::wrap)?;
        let mut store = seeded(&y, grad)?.backward()?;
        let dx = store.remove(&x);
        self.gradients.add(store)?;
        Ok(vec![dx])
    }
}

/// A scalar whose gradient by `y` is `grad`: where a backward pass begins that has an upstream gradient.
fn seeded(y: &Tensor, grad: &Tensor) -> CandleResult<Tensor> {
    attach(Tensor::zeros((), grad.dtype(), &Device::Cpu)?.to_device(grad.device())?, &[y], Seed(grad.clone()))
}

struct Seed(Tensor);

impl Backward for Seed {
    const NAME: &'static str = "upstream gradient";

    fn backward(&self, _: &[&Tensor], _: &Tensor, _: &Tensor) -> CandleResult<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.0.clone())])
    }
}

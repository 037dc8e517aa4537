//! A forward pass that keeps what stands between the layers, and nothing inside them: the backward pass makes that again
//! (Chen et al., arXiv 1604.06174), one layer at a time, from the same inputs by the same operations, so that gradients are the same bits.
//!
//! Knows no loss.

use std::sync::Arc;

use candle_core::Tensor;
use qat_infer::model::{Decoder, Exec as _};

use super::{Matrix, TrainExec};
use crate::{
    Result,
    ops::{gpu::settle, tape},
};

/// As [`Decoder::forward`], without a record of the insides of layers; but for a layer that `exec` listens to.
///
/// # Errors
/// The device is out of memory.
pub fn forward_in_layers(
    decoder: &Decoder<Matrix, Tensor>,
    exec: &mut TrainExec,
    ids: &[u32],
) -> Result<Tensor> {
    // Shares all tensors.
    let shared = Arc::new(decoder.clone());
    let mut x = exec.embed(&decoder.embed, ids, decoder.config.embedding_scale())?;
    for index in 0..decoder.layers.len() {
        let heard = exec.tap.as_ref().is_some_and(|tap| tap.layer == index);
        x = if heard { decoder.layer(exec, index, x)? } else { layer(&shared, exec, index, &x)? };
        settle(x.device())?;
    }
    exec.rms_norm(&x, &decoder.norm, decoder.config.rms_norm_eps)
}

fn layer(
    decoder: &Arc<Decoder<Matrix, Tensor>>,
    exec: &TrainExec,
    index: usize,
    x: &Tensor,
) -> Result<Tensor> {
    let (decoder, rope, batch, ctx) = (decoder.clone(), exec.rope.clone(), exec.batch, exec.ctx);
    let borders = exec.borders.clone();
    let forward = move |x: &Tensor| {
        let mut exec = TrainExec::new(batch, ctx, &rope).with_borders(borders.clone());
        decoder.layer(&mut exec, index, x.clone()).map_err(candle_core::Error::wrap)
    };
    Ok(tape::again(x, forward)?)
}

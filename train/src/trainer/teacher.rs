//! Whose predictions are the target: nobody's, the student's own float weights, or another model's.

use candle_core::{Device, Tensor};
use qat_infer::model::Decoder;

use crate::{
    Result,
    exec::{Matrix, RopeTable, TrainExec},
    loss::Head,
    ops,
    student::{Floats, Student},
};

/// A teacher, ready to be asked.
#[derive(Debug)]
pub enum Teacher {
    /// The text alone.
    None,
    /// The student without its rounding.
    Latent,
    /// A frozen model.
    Frozen {
        /// Its weights.
        decoder: Box<Decoder<Matrix, Tensor>>,
        /// Its angles.
        rope: RopeTable,
    },
}

impl Teacher {
    /// A frozen teacher for windows of `ctx` tokens.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn frozen(floats: &Floats, ctx: usize, device: &Device) -> Result<Self> {
        let decoder = floats.decoder(device)?;
        let rope = RopeTable::new(&decoder.rope, ctx, device)?;
        Ok(Self::Frozen { decoder: Box::new(decoder), rope })
    }

    /// Logits `[batch · ctx, vocab]` without a gradient; none where there is no teacher.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn logits(
        &self,
        student: &Student,
        student_rope: &RopeTable,
        ids: &[u32],
        ctx: usize,
    ) -> Result<Option<Tensor>> {
        match self {
            Self::None => Ok(None),
            Self::Latent => logits(&student.decoder(None)?, student_rope, ids, ctx).map(|l| Some(l.detach())),
            Self::Frozen { decoder, rope } => logits(decoder, rope, ids, ctx).map(Some),
        }
    }
}

/// Logits of windows of `ctx` tokens, one after the other in `ids`.
///
/// # Errors
/// The device is out of memory.
pub fn logits(
    decoder: &Decoder<Matrix, Tensor>,
    rope: &RopeTable,
    ids: &[u32],
    ctx: usize,
) -> Result<Tensor> {
    let mut exec = TrainExec::new(ids.len() / ctx, ctx, rope);
    let hidden = decoder.forward(&mut exec, ids)?;
    decoder.logits(&mut exec, &hidden)
}

/// What those logits are a product of.
///
/// # Errors
/// The device is out of memory.
pub fn head(decoder: &Decoder<Matrix, Tensor>, rope: &RopeTable, ids: &[u32], ctx: usize) -> Result<Head> {
    let mut exec = TrainExec::new(ids.len() / ctx, ctx, rope);
    let hidden = decoder.forward(&mut exec, ids)?;
    let matrix = decoder.head.as_ref().map_or(&decoder.embed, |head| &head.weight);
    let input = match matrix.int8_inputs {
        Some(lambda) => ops::quantize_activations(&hidden, lambda)?,
        None => hidden,
    };
    Ok(Head { input, weight: matrix.weight.clone() })
}

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

    /// What its logits `[batch · ctx, vocab]` are a product of, outside any graph; none where there is no teacher.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn head(
        &self,
        student: &Student,
        student_rope: &RopeTable,
        ids: &[u32],
        ctx: usize,
    ) -> Result<Option<Head>> {
        let found = match self {
            Self::None => return Ok(None),
            Self::Latent => head(&student.decoder(None)?, student_rope, ids, ctx)?,
            Self::Frozen { decoder, rope } => head(decoder, rope, ids, ctx)?,
        };
        Ok(Some(Head { input: found.input.detach(), weight: found.weight.detach() }))
    }
}

/// What the logits of windows of `ctx` tokens, one after the other in `ids`, are a product of.
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

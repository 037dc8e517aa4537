//! What a model takes of the GPU's memory, and the longest context that a limit leaves room for.
//!
//! Knows no device. Invariant: the bytes are those of the buffers that a session asks for.

use super::buffers::Buffers;
use super::options::Options;
use super::{Decoder, Matrix};
use crate::plan::Plan;
use crate::{Error, Result};

/// Bytes of all buffers of a model: weights, keys and values, activations, logits.
///
/// # Errors
/// What [`Options`] can't be honoured for.
pub fn working_set(decoder: &Decoder, options: &Options) -> Result<u64> {
    options.check(&decoder.config)?;
    let plan: Plan<'_, &Matrix> = Plan::new(decoder)?;
    Ok(Buffers::new(decoder, &plan, options).bytes())
}

/// The longest context whose buffers have at most `limit` bytes; none when not even one token fits. The context of
/// `options` counts for nothing.
///
/// # Errors
/// What other [`Options`] can't be honoured for.
pub fn longest_context(decoder: &Decoder, options: &Options, limit: u64) -> Result<Option<usize>> {
    let plan: Plan<'_, &Matrix> = Plan::new(decoder)?;
    let fits = |context: usize| -> Result<bool> {
        let logit_rows = options.logit_rows.min(context);
        let options = Options { context, logit_rows, ..*options };
        options.check(&decoder.config)?;
        Ok(Buffers::new(decoder, &plan, &options).bytes() <= limit)
    };
    let (mut fitting, mut too_long) = (0, decoder.config.max_position_embeddings + 1);
    while too_long - fitting > 1 {
        let between = fitting + (too_long - fitting) / 2;
        if fits(between)? { fitting = between } else { too_long = between }
    }
    Ok((fitting > 0).then_some(fitting))
}

/// Refuses a model whose buffers have more than `limit` bytes together.
///
/// # Errors
/// Names both numbers and the context that would fit; and what [`Options`] can't be honoured for.
pub fn check_working_set(decoder: &Decoder, options: &Options, limit: u64) -> Result<()> {
    let wanted = working_set(decoder, options)?;
    if wanted <= limit {
        return Ok(());
    }
    let advice = match longest_context(decoder, options, limit)? {
        Some(context) => format!("a context of {context} tokens fits"),
        None => "no context fits: choose a smaller model or format, or --device cpu".to_owned(),
    };
    Err(Error::Invalid(format!(
        "the model with a context of {} tokens and keys and values in {} takes {:.2} GB of the GPU's memory, \
         whose limit is {:.2} GB; {advice}",
        options.context,
        options.kv,
        wanted as f64 / 1e9,
        limit as f64 / 1e9
    )))
}

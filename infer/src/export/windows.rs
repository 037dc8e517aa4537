//! What of a Phi-3 depends on the longest text: runtimes that see everything where the model sees a window, and that turn short texts
//! as long ones, are right up to a context.

use super::Options;
use crate::model::{Config, Family};
use crate::{Error, Result};

/// The longest text of an export.
pub(super) fn announced(config: &Config, options: &Options) -> usize {
    options.context.unwrap_or(config.max_position_embeddings)
}

/// Refuses, for a runtime that sees everything, a Phi-3 whose windows are shorter than its texts may be.
pub(super) fn check_windows(target: &str, runtime: &str, config: &Config, options: &Options) -> Result<()> {
    let window = config.window(0).filter(|_| config.family == Family::Phi3);
    let context = announced(config, options);
    match window.filter(|window| *window < context) {
        None => Ok(()),
        Some(window) => Err(Error::Invalid(format!(
            "{target}: {runtime} sees all of a text where the model sees the last {window} tokens, and this one announces a context of \
             {context}; with --context {window} both see the same"
        ))),
    }
}

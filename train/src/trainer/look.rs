//! The text of a recipe as its student will see it, before anything is trained.
//!
//! Reads no weights and writes nothing but the token file that training would write.

use std::{path::PathBuf, sync::atomic::AtomicBool};

use qat_infer::{
    FloatModel,
    files::{Tokenizer, load_tokenizer},
    model::Config,
};

use super::{Event, Job, prepare::tokens};
use crate::{Result, data::Tokens, recipe::Origin, student::read_config};

/// Text in tokens.
#[derive(Debug)]
pub struct Look {
    /// What is trained on, in the order of the files.
    pub train: Tokens,
    /// What is held out.
    pub valid: Tokens,
    /// How ids are read.
    pub tokenizer: Tokenizer,
    /// Tokens from one window to the next.
    pub stride: usize,
}

/// Looks at the text of `job`.
///
/// # Errors
/// Everything that can be wrong with a recipe's text and with the model whose tokens it becomes; [`Error::Interrupted`](crate::Error) when
/// `stop` is raised.
pub fn look(job: &Job, report: &mut dyn FnMut(Event), stop: &AtomicBool) -> Result<Look> {
    let (config, tokenizer): (Config, PathBuf);
    // A GGUF file's tokenizer lasts as long as it is open.
    let _opened = match &job.plan.origin {
        Origin::Pretrained(path) => {
            let model = FloatModel::open(path)?;
            (config, tokenizer) = (model.config.clone(), model.tokenizer_path());
            Some(model)
        }
        Origin::Scratch { config: shape, tokenizer: path } => {
            (config, tokenizer) = (read_config(shape)?, path.clone());
            None
        }
    };
    let (train, valid) = tokens(job, (&config, &tokenizer), report, stop)?;
    let apart = job.plan.data.chat.is_some();
    let stride = job.plan.recipe.data.ctx + usize::from(apart);
    Ok(Look { train, valid, tokenizer: load_tokenizer(&tokenizer, config.vocab_size)?, stride })
}

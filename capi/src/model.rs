//! A model that is open, whatever runs it.
//!
//! Knows no text. Invariant: a model is not changed after it was opened, so that threads share it.

use std::path::Path;
use std::sync::Arc;

use qat_infer::chat::{ChatTemplate, Endings};
use qat_infer::cpu::KvType;
use qat_infer::files::Tokenizer;
use qat_infer::model::Config;
use qat_infer::{Choice, Opened, Runtime, Sequence, Size, with_runtime};

use crate::status::Failure;

/// Weights, tokenizer and chat template.
pub struct Loaded {
    pub tokenizer: Tokenizer,
    pub chat: Option<Chat>,
    weights: Box<dyn Weights>,
}

/// How a model takes turns.
pub struct Chat {
    pub template: ChatTemplate,
    pub endings: Endings,
}

/// Weights on some runtime.
pub trait Weights: Send + Sync {
    /// The model's shape.
    fn config(&self) -> &Config;

    /// What its files weigh.
    fn size(&self) -> Size;

    /// What it runs on, as `metal (Apple M2)`.
    fn device(&self) -> String;

    /// Opens a sequence, and ends it when `job` returns.
    fn with_sequence(
        &self,
        context: usize,
        kv: KvType,
        job: &mut dyn FnMut(&mut dyn Sequence),
    ) -> qat_infer::Result<()>;
}

/// A model's weights as a runtime of type `R` has them.
struct On<R: Runtime> {
    runtime: R,
    device: String,
    model: Opened<R::Matrix>,
}

impl<R> Weights for On<R>
where
    R: Runtime + Send + Sync,
    R::Matrix: Send + Sync,
{
    fn config(&self) -> &Config {
        &self.model.decoder.config
    }

    fn size(&self) -> Size {
        self.model.size
    }

    fn device(&self) -> String {
        self.device.clone()
    }

    fn with_sequence(
        &self,
        context: usize,
        kv: KvType,
        job: &mut dyn FnMut(&mut dyn Sequence),
    ) -> qat_infer::Result<()> {
        job(&mut *self.runtime.sequence(&self.model.decoder, context, kv)?);
        Ok(())
    }
}

impl Loaded {
    /// The model at `path` on `device`: auto, cpu or metal.
    pub fn open(path: &Path, device: &str) -> Result<Arc<Self>, Failure> {
        let chosen = device.parse::<Choice>()?.open()?;
        with_runtime!(chosen, runtime => Self::on(runtime, path))
    }

    fn on<R>(runtime: R, path: &Path) -> Result<Arc<Self>, Failure>
    where
        R: Runtime + Send + Sync + 'static,
        R::Matrix: Send + Sync,
    {
        let model = Opened::<R::Matrix>::open(path)?;
        let (tokenizer, template) = (model.tokenizer()?, model.chat_template()?);
        let chat_with = |template: ChatTemplate| -> qat_infer::Result<Chat> {
            let endings = Endings::of(&template, &tokenizer, &model.decoder.config.eos_token_ids)?;
            Ok(Chat { template, endings })
        };
        let chat = template.map(chat_with).transpose()?;
        let [name, detail] = runtime.describe()?;
        let weights = Box::new(On { device: format!("{name} ({detail})"), runtime, model });
        Ok(Arc::new(Self { tokenizer, chat, weights }))
    }

    /// Its weights.
    pub fn weights(&self) -> &dyn Weights {
        &*self.weights
    }
}

//! A whole evaluation on tasks: a model and files of rows go in, scores come out, item by item if wanted.
//!
//! Knows no formatting. Invariant: one model is in memory at a time; all items are read and encoded before the first is judged, so that a
//! bad row is found at once.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::{Item, ItemScore, Task, TaskScore, Tokens, judge, read_items, requests};
use crate::cpu::KvType;
use crate::files::{Activations, same_tokens};
use crate::model::Config;
use crate::{Error, Opened, Result, Runtime};

/// What can be chosen about an evaluation on tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskOptions {
    /// What to ask.
    pub tasks: Vec<Task>,
    /// Where the files are.
    pub data: PathBuf,
    /// Only so many items of each task, the first ones.
    pub limit: Option<usize>,
    /// Tokens that the model reads at most of a request; its own context, if none.
    pub ctx: Option<usize>,
    /// How the model keeps keys and values; as exactly as the runtime can, if none.
    pub kv: Option<KvType>,
    /// What the inputs of packed matrices are rounded to; what the model was trained with, if none.
    pub activations: Option<Activations>,
}

/// A task, scored, with its items.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Which.
    pub task: Task,
    /// All in all.
    pub score: TaskScore,
    /// Item by item, in the order of the file.
    pub items: Vec<ItemScore>,
    /// The reference's answers to the same items, if there is one.
    pub reference: Option<Vec<ItemScore>>,
}

/// Scores the model in `dir`, run by `runtime`, and beside it the one in `against` if given. `progress` hears of requests' items done and
/// in all, those of the reference among them.
///
/// # Errors
/// When a model or a file can't be read, a row is not one of its task's, the two models don't share a tokenizer, or a continuation doesn't
/// fit the context.
pub fn evaluate_tasks<R: Runtime>(
    runtime: &R,
    dir: &Path,
    against: Option<&Path>,
    options: &TaskOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Run>> {
    let read = |task: &Task| Ok((*task, read_items(*task, &options.data, options.limit)?));
    let asked: Vec<(Task, Vec<Item>)> = options.tasks.iter().map(read).collect::<Result<_>>()?;
    let models = 1 + usize::from(against.is_some());
    let all = models * asked.iter().map(|(_, items)| items.len()).sum::<usize>();
    let mut done = 0;
    let mut step = || {
        progress(done, all);
        done += 1;
    };
    let chosen = Answering { runtime, options, asked: &asked };
    let kv = options.kv.unwrap_or(runtime.exact_kv());
    let (tokenizer, answers) = chosen.answer(dir, kv, options.activations, None, &mut step)?;
    let reference = against.map(|against| {
        let exact = runtime.exact_kv();
        chosen.answer(against, exact, None, Some((dir, &tokenizer)), &mut step).map(|(_, answers)| answers)
    });
    let mut reference = reference.transpose()?.map(Vec::into_iter);
    let runs = asked.iter().zip(answers).map(|((task, _), Answers { items, truncated })| {
        let reference = reference.as_mut().and_then(Iterator::next).map(|answers| answers.items);
        let score = TaskScore::of(*task, &items, truncated, reference.as_deref());
        Run { task: *task, score, items, reference }
    });
    Ok(runs.collect())
}

/// The answers to one task.
struct Answers {
    items: Vec<ItemScore>,
    truncated: usize,
}

/// The questions, and what answers them.
struct Answering<'a, R> {
    runtime: &'a R,
    options: &'a TaskOptions,
    asked: &'a [(Task, Vec<Item>)],
}

impl<R: Runtime> Answering<'_, R> {
    /// The answers of the model in `dir`, which shares the tokenizer of `like`.
    fn answer(
        &self,
        dir: &Path,
        kv: KvType,
        activations: Option<Activations>,
        like: Option<(&Path, &Tokenizer)>,
        step: &mut dyn FnMut(),
    ) -> Result<(Tokenizer, Vec<Answers>)> {
        let mut model = Opened::<R::Matrix>::open(dir)?;
        if let Some(activations) = activations {
            model.set_activations(activations);
        }
        let tokenizer = model.tokenizer()?;
        if let Some((other, tokens)) = like
            && !same_tokens(&tokenizer, tokens)?
        {
            return Err(Error::Invalid(format!(
                "{} and {} have different tokenizers; answers can only be compared over the same tokens",
                other.display(),
                dir.display()
            )));
        }
        let config = &model.decoder.config;
        let context = self.options.ctx.unwrap_or(config.max_position_embeddings);
        crate::cpu::check_context(config, context)?;
        let tokens = self.tokens(&tokenizer, config, context)?;
        let longest = tokens.iter().map(Tokens::longest).max().unwrap_or(1);
        let mut sequence = self.runtime.sequence(&model.decoder, longest, kv)?;
        let mut answers = Vec::with_capacity(tokens.len());
        for ((task, items), tokens) in self.asked.iter().zip(&tokens) {
            let mut scores = Vec::with_capacity(items.len());
            for (number, (item, requests)) in items.iter().zip(&tokens.items).enumerate() {
                step();
                let likelihoods = judge(&mut *sequence, requests)
                    .map_err(|e| Error::Invalid(format!("{task}, item {}: {e}", number + 1)))?;
                scores.push(ItemScore::of(*task, item, &likelihoods));
            }
            answers.push(Answers { items: scores, truncated: tokens.truncated });
        }
        Ok((tokenizer, answers))
    }

    fn tokens(&self, tokenizer: &Tokenizer, config: &Config, context: usize) -> Result<Vec<Tokens>> {
        let prefix = config.bos_token_id.or(config.eos_token_ids.first().copied());
        let of = |(task, items): &(Task, Vec<Item>)| {
            let tokens = requests(items, tokenizer, prefix, context);
            tokens.map_err(|e| Error::Invalid(format!("{task}, {e}")))
        };
        self.asked.iter().map(of).collect()
    }
}

//! Chat data of a run: its conversations as windows, and what a user should know of them.
//!
//! Knows no step.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use qat_infer::model::Config;

use super::{Event, Job, prepare::report_origin};
use crate::{
    Result,
    data::{ChatTokenization, Corpus, Frame, Lost, Source, Tokens},
    recipe::ChatPlan,
};

/// Whose tokens they become.
pub(super) struct Model<'a> {
    pub config: &'a Config,
    pub tokenizer: &'a Path,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
}

/// The conversations that `list` names, in windows of the run.
///
/// # Errors
/// No template, a row that is no conversation.
pub(super) fn windows(
    job: &Job,
    (plan, list): (&ChatPlan, &[String]),
    model: Model,
    report: &mut dyn FnMut(Event),
    stop: &AtomicBool,
) -> Result<Tokens> {
    let corpus = Corpus::new(Source::resolve(list, Path::new(""))?, None, None)?;
    let frame = Frame::of(&plan.template, model.tokenizer.parent().unwrap_or(Path::new(".")))?;
    let how = ChatTokenization {
        corpus: &corpus,
        tokenizer: model.tokenizer,
        vocab_size: model.config.vocab_size,
        frame: &frame,
        learn_all: plan.learn_all,
        bos: model.bos,
        eos: model.eos,
        window: job.plan.recipe.data.ctx + 1,
    };
    let (tokens, origin, lost) = how.tokens_on(&job.ranks, job.cache, &mut |progress| {
        report(progress.into());
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    report_origin(&origin, report);
    report(Event::Note(summary(&tokens, lost, how.window)));
    Ok(tokens)
}

/// What is in the windows, and what is not.
fn summary(tokens: &Tokens, lost: Option<Lost>, window: usize) -> String {
    let census = tokens.census();
    let share = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
    let mut said = format!(
        "{} conversations, {} tokens of which {:.1} % are learned, in {} windows of {window} ({:.1} % of them filled up)",
        census.documents,
        census.tokens,
        share(census.learned, census.tokens),
        tokens.len() / window,
        share(census.fill, census.tokens + census.fill),
    );
    if census.cut > 0 {
        said += &format!("; {} were longer than a window and were cut", census.cut);
    }
    match lost {
        Some(lost) if lost.cut + lost.left_out > 0 => {
            said + &format!(
                ", {} tokens in all; {} left out for lack of room for an answer",
                lost.tokens, lost.left_out
            )
        }
        _ => said,
    }
}

//! When a small model should ask a larger one: which measure of its certainty tells where both would have written the same.
//!
//! The model goes on with parts of a text, always with its likeliest token; the larger model reads what it wrote, and its likeliest token at
//! each place agrees or doesn't. The share that agrees is the quality of an answer. An app that answers by itself only above a
//! threshold, and asks for the rest, keeps the mean of those qualities and of ones. Every other answer chooses measure and threshold,
//! the rest say what they are worth. Knows no formatting.

use std::ops::ControlFlow;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use super::{Mean, Text};
use crate::cpu::KvType;
use crate::files::{Activations, same_tokens};
use crate::generate::{Certainty, Measure, Sampling, Writing, model_identity};
use crate::sequence::top1;
use crate::{Error, Opened, Result, Runtime, Sequence};

/// Tokens of a part of the text, and of an answer.
const PROMPT: usize = 64;
const ANSWER: usize = 32;
/// Fewest answers from which something can be said.
const FEWEST: usize = 8;
/// Points of a curve.
const POINTS: usize = 20;

/// What can be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeferralOptions {
    /// Quality to be kept, of 0 to 1.
    pub keep: f64,
    /// Most parts of the text.
    pub prompts: usize,
    /// How the model keeps keys and values; as exactly as the runtime can, if none.
    pub kv: Option<KvType>,
    /// What the inputs of packed matrices are rounded to; what the model was trained with, if none.
    pub activations: Option<Activations>,
}

/// What was found, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deferral {
    /// Identity of the model.
    pub model: String,
    /// The measure that tells most.
    pub measure: Measure,
    /// Below this value of it a larger model should be asked; none where it never need be.
    pub threshold: Option<f64>,
    /// The quality that was to be kept.
    pub keep: f64,
    /// Of the answers that didn't choose the threshold, the share above it.
    pub answered: f64,
    /// Their quality, with those below it asked for.
    pub kept: f64,
    /// Its standard error.
    pub kept_se: f64,
    /// Quality of the same answers without asking.
    pub quality: f64,
    /// Answers, half of which chose.
    pub answers: usize,
    /// Tokens of each, at most.
    pub tokens: usize,
    /// Every measure, the best first.
    pub measures: Vec<Measured>,
}

/// What a measure is worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Which.
    pub measure: Measure,
    /// Mean quality of the surest answers, over all shares of them: that of all answers if it tells nothing.
    pub area: f64,
    /// The same of those that did not choose.
    pub area_unseen: f64,
    /// Curve of the answers that did not choose: thresholds from high to low.
    pub curve: Vec<Point>,
}

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Answers at least this sure.
    pub threshold: f64,
    /// Their share.
    pub answered: f64,
    /// Their quality.
    pub quality: f64,
    /// Quality of all, where a larger model is asked for the others.
    pub kept: f64,
}

/// One answer: how sure it was by each measure, and how good.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Answer {
    sure: [f64; Measure::ALL.len()],
    quality: f64,
}

/// Finds out for the model in `dir`, beside the one in `against`, on `text`. `progress` hears of answers done and in all, of both models.
///
/// # Errors
/// When a model can't be opened, they don't share a tokenizer, or the text is too short for eight answers.
pub fn find_deferral<R: Runtime>(
    runtime: &R,
    dir: &Path,
    against: &Path,
    text: &str,
    options: &DeferralOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Deferral> {
    if !(0.0..=1.0).contains(&options.keep) {
        return Err(Error::Invalid(format!("--keep {}: want 0 to 1", options.keep)));
    }
    let mut model = Opened::<R::Matrix>::open(dir)?;
    if let Some(activations) = options.activations {
        model.set_activations(activations);
    }
    let tokenizer = model.tokenizer()?;
    let text = Text::encode(&tokenizer, text)?;
    let longest = model.decoder.config.max_position_embeddings;
    let answer = ANSWER.min(longest / 2);
    let prompts = prompts(text.ids(), PROMPT.min(longest - answer), answer, options.prompts)?;
    let kv = options.kv.unwrap_or(runtime.exact_kv());
    let stops = model.decoder.config.eos_token_ids.clone();
    let all = 2 * prompts.len();
    let mut written = Vec::with_capacity(prompts.len());
    {
        let mut sequence = runtime.sequence(&model.decoder, prompts[0].len() + answer, kv)?;
        for (done, prompt) in prompts.iter().enumerate() {
            progress(done, all);
            written.push(write(&mut *sequence, prompt, answer, &stops)?);
        }
    }
    let identity = model_identity(&model)?;
    drop(model);
    let reference = open_reference::<R>(against, dir, &tokenizer)?;
    let mut sequence = runtime.sequence(&reference.decoder, prompts[0].len() + answer, runtime.exact_kv())?;
    let mut answers = Vec::with_capacity(prompts.len());
    for (done, (prompt, (ids, seen))) in prompts.iter().zip(&written).enumerate() {
        progress(prompts.len() + done, all);
        let Some(sure) = seen.all() else { continue };
        answers.push(Answer { sure, quality: agreement(&mut *sequence, prompt, ids)? });
    }
    if answers.len() < FEWEST {
        let found = answers.len();
        return Err(Error::Invalid(format!("only {found} answers were written; want at least {FEWEST}")));
    }
    Ok(conclude(identity, &answers, options.keep, answer))
}

fn open_reference<R: Runtime>(
    against: &Path,
    dir: &Path,
    tokenizer: &Tokenizer,
) -> Result<Opened<R::Matrix>> {
    let reference = Opened::<R::Matrix>::open(against)?;
    if same_tokens(tokenizer, &reference.tokenizer()?)? {
        return Ok(reference);
    }
    Err(Error::Invalid(format!(
        "{} and {} have different tokenizers; agreement is that of tokens",
        dir.display(),
        against.display()
    )))
}

/// Parts of `ids`, evenly spread.
fn prompts(ids: &[u32], prompt: usize, answer: usize, most: usize) -> Result<Vec<&[u32]>> {
    let room = ids.len() / (prompt + answer).max(1);
    if room < FEWEST {
        return Err(Error::Invalid(format!(
            "the text has {} tokens, room for {room} answers; want {FEWEST} of {} tokens",
            ids.len(),
            prompt + answer
        )));
    }
    let count = room.min(most.max(FEWEST));
    let part = |at: usize| {
        let first = at * room / count * (prompt + answer);
        &ids[first..first + prompt]
    };
    Ok((0..count).map(part).collect())
}

/// The likeliest continuation, with how sure the model was of it, the token that ended it among them.
fn write(
    sequence: &mut dyn Sequence,
    prompt: &[u32],
    most: usize,
    stops: &[u32],
) -> Result<(Vec<u32>, Certainty)> {
    let mut seen = Certainty::default();
    let mut ids = Vec::with_capacity(most);
    sequence.reset();
    let writing = Writing { most, stops: &[], sampling: Sampling::greedy(), repetition: None, before: &[] };
    let mut each = |id| {
        ids.push(id);
        if stops.contains(&id) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    writing.write(sequence, prompt, Some(&mut |logits| seen.see(logits)), &mut each)?;
    Ok((ids, seen))
}

/// The share of `answer` that is the likeliest token after what stands before it.
fn agreement(sequence: &mut dyn Sequence, prompt: &[u32], answer: &[u32]) -> Result<f64> {
    sequence.reset();
    let whole = [prompt, &answer[..answer.len() - 1]].concat();
    let hidden = sequence.hidden(&whole)?;
    let (vocab, at_once) = (sequence.vocab(), sequence.logit_rows());
    let mut same = 0;
    for (part, ids) in answer.chunks(at_once).enumerate() {
        let logits = sequence.logits(&hidden, prompt.len() - 1 + part * at_once, ids.len())?;
        same += logits.chunks_exact(vocab).zip(ids).filter(|(row, id)| top1(row) == **id as usize).count();
    }
    Ok(same as f64 / answer.len() as f64)
}

/// Chooses by every other answer, and says what the choice is worth on the rest.
fn conclude(model: String, answers: &[Answer], keep: f64, tokens: usize) -> Deferral {
    let half = |rest: usize| -> Vec<Answer> { answers.iter().skip(rest).step_by(2).copied().collect() };
    let (choosing, unseen) = (half(0), half(1));
    let mut measures: Vec<Measured> = Measure::ALL
        .into_iter()
        .enumerate()
        .map(|(at, measure)| Measured {
            measure,
            area: area(&sorted(&choosing, at)),
            area_unseen: area(&sorted(&unseen, at)),
            curve: curve(&sorted(&unseen, at)),
        })
        .collect();
    measures.sort_by(|a, b| b.area.total_cmp(&a.area));
    let best = measures[0].measure;
    let at = Measure::ALL.iter().position(|measure| *measure == best).unwrap_or(0);
    let threshold = threshold(&sorted(&choosing, at), keep);
    let is_sure = |answer: &&Answer| threshold.is_none_or(|threshold| answer.sure[at] >= threshold);
    let kept = unseen.iter().map(|answer| if is_sure(&answer) { answer.quality } else { 1.0 });
    let kept = Mean::of(kept.collect::<Vec<_>>().into_iter());
    Deferral {
        model,
        measure: best,
        threshold,
        keep,
        answered: unseen.iter().filter(is_sure).count() as f64 / unseen.len() as f64,
        kept: kept.mean,
        kept_se: kept.se,
        quality: mean_quality(&unseen),
        answers: answers.len(),
        tokens,
        measures,
    }
}

/// Certainty by one measure and quality, the surest first; equally sure ones have their mean quality, since nothing tells them apart.
fn sorted(answers: &[Answer], measure: usize) -> Vec<(f64, f64)> {
    let mut all: Vec<(f64, f64)> = answers.iter().map(|a| (a.sure[measure], a.quality)).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    for equal in all.chunk_by_mut(|a, b| a.0 == b.0) {
        let mean = equal.iter().map(|(_, quality)| quality).sum::<f64>() / equal.len() as f64;
        equal.iter_mut().for_each(|(_, quality)| *quality = mean);
    }
    all
}

fn mean_quality(answers: &[Answer]) -> f64 {
    answers.iter().map(|answer| answer.quality).sum::<f64>() / answers.len() as f64
}

/// Mean, over all shares of the surest answers, of their quality.
fn area(sorted: &[(f64, f64)]) -> f64 {
    let mut sum = 0.0;
    let running = sorted.iter().enumerate().map(|(at, (_, quality))| {
        sum += quality;
        sum / (at + 1) as f64
    });
    running.sum::<f64>() / sorted.len() as f64
}

/// The lowest certainty down to which `keep` is kept where a larger model answers all below it; none where it is kept without asking.
/// Infinite where the surest answer alone would spoil it.
fn threshold(sorted: &[(f64, f64)], keep: f64) -> Option<f64> {
    let mut lost = 0.0;
    let mut last = f64::INFINITY;
    for (at, (sure, quality)) in sorted.iter().enumerate() {
        lost += 1.0 - quality;
        let ties_on = sorted.get(at + 1).is_some_and(|next| next.0 == *sure);
        if !ties_on && 1.0 - lost / sorted.len() as f64 >= keep {
            last = if at + 1 == sorted.len() { f64::NEG_INFINITY } else { *sure };
        }
    }
    // JSON has no infinities: the greatest number will do.
    (last > f64::NEG_INFINITY).then_some(last.min(f64::MAX))
}

fn curve(sorted: &[(f64, f64)]) -> Vec<Point> {
    let all = sorted.len() as f64;
    let point = |at: usize| {
        let count = (sorted.len() * at).div_ceil(POINTS);
        let sum: f64 = sorted[..count].iter().map(|(_, quality)| quality).sum();
        Point {
            threshold: sorted[count - 1].0,
            answered: count as f64 / all,
            quality: sum / count as f64,
            kept: (sum + all - count as f64) / all,
        }
    };
    (1..=POINTS).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(of: &[(f64, f64)]) -> Vec<Answer> {
        of.iter()
            .map(|(sure, quality)| Answer { sure: [*sure, 0.5, -*sure, 0.5, 0.5, 0.5], quality: *quality })
            .collect()
    }

    #[test]
    fn a_threshold_keeps_what_is_to_be_kept_and_no_lower_one_does() {
        let sorted = [(0.9, 1.0), (0.7, 0.8), (0.5, 0.6), (0.3, 0.2)];
        // Lost if answered down to each: 0, 0.05, 0.15, 0.35.
        for (keep, want) in
            [(1.0, Some(0.9)), (0.95, Some(0.7)), (0.9, Some(0.7)), (0.85, Some(0.5)), (0.65, None)]
        {
            assert_eq!(threshold(&sorted, keep - 1e-12), want, "{keep}");
        }
        assert_eq!(threshold(&[(0.9, 0.5), (0.8, 1.0)], 0.9), Some(f64::MAX), "nothing may be answered");
        assert_eq!(threshold(&[(0.5, 1.0), (0.5, 0.0)], 0.9), Some(f64::MAX), "equal ones go together");
    }

    #[test]
    fn the_measure_that_tells_most_is_chosen_and_judged_on_other_answers() {
        // The surer the better by the first measure; by the third the other way round.
        let of: Vec<(f64, f64)> = (0..40).map(|i| (f64::from(i / 2), f64::from(i / 2) / 19.0)).collect();
        let found = conclude("model".into(), &answers(&of), 0.9, 32);
        assert_eq!(found.measure, Measure::MeanMargin);
        assert_eq!(found.measures.last().map(|m| m.measure), Some(Measure::MeanLog));
        let [best, .., worst] = &found.measures[..] else { panic!("measures") };
        assert!(best.area > found.quality + 0.2 && worst.area < found.quality - 0.2, "{found:?}");
        assert_eq!(best.area, best.area_unseen, "both halves are alike here");
        assert!(found.kept >= 0.9 && found.answered > 0.3 && found.answered < 0.9, "{found:?}");
        assert!((found.quality - 0.5).abs() < 1e-12);
        let last = best.curve.last().expect("a point");
        assert!((last.answered - 1.0).abs() < 1e-12 && (last.kept - 0.5).abs() < 1e-12, "{last:?}");
        assert!(best.curve.windows(2).all(|pair| pair[0].kept >= pair[1].kept - 1e-12));
        let json = serde_json::to_string(&found).expect("JSON");
        assert_eq!(serde_json::from_str::<Deferral>(&json).expect("itself"), found);
        let all = conclude("model".into(), &answers(&of), 0.1, 32);
        assert_eq!((all.threshold, all.answered), (None, 1.0));
    }

    #[test]
    fn parts_of_a_text_are_spread_over_it() {
        let ids: Vec<u32> = (0..1000).collect();
        let parts = prompts(&ids, 6, 4, 10).expect("room");
        assert_eq!(
            parts.iter().map(|part| part[0]).collect::<Vec<_>>(),
            (0..10).map(|at| at * 100).collect::<Vec<_>>()
        );
        assert!(parts.iter().all(|part| part.len() == 6));
        assert!(prompts(&ids[..70], 6, 4, 10).is_err());
    }
}

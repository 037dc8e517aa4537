//! Writing text: a prompt is read, tokens are chosen one by one until a stop token or enough of them.
//!
//! `stream.rs` makes text of them, `window.rs` goes on beyond any context, `past.rs` keeps a prompt that was read, `confidence.rs` says how
//! sure the model was. Knows no device and no terminal. Invariant: the same seed, model and runtime give the same tokens.

mod confidence;
mod past;
mod repetition;
mod sampler;
mod stream;
#[cfg(test)]
mod tests;
mod window;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

pub use confidence::{Certainty, Measure};
pub use past::{load_past, model_identity, save_past};
pub use repetition::Repetition;
pub use sampler::{Sampler, Sampling};
pub use stream::TextStream;
pub use window::{SINKS, Windowed, return_to};

use crate::sequence::{likeliest, top1};
use crate::{Error, Result, Sequence};

/// How a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a stop token, which is not among the tokens.
    Stop,
    /// With as many tokens as were asked for.
    Length,
    /// Whoever listened had enough.
    Told,
}

/// What was written, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub end: End,
    /// From the prompt to the first token.
    pub first: Duration,
    /// From there to the last.
    pub rest: Duration,
}

impl Generated {
    /// Tokens per second after the first; none if there are none.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let more = self.tokens.len().saturating_sub(1);
        (more > 0).then(|| more as f64 / self.rest.as_secs_f64())
    }
}

/// Reads `prompt` and writes up to `most` tokens; `each` hears of every token, and says whether to go on.
///
/// # Errors
/// When the prompt is empty, an id is outside the vocabulary, or prompt and tokens don't fit the context; when the
/// device fails.
pub fn generate(
    sequence: &mut dyn Sequence,
    prompt: &[u32],
    most: usize,
    stops: &[u32],
    sampling: &Sampling,
    each: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generated> {
    let writing = Writing { most, stops, sampling: *sampling, repetition: None, before: &[] };
    writing.write(sequence, prompt, None, each)
}

/// How a text is gone on with.
#[derive(Debug, Clone, Copy)]
pub struct Writing<'a> {
    /// Most tokens.
    pub most: usize,
    /// Tokens that end it.
    pub stops: &'a [u32],
    /// How they are chosen.
    pub sampling: Sampling,
    /// A penalty on what was just said.
    pub repetition: Option<Repetition>,
    /// What was read before the prompt; only the penalty asks.
    pub before: &'a [u32],
}

/// Hears of all logits before a token is chosen from them.
pub type Watch<'w> = &'w mut dyn FnMut(&[f32]);

impl Writing<'_> {
    /// Reads `prompt` and writes; `each` hears of every token, and says whether to go on, `watch` of the logits that it was chosen from,
    /// before any penalty. Where neither watch nor penalty wants all logits, the runtime gives only the likeliest.
    ///
    /// # Errors
    /// As [`generate`]; when a number of the sampling is outside its range.
    pub fn write(
        &self,
        sequence: &mut dyn Sequence,
        prompt: &[u32],
        watch: Option<Watch<'_>>,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let mut heard = Heard::new(self.stops, each);
        let penalty = self.repetition.filter(|repetition| !repetition.is_none());
        let wants_all = watch.is_some() || penalty.is_some();
        if self.sampling.is_greedy() && !wants_all {
            sequence.greedy(prompt, self.most, &mut |id| heard.take(id))?;
            return Ok(heard.generated);
        }
        let mut sampler = Sampler::new(&self.sampling)?;
        let mut watch = watch;
        let vocab = sequence.vocab();
        let considered = match self.sampling {
            sampling if sampling.is_greedy() => 1,
            Sampling { top_k: 0, .. } => vocab,
            Sampling { top_k, .. } => top_k,
        };
        let mut ids = prompt.to_vec();
        let mut said = if penalty.is_some() { [self.before, prompt].concat() } else { Vec::new() };
        for _ in 0..self.most {
            let candidates = if wants_all || considered == vocab {
                let logits = sequence.prefill(&ids)?;
                if let Some(watch) = &mut watch {
                    watch(logits);
                }
                match penalty {
                    Some(penalty) => {
                        let mut logits = logits.to_vec();
                        penalty.apply(&said, &mut logits);
                        candidates(&logits, considered)?
                    }
                    None => candidates(logits, considered)?,
                }
            } else {
                sequence.top(&ids, considered)?
            };
            let next = sampler.choose(candidates);
            if heard.take(next).is_break() {
                break;
            }
            ids = vec![next];
            if penalty.is_some() {
                said.push(next);
            }
        }
        Ok(heard.generated)
    }
}

/// The `k` likeliest ids with their logits.
fn candidates(logits: &[f32], k: usize) -> Result<Vec<(u32, f32)>> {
    match k {
        1 => Ok(vec![(top1(logits) as u32, logits[top1(logits)])]),
        k if k <= logits.len() => Ok(likeliest(logits, k)),
        _ => Err(Error::Invalid(format!("the {k} likeliest tokens: want 1 to {}", logits.len()))),
    }
}

/// What was written so far, and who hears of it.
struct Heard<'a> {
    generated: Generated,
    began: Instant,
    stops: &'a [u32],
    each: &'a mut dyn FnMut(u32) -> ControlFlow<()>,
}

impl<'a> Heard<'a> {
    fn new(stops: &'a [u32], each: &'a mut dyn FnMut(u32) -> ControlFlow<()>) -> Self {
        let generated =
            Generated { tokens: Vec::new(), end: End::Length, first: Duration::ZERO, rest: Duration::ZERO };
        Self { generated, began: Instant::now(), stops, each }
    }

    fn take(&mut self, id: u32) -> ControlFlow<()> {
        let (now, generated) = (self.began.elapsed(), &mut self.generated);
        if generated.tokens.is_empty() {
            generated.first = now;
        }
        generated.rest = now - generated.first;
        if self.stops.contains(&id) {
            generated.end = End::Stop;
            return ControlFlow::Break(());
        }
        generated.tokens.push(id);
        if (self.each)(id).is_break() {
            generated.end = End::Told;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

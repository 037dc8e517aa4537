//! Writing text: a prompt is read, tokens are chosen one by one until a stop token or enough of them.
//!
//! Knows no device, no tokenizer and no terminal. Invariant: the same seed, model and runtime give the same tokens.

mod sampler;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

pub use sampler::{Sampler, Sampling};

use crate::sequence::likeliest;
use crate::{Result, Sequence};

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
    let began = Instant::now();
    let mut generated =
        Generated { tokens: Vec::new(), end: End::Length, first: Duration::ZERO, rest: Duration::ZERO };
    let mut take = |id: u32| {
        let now = began.elapsed();
        if generated.tokens.is_empty() {
            generated.first = now;
        }
        generated.rest = now - generated.first;
        if stops.contains(&id) {
            generated.end = End::Stop;
            return ControlFlow::Break(());
        }
        generated.tokens.push(id);
        if each(id).is_break() {
            generated.end = End::Told;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    if sampling.is_greedy() {
        sequence.greedy(prompt, most, &mut take)?;
        return Ok(generated);
    }
    let mut sampler = Sampler::new(sampling)?;
    let vocab = sequence.vocab();
    let mut ids = prompt.to_vec();
    for _ in 0..most {
        let candidates = match sampling.top_k {
            0 => likeliest(sequence.prefill(&ids)?, vocab),
            k => sequence.top(&ids, k)?,
        };
        let next = sampler.choose(candidates);
        if take(next).is_break() {
            break;
        }
        ids = vec![next];
    }
    Ok(generated)
}

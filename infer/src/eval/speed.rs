//! How fast a model reads and writes, on real text, with warm caches.
//!
//! Knows no scores. Wall-clock numbers: they belong to the machine and to what else ran on it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::energy::Meter;
use crate::{Error, Result, Sequence};

/// Longest prompt, in tokens.
const PROMPT: usize = 512;
/// Most tokens decoded after it.
const DECODED: usize = 64;
/// Runs after the warm-up; the middle one counts.
const RUNS: usize = 3;
/// No run is begun after this much time.
const ENOUGH: Duration = Duration::from_secs(60);

/// Throughput and latency of one sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens decoded after it.
    pub decoded_tokens: usize,
    /// Prompt tokens read per second.
    pub prefill_tps: f64,
    /// Tokens written per second after the first, each chosen greedily and read again.
    pub decode_tps: f64,
    /// From an empty cache and the whole prompt to the first token, in milliseconds.
    pub ttft_ms: f64,
    /// Joules that a token of the prompt took, where they are measured.
    pub prefill_joules_per_token: Option<f64>,
    /// Joules that a token took to be written.
    pub decode_joules_per_token: Option<f64>,
}

/// Measures a sequence, which `open` gives for so many tokens, that reads the beginning of `ids` (as much as `context`
/// leaves room for, at most 512 tokens) and then writes up to 64: once to warm up, then up to three times, of which the
/// median counts. Energy, which `meter` measures if there is one, is the mean over all of them but the warm-up.
///
/// # Errors
/// When `ids` is empty or holds an id outside the vocabulary, or `context` has no room for a token more.
pub fn measure_speed<'m>(
    ids: &[u32],
    context: usize,
    meter: Option<&Meter>,
    open: impl FnOnce(usize) -> Result<Box<dyn Sequence + 'm>>,
) -> Result<Speed> {
    let decoded = DECODED.min(context / 2);
    let prompt = &ids[..ids.len().min(PROMPT).min(context - decoded)];
    if prompt.is_empty() || decoded == 0 {
        return Err(Error::Invalid(format!(
            "speed can't be measured on {} token(s) of text and a context of {context}; want at least 1 and 2",
            ids.len()
        )));
    }
    let mut sequence = open(prompt.len() + decoded)?;
    let began = Instant::now();
    run(&mut *sequence, prompt, decoded, None)?;
    let mut runs = vec![run(&mut *sequence, prompt, decoded, meter)?];
    while runs.len() < RUNS && began.elapsed() < ENOUGH {
        runs.push(run(&mut *sequence, prompt, decoded, meter)?);
    }
    let joules = |of: fn(&Run) -> Option<f64>, tokens: usize| {
        let sum: Option<f64> = runs.iter().map(of).sum();
        sum.map(|sum| sum / (runs.len() * tokens) as f64)
    };
    let first_secs = median(runs.iter().map(|run| run.first.as_secs_f64()).collect());
    let rest_secs = median(runs.iter().map(|run| run.rest.as_secs_f64()).collect());
    Ok(Speed {
        prompt_tokens: prompt.len(),
        decoded_tokens: decoded,
        prefill_tps: prompt.len() as f64 / first_secs,
        decode_tps: decoded as f64 / rest_secs,
        ttft_ms: first_secs * 1e3,
        prefill_joules_per_token: joules(|run| run.first_joules, prompt.len()),
        decode_joules_per_token: joules(|run| run.rest_joules, decoded),
    })
}

/// Time and energy to the first token, and for the `decoded` steps after it.
struct Run {
    first: Duration,
    rest: Duration,
    first_joules: Option<f64>,
    rest_joules: Option<f64>,
}

fn run(sequence: &mut dyn Sequence, prompt: &[u32], decoded: usize, meter: Option<&Meter>) -> Result<Run> {
    let joules = || meter.and_then(Meter::joules);
    let (before, mut between) = (joules(), None);
    let began = Instant::now();
    sequence.reset();
    let (mut first, mut all) = (Duration::ZERO, Duration::ZERO);
    sequence.greedy(prompt, decoded + 1, &mut |_| {
        all = began.elapsed();
        if first.is_zero() {
            (first, between) = (all, joules());
        }
        ControlFlow::Continue(())
    })?;
    let used = |since: Option<f64>, until: Option<f64>| Some((until? - since?).max(0.0));
    let (first_joules, rest_joules) = (used(before, between), used(between, joules()));
    Ok(Run { first, rest: all - first, first_joules, rest_joules })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

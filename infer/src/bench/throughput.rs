//! How many tokens a model reads (`pp`) or writes (`tg`) in a second, as llama-bench defines it: random token ids, no
//! tokenizer, no sampling; what was in the cache before (`depth`) is not timed.
//!
//! Knows no memory bandwidth. Invariant: every repetition does the same work on the same ids, after a warm-up.

use std::fmt;
use std::num::NonZero;
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::cpu::{KvType, Model, RunOptions, Session};
use crate::energy::Meter;
use crate::eval::Mean;
use crate::{Error, Result};

/// Tokens written to warm up.
pub(super) const WARM_UP: usize = 8;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// So many tokens are read at once; logits of the last one.
    Prompt(usize),
    /// So many tokens are read one by one; logits of each.
    Generation(usize),
}

/// One test: some work on top of `depth` tokens that were read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    /// What is timed.
    pub work: Work,
    /// Tokens in the KV cache when the clock starts.
    pub depth: usize,
}

impl fmt::Display for Test {
    /// As llama-bench spells it: `pp512`, `tg128 @ d1024`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.work {
            Work::Prompt(tokens) => write!(f, "pp{tokens}")?,
            Work::Generation(tokens) => write!(f, "tg{tokens}")?,
        }
        if self.depth > 0 { write!(f, " @ d{}", self.depth) } else { Ok(()) }
    }
}

impl Test {
    /// Tokens that are timed.
    pub fn tokens(&self) -> usize {
        match self.work {
            Work::Prompt(tokens) | Work::Generation(tokens) => tokens,
        }
    }

    /// Positions that it takes.
    pub fn positions(&self) -> usize {
        self.depth.saturating_add(self.tokens())
    }

    /// Refuses a test that is longer than a model's context, or times nothing.
    ///
    /// # Errors
    /// Names the test, what it needs and `max_position_embeddings`.
    pub fn check(&self, max_position_embeddings: usize) -> Result<()> {
        if self.tokens() == 0 {
            return Err(Error::Invalid(format!("{self}: want at least one token to time")));
        }
        if self.positions() > max_position_embeddings {
            return Err(Error::Invalid(format!(
                "{self} takes {} tokens of context, but the model was made for {max_position_embeddings} \
                 (max_position_embeddings in its config.json); choose a shorter test or a smaller depth",
                self.positions()
            )));
        }
        Ok(())
    }
}

/// How a test is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// Threads of the executor.
    pub threads: NonZero<usize>,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Timed repetitions.
    pub repetitions: NonZero<usize>,
    /// Seed of the token ids.
    pub seed: u64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// The test.
    pub test: Test,
    /// Time of each repetition.
    pub times: Vec<Duration>,
    /// Joules of all repetitions together, where they are measured.
    pub joules: Option<f64>,
    /// Bytes of weights and KV cache that a generated token reads, at the middle of the generation; none for a prompt,
    /// whose tokens share what is read.
    pub bytes_per_token: Option<f64>,
}

impl Samples {
    /// Tokens per second of each repetition.
    pub fn rates(&self) -> Vec<f64> {
        self.times.iter().map(|time| self.test.tokens() as f64 / time.as_secs_f64()).collect()
    }

    /// Mean power while the clock ran, in watts, and joules of a token.
    pub fn energy(&self) -> Option<(f64, f64)> {
        let seconds = self.times.iter().sum::<Duration>().as_secs_f64();
        let tokens = self.times.len() * self.test.tokens();
        self.joules.map(|joules| (joules / seconds, joules / tokens as f64))
    }

    /// Mean of the rates.
    pub fn mean_rate(&self) -> f64 {
        Mean::of(self.rates().into_iter()).mean
    }
}

/// Runs `test` on `model`: a warm-up, then the repetitions, whose energy `meter` measures if there is one.
///
/// # Errors
/// When the test doesn't fit the model's context, or the system gives no threads.
pub fn measure(model: &Model, test: Test, setup: &Setup, meter: Option<&Meter>) -> Result<Samples> {
    let (mut session, ids) = ready(model, test, setup)?;
    let (before, timed) = ids.split_at(test.depth);
    let warm_up = match test.work {
        Work::Prompt(_) => timed,
        Work::Generation(tokens) => &timed[..tokens.min(WARM_UP)],
    };
    run(&mut session, test.work, before, warm_up, None)?;
    let runs = (0..setup.repetitions.get()).map(|_| run(&mut session, test.work, before, timed, meter));
    let (times, joules): (Vec<_>, Vec<_>) = runs.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let joules = joules.into_iter().sum();
    let bytes_per_token = match test.work {
        Work::Prompt(_) => None,
        Work::Generation(tokens) => {
            let [first, last] = [0, tokens - 1].map(|after| session.kv_bytes(test.depth + after) as f64);
            Some(session.weight_bytes() as f64 + (first + last) / 2.0)
        }
    };
    Ok(Samples { test, times, joules, bytes_per_token })
}

/// A session with room for `test`, and the ids of all its tokens.
pub(super) fn ready<'m>(model: &'m Model, test: Test, setup: &Setup) -> Result<(Session<'m>, Vec<u32>)> {
    let config = &model.decoder.config;
    test.check(config.max_position_embeddings)?;
    let options = RunOptions { context: test.positions(), kv: setup.kv, threads: Some(setup.threads.get()) };
    let mut rng = ChaCha8Rng::seed_from_u64(setup.seed);
    let ids = (0..test.positions()).map(|_| rng.random_range(0..config.vocab_size as u32)).collect();
    Ok((Session::new(&model.decoder, &options)?, ids))
}

/// Time that `timed` takes after `before`, and joules.
fn run(
    session: &mut Session<'_>,
    work: Work,
    before: &[u32],
    timed: &[u32],
    meter: Option<&Meter>,
) -> Result<(Duration, Option<f64>)> {
    session.reset();
    if !before.is_empty() {
        session.prefill(before)?;
    }
    let used = meter.and_then(Meter::joules);
    let began = Instant::now();
    match work {
        Work::Prompt(_) => {
            session.prefill(timed)?;
        }
        Work::Generation(_) => {
            for id in timed {
                session.step(*id)?;
            }
        }
    }
    let took = began.elapsed();
    Ok((took, meter.and_then(|meter| meter.since(used))))
}

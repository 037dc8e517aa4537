//! Tokens become batches: windows in a shuffled order that is a pure function of seed and step.
//!
//! Knows no model. Nothing is shuffled in memory and nothing is remembered from batch to batch, so that a run goes
//! on at any step as if it had never stopped.

use std::ops::Range;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::packed::{Packed, Packing};
use super::permutation::Permutation;
use super::token_file::Tokens;
use super::tokenize::hex;
use crate::{Error, Result};

/// Where a run is in its data. What a checkpoint keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Seed of the order.
    pub seed: u64,
    /// The next step whose batch is to be taken.
    pub step: u64,
    /// Key of the token file, in hex.
    pub data: String,
}

/// Rows of `context` tokens and, for each token, the one that follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `[rows, context]`.
    pub inputs: Vec<u32>,
    /// `[rows, context]`: the inputs shifted by one.
    pub targets: Vec<u32>,
    /// Number of windows.
    pub rows: usize,
    /// Tokens of a window that are inputs.
    pub context: usize,
    /// Numbers of the windows where they are cut alike in every epoch ([`Batches::fixed`]); none where they are not.
    pub windows: Vec<u64>,
    /// Where windows hold documents apart; none where they are cut from one text.
    pub packed: Option<Packed>,
}

impl Batch {
    /// Targets that are learned.
    pub fn learned(&self) -> usize {
        self.packed.as_ref().map_or(self.targets.len(), |packed| packed.learned.len())
    }
}

/// The endless sequence of batches over a run of tokens.
///
/// A window is `context + 1` tokens; the last token of one is the first of the next, so that every token is a
/// target once. An epoch visits each of its windows once, in an order of its own, and begins its windows at an
/// offset of its own, so that windows come back cut elsewhere (windows of whole documents are what they are). For that an epoch has one window fewer than would fit:
/// below two windows at the two ends wait for another epoch. A batch that reaches over the end of an epoch takes its other
/// rows from the next.
#[derive(Debug, Clone)]
pub struct Batches {
    tokens: Tokens,
    context: usize,
    batch: usize,
    seed: u64,
    windows: u64,
    /// Where windows are cut alike in every epoch: which one has which number.
    numbers: Option<Permutation>,
}

impl Batches {
    /// Batches of `batch` windows of `context` tokens each, in the order of `seed`.
    ///
    /// # Errors
    /// A batch or a context of 0, and tokens that don't fill one window.
    pub fn new(tokens: Tokens, context: usize, batch: usize, seed: u64) -> Result<Self> {
        if context == 0 || batch == 0 {
            return Err(Error::Config(format!(
                "context and batch: want at least 1 each, found {context} and {batch}"
            )));
        }
        if tokens.len() <= context {
            return Err(Error::Data(format!(
                "{} tokens to train on, but one window takes {} (a context of {context} and the token after it); \
                 add data or lower the context",
                tokens.len(),
                context + 1
            )));
        }
        // One window fewer than would fit leaves room for every offset; windows of documents have none.
        let windows = match tokens.is_marked() {
            true => (tokens.len() / (context + 1)) as u64,
            false => ((tokens.len() - context) / context).max(1) as u64,
        };
        Ok(Self { tokens, context, batch, seed, windows, numbers: None })
    }

    /// The same with windows that are cut alike in every epoch, so that what is known of one stays true. They are numbered in a
    /// random order that depends on their count alone; an epoch visits the first `samples`, or all if there are fewer, in an order
    /// of its own.
    pub fn fixed(self, samples: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let numbers = Permutation::new(self.windows, std::array::from_fn(|_| rng.next_u64()));
        Self { windows: self.windows.min(samples.max(1)), numbers: Some(numbers), ..self }
    }

    /// The windows `numbers` of [`Self::fixed`] batches; none of them where windows have no numbers.
    pub fn numbered(&self, numbers: &[u64]) -> Batch {
        let starts = self
            .numbers
            .iter()
            .flat_map(|places| numbers.iter().map(|number| places.at(*number) as usize * self.stride()));
        Batch { windows: numbers.to_vec(), ..self.batch(starts) }
    }

    /// Windows in an epoch.
    pub fn windows_per_epoch(&self) -> u64 {
        self.windows
    }

    /// Steps in an epoch, the last of which may reach into the next epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.windows.div_ceil(self.batch as u64)
    }

    /// The batch of `step`, counted from 0.
    pub fn at(&self, step: u64) -> Batch {
        self.rows(step, 0..self.batch)
    }

    /// Some rows of the batch of `step`: what one of several processes, or one of several accumulated parts, takes.
    ///
    /// # Panics
    /// When `rows` reaches beyond the batch.
    pub fn rows(&self, step: u64, rows: Range<usize>) -> Batch {
        assert!(rows.end <= self.batch, "rows {rows:?} of a batch of {}", self.batch);
        let (mut starts, mut windows) = (Vec::new(), Vec::new());
        let first = step * self.batch as u64;
        let mut epoch = None;
        for row in rows {
            let sample = first + row as u64;
            let number = sample / self.windows;
            let order = match epoch {
                Some((known, order)) if known == number => order,
                _ => self.epoch(number),
            };
            epoch = Some((number, order));
            let place = order.permutation.at(sample % self.windows);
            starts.push(match &self.numbers {
                Some(numbers) => {
                    windows.push(place);
                    numbers.at(place) as usize * self.stride()
                }
                None => order.offset + place as usize * self.stride(),
            });
        }
        Batch { windows, ..self.batch(starts.into_iter()) }
    }

    /// Tokens from one window to the next.
    fn stride(&self) -> usize {
        // The last token of a window of a text is the first of the next; windows of documents have none in common.
        if self.tokens.is_marked() { self.context + 1 } else { self.context }
    }

    /// The windows that begin at `starts`.
    fn batch(&self, starts: impl Iterator<Item = usize>) -> Batch {
        let context = self.context;
        let (mut inputs, mut targets, mut rows) = (Vec::new(), Vec::new(), 0);
        let mut packing = self.tokens.is_marked().then(Packing::default);
        for start in starts {
            let mut window = self.tokens.slice(start..start + context + 1);
            if let Some(packing) = &mut packing {
                packing.add(&mut window);
            }
            inputs.extend_from_slice(&window[..context]);
            targets.extend_from_slice(&window[1..]);
            rows += 1;
        }
        let packed = packing.map(|packing| packing.finish(context));
        Batch { inputs, targets, rows, context, windows: Vec::new(), packed }
    }

    /// Where a run stands whose next batch is that of `step`.
    pub fn cursor(&self, step: u64) -> Cursor {
        Cursor { seed: self.seed, step, data: hex(&self.tokens.header().key) }
    }

    /// The step at which a run with this `cursor` goes on.
    ///
    /// # Errors
    /// A cursor of another seed or of other data: the run would not see what it would have seen.
    pub fn resume(&self, cursor: &Cursor) -> Result<u64> {
        let here = self.cursor(cursor.step);
        if cursor.data != here.data {
            return Err(Error::Data(format!(
                "the checkpoint was made with the tokens {}, but the data, tokenizer or their settings now give {}; \
                 restore them, or begin a new run",
                short(&cursor.data),
                short(&here.data)
            )));
        }
        if cursor.seed != here.seed {
            return Err(Error::Config(format!(
                "seed: the checkpoint was made with {}, found {}; restore it, or begin a new run",
                cursor.seed, here.seed
            )));
        }
        Ok(cursor.step)
    }

    fn epoch(&self, number: u64) -> Epoch {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(number);
        let permutation = Permutation::new(self.windows, std::array::from_fn(|_| rng.next_u64()));
        if self.tokens.is_marked() {
            return Epoch { permutation, offset: 0 };
        }
        let offsets = self.tokens.len() as u64 - self.windows * self.context as u64;
        // The bias of the remainder is below offsets / 2^64.
        Epoch { permutation, offset: (rng.next_u64() % offsets) as usize }
    }
}

/// The order of one epoch.
#[derive(Clone, Copy)]
struct Epoch {
    permutation: Permutation,
    /// First token of the first window.
    offset: usize,
}

/// The first digits of a key, enough to tell two apart.
fn short(key: &str) -> &str {
    key.get(..12).unwrap_or(key)
}

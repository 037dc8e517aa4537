//! How likely a model finds the continuations of an item.
//!
//! What the contexts of an item begin with in common is read once. Knows no text. Invariant: a continuation's log-likelihood is the same
//! bits whatever other choices there are, since logits don't depend on how a text is cut into calls.

use std::collections::BTreeMap;

use super::Request;
use crate::eval::score::log_normalizer;
use crate::sequence::top1;
use crate::{Error, Result, Sequence};

/// What a model says of a continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// ln of its probability after the context.
    pub log: f64,
    /// Whether each of its tokens is the likeliest at its place.
    pub greedy: bool,
}

/// Judges the continuations of one item.
///
/// # Errors
/// When an id is outside the vocabulary, a request doesn't fit the context, or predictions are not finite.
pub fn judge(model: &mut dyn Sequence, requests: &[Request]) -> Result<Vec<Likelihood>> {
    let inputs: Vec<&[u32]> = requests.iter().map(|request| &request.ids[..request.ids.len() - 1]).collect();
    let vocab = model.vocab();
    if let Some(id) = requests.iter().flat_map(|request| &request.ids).find(|id| **id as usize >= vocab) {
        return Err(Error::Invalid(format!(
            "token id {id} is outside the model's vocabulary of {vocab}; does the tokenizer belong to the model?"
        )));
    }
    let mut read = Reading::new(model, &inputs)?;
    let mut rows = Vec::with_capacity(requests.len());
    for (request, input) in requests.iter().zip(&inputs) {
        rows.push(read.rows(input, request.continuation)?);
    }
    let Reading { gathered, .. } = read;
    let chosen = choose(model, &gathered, requests, &rows)?;
    if chosen.iter().all(|likelihood| likelihood.log.is_finite()) {
        return Ok(chosen);
    }
    Err(Error::Invalid("the predictions are not finite; are the weights damaged?".into()))
}

/// Hidden states from which continuations are predicted, gathered from what was read.
struct Reading<'s> {
    model: &'s mut dyn Sequence,
    common: &'s [u32],
    /// `[common, hidden]`.
    shared: Vec<f32>,
    width: usize,
    /// `[rows, hidden]`: each row that somebody asked for, once.
    gathered: Vec<f32>,
    /// Where rows of `shared` stand in it.
    places: BTreeMap<usize, usize>,
}

impl<'s> Reading<'s> {
    fn new(model: &'s mut dyn Sequence, inputs: &[&'s [u32]]) -> Result<Self> {
        let first = inputs.first().copied().unwrap_or_default();
        let same = |other: &&[u32]| first.iter().zip(*other).take_while(|(a, b)| a == b).count();
        let common = &first[..inputs.iter().map(same).min().unwrap_or(0)];
        model.reset();
        let shared = if common.is_empty() { Vec::new() } else { model.hidden(common)? };
        let width = shared.len() / common.len().max(1);
        Ok(Self { model, common, shared, width, gathered: Vec::new(), places: BTreeMap::new() })
    }

    /// Reads `input`, and gives the places of its last `count` hidden states among those gathered.
    fn rows(&mut self, input: &[u32], count: usize) -> Result<Vec<usize>> {
        let (first, shared) = (input.len() - count, self.common.len());
        let mut rows: Vec<usize> = (first..shared).map(|row| self.shared_row(row)).collect();
        let rest = &input[shared..];
        if rest.is_empty() {
            return Ok(rows);
        }
        if !self.model.rewind(shared) {
            self.model.reset();
            self.model.hidden(self.common)?;
        }
        let hidden = self.model.hidden(rest)?;
        self.width = hidden.len() / rest.len();
        let from = first.saturating_sub(shared);
        let begin = self.gathered.len() / self.width;
        self.gathered.extend_from_slice(&hidden[from * self.width..]);
        rows.extend(begin..begin + rest.len() - from);
        Ok(rows)
    }

    fn shared_row(&mut self, row: usize) -> usize {
        let (width, gathered) = (self.width, &mut self.gathered);
        *self.places.entry(row).or_insert_with(|| {
            gathered.extend_from_slice(&self.shared[row * width..(row + 1) * width]);
            gathered.len() / width - 1
        })
    }
}

/// Sums over the tokens of each continuation; `rows` says which hidden states predict them.
fn choose(
    model: &mut dyn Sequence,
    hidden: &[f32],
    requests: &[Request],
    rows: &[Vec<usize>],
) -> Result<Vec<Likelihood>> {
    let (vocab, at_once) = (model.vocab(), model.logit_rows());
    // Whose tokens a row predicts: request, place in its continuation, id.
    let mut asked: BTreeMap<usize, Vec<(usize, usize, u32)>> = BTreeMap::new();
    for (which, (request, rows)) in requests.iter().zip(rows).enumerate() {
        let continuation = &request.ids[request.ids.len() - request.continuation..];
        for (at, (row, id)) in rows.iter().zip(continuation).enumerate() {
            asked.entry(*row).or_default().push((which, at, *id));
        }
    }
    let mut tokens: Vec<Vec<Likelihood>> = requests.iter().map(Request::nothing_yet).collect();
    let count = asked.len();
    for first in (0..count).step_by(at_once) {
        let part = at_once.min(count - first);
        let logits = model.logits(hidden, first, part)?;
        for (row, logits) in (first..).zip(logits.chunks_exact(vocab)) {
            let (normalizer, likeliest) = (log_normalizer(logits), top1(logits));
            for (which, at, id) in asked.get(&row).into_iter().flatten() {
                let log = f64::from(logits[*id as usize]) - normalizer;
                tokens[*which][*at] = Likelihood { log, greedy: likeliest == *id as usize };
            }
        }
    }
    let sum = |tokens: Vec<Likelihood>| Likelihood {
        log: tokens.iter().map(|token| token.log).sum(),
        greedy: tokens.iter().all(|token| token.greedy),
    };
    Ok(tokens.into_iter().map(sum).collect())
}

impl Request {
    fn nothing_yet(&self) -> Vec<Likelihood> {
        vec![Likelihood { log: f64::NAN, greedy: false }; self.continuation]
    }
}

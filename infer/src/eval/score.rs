//! How well a model predicts a text and how far its predictions are from a reference's, token by token.
//!
//! Knows no files and no clock. Probabilities are made from f32 logits in f64. Invariant: both models see the same
//! windows, and every number is a sum over tokens in the order of the text, whatever the number of threads.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Mean, Windows};
use crate::sequence::top1;
use crate::{Error, Result, Sequence};

/// What scoring a text gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Scored tokens.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
    /// Negative log likelihood per token, in nats.
    pub nll: Mean,
    /// Standard error of that mean when only windows count as independent; none for a single window.
    pub nll_clustered_se: Option<f64>,
    /// Bytes of the text that the scored tokens cover.
    pub bytes: usize,
    /// Distance from the reference, if there was one.
    pub versus: Option<Versus>,
    /// Window by window, in the order of the text.
    pub per_window: Vec<WindowScore>,
}

/// Means over the scored tokens of one window, in nats per token: what intervals over texts are drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WindowScore {
    /// Negative log likelihood.
    pub nll: f64,
    /// That of the reference, if there was one.
    pub reference_nll: Option<f64>,
    /// KL(reference ‖ model), if there was one.
    pub kl: Option<f64>,
}

impl WindowScore {
    fn of(judged: &[Judged]) -> Self {
        let mean = |value: fn(&Judged) -> Option<f64>| {
            Some(judged.iter().map(value).sum::<Option<f64>>()? / judged.len() as f64)
        };
        Self {
            nll: judged.iter().map(|token| token.nll).sum::<f64>() / judged.len() as f64,
            reference_nll: mean(|token| token.versus.map(|d| d.nll)),
            kl: mean(|token| token.versus.map(|d| d.kl)),
        }
    }
}

/// A model's distance from a reference on the same tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Versus {
    /// KL(reference ‖ model) per token, in nats.
    pub kl: Mean,
    /// Share of tokens where both give the highest logit to the same id.
    pub same_top1: f64,
    /// ln perplexity − ln perplexity of the reference, its error from the paired differences.
    pub delta_ln_ppl: Mean,
    /// Root mean square difference of the probabilities given to the true token.
    pub rms_delta_p: f64,
    /// Negative log likelihood of the reference per token, in nats.
    pub reference_nll: Mean,
}

impl Score {
    /// e to the mean negative log likelihood.
    pub fn perplexity(&self) -> f64 {
        self.nll.mean.exp()
    }

    /// Standard error of the perplexity, to first order: `perplexity · se(nll)`.
    pub fn perplexity_se(&self) -> f64 {
        self.perplexity() * self.nll.se
    }

    /// Bits that an ideal coder with this model needs per byte of scored text.
    pub fn bits_per_byte(&self) -> f64 {
        self.nll.mean * self.tokens as f64 / std::f64::consts::LN_2 / self.bytes as f64
    }
}

/// Scores `model` on the text of `windows`, against `reference` if given; both have room for a window. `progress` is called
/// with windows done and windows in all, first with none done.
///
/// # Errors
/// When an id is outside a vocabulary, the vocabularies differ, or logits are not finite.
pub fn score<'s>(
    model: &'s mut (dyn Sequence + 's),
    reference: Option<&'s mut (dyn Sequence + 's)>,
    windows: &Windows<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Score> {
    let is_compared = reference.is_some();
    let mut reader = Reader::new(model, reference)?;
    let mut ids = Vec::with_capacity(windows.tokens());
    let mut judged = Vec::with_capacity(windows.count() * windows.scored());
    for window in 0..windows.count() {
        progress(window, windows.count());
        windows.fill(window, &mut ids);
        let before = judged.len();
        reader.judge(&ids, &mut judged)?;
        if let Some(at) = judged[before..].iter().position(|token| !token.is_finite()) {
            return Err(Error::Invalid(format!(
                "window {window}, token {}: the predictions are not finite; are the weights damaged?",
                at + 1
            )));
        }
    }
    progress(windows.count(), windows.count());

    let nll: Vec<f64> = judged.iter().map(|token| token.nll).collect();
    let groups = (0..windows.count()).map(|_| windows.scored());
    Ok(Score {
        tokens: judged.len(),
        windows: windows.count(),
        nll: Mean::of(nll.iter().copied()),
        nll_clustered_se: Mean::clustered_se(&nll, groups),
        bytes: windows.scored_bytes(),
        versus: is_compared.then(|| Versus::of(&judged)),
        per_window: judged.chunks(windows.scored().max(1)).map(WindowScore::of).collect(),
    })
}

/// How far the predictions of `model` over the one text `ids` are from those of `reference`.
///
/// # Errors
/// When there are fewer than two ids, one is outside the vocabulary, or logits are not finite.
pub fn compare<'s>(
    model: &'s mut (dyn Sequence + 's),
    reference: &'s mut (dyn Sequence + 's),
    ids: &[u32],
) -> Result<Versus> {
    let mut judged = Vec::with_capacity(ids.len());
    if ids.len() > 1 {
        Reader::new(model, Some(reference))?.judge(ids, &mut judged)?;
    }
    if judged.is_empty() || !judged.iter().all(Judged::is_finite) {
        return Err(Error::Invalid("the predictions are not finite; are the weights damaged?".into()));
    }
    Ok(Versus::of(&judged))
}

/// One scored token.
struct Judged {
    nll: f64,
    versus: Option<Distance>,
}

/// One token's distance from the reference.
#[derive(Clone, Copy)]
struct Distance {
    nll: f64,
    kl: f64,
    same_top1: bool,
}

impl Versus {
    fn of(judged: &[Judged]) -> Self {
        let pairs: Vec<(f64, Distance)> =
            judged.iter().filter_map(|token| Some((token.nll, token.versus?))).collect();
        let n = pairs.len() as f64;
        let squared_delta_p = |(nll, d): &(f64, Distance)| ((-nll).exp() - (-d.nll).exp()).powi(2);
        Self {
            kl: Mean::of(pairs.iter().map(|(_, d)| d.kl)),
            same_top1: pairs.iter().filter(|(_, d)| d.same_top1).count() as f64 / n,
            delta_ln_ppl: Mean::of(pairs.iter().map(|(nll, d)| nll - d.nll)),
            rms_delta_p: (pairs.iter().map(squared_delta_p).sum::<f64>() / n).sqrt(),
            reference_nll: Mean::of(pairs.iter().map(|(_, d)| d.nll)),
        }
    }
}

/// A model and its reference reading the same text.
struct Reader<'s> {
    model: &'s mut (dyn Sequence + 's),
    reference: Option<&'s mut (dyn Sequence + 's)>,
    vocab: usize,
    /// Rows of logits that both make at a time.
    rows: usize,
}

impl<'s> Reader<'s> {
    fn new(
        model: &'s mut (dyn Sequence + 's),
        reference: Option<&'s mut (dyn Sequence + 's)>,
    ) -> Result<Self> {
        let vocab = model.vocab();
        if let Some(other) = reference.as_ref().map(|r| r.vocab()).filter(|other| *other != vocab) {
            return Err(Error::Invalid(format!(
                "the reference has a vocabulary of {other}, the model one of {vocab}; \
                 predictions can only be compared over the same vocabulary"
            )));
        }
        let rows = reference.as_ref().map_or(usize::MAX, |r| r.logit_rows()).min(model.logit_rows());
        Ok(Self { model, reference, vocab, rows })
    }

    /// Appends what the models make of each of `ids` but the first.
    fn judge(&mut self, ids: &[u32], judged: &mut Vec<Judged>) -> Result<()> {
        self.check_ids(ids)?;
        let (inputs, targets) = (&ids[..ids.len() - 1], &ids[1..]);
        self.model.reset();
        let hidden = self.model.hidden(inputs)?;
        let reference_hidden = match &mut self.reference {
            Some(reference) => {
                reference.reset();
                Some(reference.hidden(inputs)?)
            }
            None => None,
        };
        let rows = self.rows;
        for (part, targets) in targets.chunks(rows).enumerate() {
            let logits = self.model.logits(&hidden, part * rows, targets.len())?;
            let reference_logits = match (&mut self.reference, &reference_hidden) {
                (Some(reference), Some(hidden)) => {
                    Some(reference.logits(hidden, part * rows, targets.len())?)
                }
                _ => None,
            };
            judged.par_extend(targets.par_iter().enumerate().map(|(at, target)| {
                let row = at * self.vocab..(at + 1) * self.vocab;
                let reference = reference_logits.as_ref().map(|all| &all[row.clone()]);
                Judged::new(&logits[row.clone()], reference, *target as usize)
            }));
        }
        Ok(())
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= self.vocab) {
            None => Ok(()),
            Some(id) => Err(Error::Invalid(format!(
                "token id {id} is outside the model's vocabulary of {}; does the tokenizer belong to the model?",
                self.vocab
            ))),
        }
    }
}

impl Judged {
    fn new(logits: &[f32], reference: Option<&[f32]>, target: usize) -> Self {
        let log_z = log_normalizer(logits);
        let log_p = |id: usize| f64::from(logits[id]) - log_z;
        let versus = reference.map(|reference| {
            let reference_log_z = log_normalizer(reference);
            let terms = reference.iter().enumerate().map(|(id, logit)| {
                let reference_log_p = f64::from(*logit) - reference_log_z;
                reference_log_p.exp() * (reference_log_p - log_p(id))
            });
            Distance {
                kl: terms.sum(),
                nll: reference_log_z - f64::from(reference[target]),
                same_top1: top1(logits) == top1(reference),
            }
        });
        Self { nll: -log_p(target), versus }
    }

    fn is_finite(&self) -> bool {
        self.nll.is_finite() && self.versus.is_none_or(|d| d.nll.is_finite() && d.kl.is_finite())
    }
}

/// ln Σ eˡ, in f64.
pub(super) fn log_normalizer(logits: &[f32]) -> f64 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - greatest).exp()).sum();
    f64::from(greatest) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_judged_by_hand() {
        // Probabilities 1/4 and 3/4 against 1/2 and 1/2; the true token is the first.
        let token = Judged::new(&[0.0, 3f32.ln()], Some(&[5.0, 5.0]), 0);
        assert!((token.nll - 4f64.ln()).abs() < 1e-7);
        let distance = token.versus.expect("a reference");
        assert!((distance.nll - 2f64.ln()).abs() < 1e-12);
        // ½ ln(½ / ¼) + ½ ln(½ / ¾)
        assert!((distance.kl - 0.5 * (2f64.ln() + (2.0 / 3.0f64).ln())).abs() < 1e-7);
        assert!(!distance.same_top1, "of equals the first counts");
        let versus = Versus::of(&[token]);
        assert!((versus.rms_delta_p - 0.25).abs() < 1e-7);
        assert!((versus.delta_ln_ppl.mean - 2f64.ln()).abs() < 1e-7);
    }

    #[test]
    fn large_logits_neither_overflow_nor_vanish() {
        let token = Judged::new(&[1e4, 1e4 - 20.0], Some(&[-1e4, -1e4]), 1);
        assert!((token.nll - 20.0).abs() < 1e-8 && token.is_finite());
        assert!(!Judged::new(&[f32::NAN, 0.0], None, 1).is_finite());
    }
}

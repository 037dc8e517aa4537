//! A finite distribution with Zipf weights: what every choice of the story grammar is drawn from.
//!
//! Knows no words. The invariant: outcomes are distinct and their probabilities sum to one, so the nats that
//! [`Distribution::draw`] reports are those that anyone recomputes from [`Distribution::iter`], to the bit.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Outcomes (indices of words or of alternatives) with their probabilities.
#[derive(Debug, Clone)]
pub(super) struct Distribution {
    /// `(outcome, probability)`, likeliest first.
    outcomes: Vec<(usize, f64)>,
}

impl Distribution {
    /// The k-th of `outcomes` (from 1) gets a probability proportional to `k^-exponent`.
    pub(super) fn zipf(outcomes: impl IntoIterator<Item = usize>, exponent: f64) -> Self {
        let weighted: Vec<(usize, f64)> =
            outcomes.into_iter().zip(1u32..).map(|(o, k)| (o, f64::from(k).powf(-exponent))).collect();
        assert!(!weighted.is_empty(), "a distribution needs an outcome");
        let total: f64 = weighted.iter().map(|(_, w)| w).sum();
        Self { outcomes: weighted.into_iter().map(|(o, w)| (o, w / total)).collect() }
    }

    /// `top` of the `candidates` in an order that only `label` decides: knowledge that can't be guessed.
    pub(super) fn shuffled(label: &str, mut candidates: Vec<usize>, top: usize, exponent: f64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(fnv1a(label));
        for i in 0..top.min(candidates.len()) {
            let left = (candidates.len() - i) as u64;
            candidates.swap(i, i + (rng.next_u64() % left) as usize);
        }
        Self::zipf(candidates.into_iter().take(top), exponent)
    }

    /// A random outcome and its surprisal in nats.
    pub(super) fn draw(&self, rng: &mut ChaCha8Rng) -> (usize, f64) {
        let mut left = (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        for &(outcome, p) in &self.outcomes {
            if left < p {
                return (outcome, -p.ln());
            }
            left -= p;
        }
        // Rounding of the running difference can leave a hair beyond the last outcome.
        let (outcome, p) = self.outcomes[self.outcomes.len() - 1];
        (outcome, -p.ln())
    }

    /// Expected surprisal in nats.
    pub(super) fn entropy(&self) -> f64 {
        self.outcomes.iter().map(|(_, p)| -p * p.ln()).sum()
    }

    /// All outcomes with their probabilities, likeliest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.outcomes.iter().copied()
    }
}

/// FNV-1a, 64 bits: a seed from a label, the same on every machine and in every release.
fn fnv1a(label: &str) -> u64 {
    label.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

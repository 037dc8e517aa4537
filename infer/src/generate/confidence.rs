//! How sure a model was of what it wrote, by several measures of its predictions.
//!
//! Knows no text and no other model; which measure tells most about it, `eval/deferral.rs` finds out. Invariant: of every measure, more is
//! surer.

use serde::{Deserialize, Serialize};

/// A number made of the predictions from which an answer's tokens were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Mean difference of the two greatest probabilities.
    MeanMargin,
    /// The least such difference.
    LeastMargin,
    /// Mean ln of the greatest probability.
    MeanLog,
    /// The least such logarithm.
    LeastLog,
    /// Mean entropy in nats, negative.
    MeanEntropy,
    /// The greatest entropy, negative.
    GreatestEntropy,
}

impl Measure {
    /// All of them, in the order of [`Certainty::all`].
    pub const ALL: [Self; 6] = [
        Self::MeanMargin,
        Self::LeastMargin,
        Self::MeanLog,
        Self::LeastLog,
        Self::MeanEntropy,
        Self::GreatestEntropy,
    ];

    /// Its name in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::MeanMargin => "mean_margin",
            Self::LeastMargin => "least_margin",
            Self::MeanLog => "mean_log",
            Self::LeastLog => "least_log",
            Self::MeanEntropy => "mean_entropy",
            Self::GreatestEntropy => "greatest_entropy",
        }
    }
}

/// Predictions seen so far, summed up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Certainty {
    tokens: usize,
    /// Of margin, logarithm and negative entropy: sum and least.
    sums: [f64; 3],
    least: [f64; 3],
}

impl Default for Certainty {
    fn default() -> Self {
        Self { tokens: 0, sums: [0.0; 3], least: [f64::INFINITY; 3] }
    }
}

impl Certainty {
    /// Takes the logits that one token is chosen from.
    pub fn see(&mut self, logits: &[f32]) {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for logit in logits {
            if *logit > first {
                (first, second) = (*logit, first);
            } else if *logit > second {
                second = *logit;
            }
        }
        let (mut sum, mut weighted) = (0.0, 0.0);
        for logit in logits {
            let below = f64::from(*logit) - f64::from(first);
            let weight = below.exp();
            sum += weight;
            if weight > 0.0 {
                weighted += weight * below;
            }
        }
        let next = (f64::from(second) - f64::from(first)).exp();
        // The greatest probability is 1 / sum, and entropy is ln sum less the mean of what logits are below the greatest.
        let of = [(1.0 - next) / sum, -sum.ln(), weighted / sum - sum.ln()];
        for (at, value) in of.into_iter().enumerate() {
            self.sums[at] += value;
            self.least[at] = self.least[at].min(value);
        }
        self.tokens += 1;
    }

    /// A measure of what was seen; none when nothing was.
    pub fn of(&self, measure: Measure) -> Option<f64> {
        let at = Measure::ALL.iter().position(|other| *other == measure)?;
        self.all().map(|all| all[at])
    }

    /// Every measure, in the order of [`Measure::ALL`]; none when nothing was seen.
    pub fn all(&self) -> Option<[f64; 6]> {
        let [margin, log, entropy] = self.sums.map(|sum| sum / self.tokens as f64);
        let [least_margin, least_log, least_entropy] = self.least;
        (self.tokens > 0).then_some([margin, least_margin, log, least_log, entropy, least_entropy])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_those_worked_out_by_hand() {
        let mut seen = Certainty::default();
        assert_eq!(seen.all(), None);
        seen.see(&[0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()]);
        seen.see(&[5.0, 5.0]);
        let entropy = |parts: &[f64]| parts.iter().map(|p| p * p.ln()).sum::<f64>();
        let (first, second) = (entropy(&[0.5, 0.25, 0.25]), entropy(&[0.5, 0.5]));
        let want = [0.125, 0.0, 0.5f64.ln(), 0.5f64.ln(), (first + second) / 2.0, first];
        for (found, want) in seen.all().expect("two").iter().zip(want) {
            assert!((found - want).abs() < 1e-7, "{found}, want {want}");
        }
        assert_eq!(seen.of(Measure::LeastMargin), Some(0.0));
        let mut extreme = Certainty::default();
        extreme.see(&[1e4, -1e4, f32::NEG_INFINITY]);
        assert_eq!(extreme.all(), Some([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]));
    }
}

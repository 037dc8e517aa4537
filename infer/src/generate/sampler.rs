//! Which token comes next, drawn from the likeliest ones.
//!
//! Probabilities are those of `logits / temperature`. Of the tokens, the likeliest first, those are kept that `top_k`,
//! then `min_p` (Nguyen et al., arXiv 2407.01082) and `top_p` (Holtzman et al., arXiv 1904.09751) leave; one is drawn
//! in proportion to its probability. Knows no model.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result};

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the likeliest token always.
    pub temperature: f32,
    /// So many of the likeliest are considered; 0 for all.
    pub top_k: usize,
    /// Of those, the fewest whose probabilities sum to at least this, of all that are considered.
    pub top_p: f32,
    /// And of those, the ones at least this times as likely as the likeliest.
    pub min_p: f32,
    /// Of the random numbers.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 1, top_p: 1.0, min_p: 0.0, seed: 0 }
    }

    /// Whether no random number is needed.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }
}

/// Draws tokens.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    ///
    /// # Errors
    /// When a number is outside its range; names it.
    pub fn new(sampling: &Sampling) -> Result<Self> {
        let Sampling { temperature, top_p, min_p, .. } = *sampling;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::Invalid(format!("temperature {temperature}: want a number of at least 0")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::Invalid(format!("top_p {top_p}: want more than 0 and at most 1")));
        }
        if !(0.0..=1.0).contains(&min_p) {
            return Err(Error::Invalid(format!("min_p {min_p}: want 0 to 1")));
        }
        Ok(Self { sampling: *sampling, random: ChaCha8Rng::seed_from_u64(sampling.seed) })
    }

    /// One of `candidates`: ids with their logits, the likeliest first, at least one.
    pub fn choose(&mut self, mut candidates: Vec<(u32, f32)>) -> u32 {
        let (likeliest, greatest) = candidates[0];
        if self.sampling.is_greedy() {
            return likeliest;
        }
        let temperature = f64::from(self.sampling.temperature);
        let weight = |logit: f32| (f64::from(logit - greatest) / temperature).exp();
        let total: f64 = candidates.iter().map(|(_, logit)| weight(*logit)).sum();
        let (mut kept, mut sum) = (0, 0.0);
        for (_, logit) in &candidates {
            let weight = weight(*logit);
            if kept > 0
                && (weight < f64::from(self.sampling.min_p) || sum >= f64::from(self.sampling.top_p) * total)
            {
                break;
            }
            sum += weight;
            kept += 1;
        }
        candidates.truncate(kept);
        let mut left = self.random.random::<f64>() * sum;
        for (id, logit) in &candidates {
            left -= weight(*logit);
            if left < 0.0 {
                return *id;
            }
        }
        // Rounding may leave a little after the last.
        candidates.last().map_or(likeliest, |(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::likeliest;

    fn ranked(logits: &[f32]) -> Vec<(u32, f32)> {
        likeliest(logits, logits.len())
    }

    fn sampling() -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 1 }
    }

    /// How often each of four tokens with probabilities 1/2, 1/4, 1/8, 1/8 is drawn, of 8000 times.
    fn shares(sampling: Sampling) -> [usize; 4] {
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        let mut sampler = Sampler::new(&sampling).expect("a sampler");
        let mut counts = [0; 4];
        for _ in 0..8000 {
            counts[sampler.choose(ranked(&logits)) as usize] += 1;
        }
        counts
    }

    /// Whether counts are those of probabilities, within five standard deviations.
    fn are_of(counts: [usize; 4], of_8: [f64; 4]) -> bool {
        counts.iter().zip(of_8).all(|(count, eighths)| {
            let p = eighths / 8.0;
            (*count as f64 - 8000.0 * p).abs() <= 5.0 * (8000.0 * p * (1.0 - p)).sqrt()
        })
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        assert!(are_of(shares(sampling()), [4.0, 2.0, 1.0, 1.0]));
        // Twice as hot: probabilities in proportion to their square roots; half as hot: to their squares, 16:4:1:1.
        let counts = shares(Sampling { temperature: 0.5, ..sampling() });
        assert!(are_of(counts, [8.0 * 16.0 / 22.0, 8.0 * 4.0 / 22.0, 8.0 / 22.0, 8.0 / 22.0]), "{counts:?}");
    }

    #[test]
    fn top_p_and_min_p_leave_out_the_tail() {
        // A half and a quarter reach 0.6; three tokens reach 0.8.
        assert!(are_of(shares(Sampling { top_p: 0.6, ..sampling() }), [16.0 / 3.0, 8.0 / 3.0, 0.0, 0.0]));
        assert_eq!(shares(Sampling { top_p: 0.8, ..sampling() })[3], 0);
        assert_eq!(shares(Sampling { top_p: 0.5, ..sampling() }), [8000, 0, 0, 0]);
        // A quarter is half as likely as a half.
        assert!(are_of(shares(Sampling { min_p: 0.4, ..sampling() }), [16.0 / 3.0, 8.0 / 3.0, 0.0, 0.0]));
    }

    #[test]
    fn a_seed_gives_the_same_tokens_and_another_seed_others() {
        let draw = |seed| {
            let mut sampler = Sampler::new(&Sampling { seed, ..sampling() }).expect("a sampler");
            (0..64).map(|_| sampler.choose(ranked(&[0.0; 50]))).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn numbers_outside_their_range_are_refused_by_name() {
        for (bad, name) in [
            (Sampling { temperature: f32::NAN, ..sampling() }, "temperature NaN"),
            (Sampling { top_p: 0.0, ..sampling() }, "top_p 0"),
            (Sampling { min_p: 1.5, ..sampling() }, "min_p 1.5"),
        ] {
            let message = Sampler::new(&bad).map(|_| ()).expect_err("refused").to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}

//! The exact entropy of a story in nats, summed over the grammar: the floor of any model's cross entropy.
//!
//! Knows no text. It rests on one property of the grammar: a rule's choice depends on nothing, so whether a word is
//! ever drawn is independent of which words were. Hence
//! H(story) = Σ_rules E\[expansions\]·H(choice) + Σ_draws P(drawn)·Σ_w p(parent = w)·H(draw | w).

use super::grammar::{Grammar, Symbol};

impl Grammar {
    /// Expected −ln p(story) in nats.
    pub(super) fn entropy(&self) -> f64 {
        let words = (0..self.draws.len()).map(|d| self.drawn(0, d) * self.draw_entropy(d));
        self.choice_entropy(0) + words.sum::<f64>()
    }

    /// Nats of all the choices within one expansion of `rule`, on average.
    fn choice_entropy(&self, rule: usize) -> f64 {
        let rule = &self.rules[rule];
        let within = rule.choice.iter().map(|(alternative, p)| {
            let parts = rule.alternatives[alternative].iter().map(|symbol| match symbol {
                Symbol::Rule(inner) => self.choice_entropy(*inner),
                _ => 0.0,
            });
            p * parts.sum::<f64>()
        });
        rule.choice.entropy() + within.sum::<f64>()
    }

    /// The probability that one expansion of `rule` mentions `draw`.
    fn drawn(&self, rule: usize, draw: usize) -> f64 {
        let rule = &self.rules[rule];
        let missed = rule.choice.iter().map(|(alternative, p)| {
            let parts = rule.alternatives[alternative].iter().map(|symbol| match symbol {
                Symbol::Rule(inner) => 1.0 - self.drawn(*inner, draw),
                Symbol::Word { draw: d, .. } if *d == draw => 0.0,
                _ => 1.0,
            });
            p * parts.product::<f64>()
        });
        1.0 - missed.sum::<f64>()
    }

    /// H(draw | parent) in nats.
    fn draw_entropy(&self, draw: usize) -> f64 {
        let Some(parent) = self.draws[draw].given else {
            return self.draws[draw].distributions[0].entropy();
        };
        let given = self.marginal(parent).into_iter().zip(&self.draws[draw].distributions);
        given.map(|(p, distribution)| p * distribution.entropy()).sum()
    }

    /// The probability of each word of `draw`, over all stories that mention it.
    fn marginal(&self, draw: usize) -> Vec<f64> {
        let mut marginal = vec![0.0; self.tables[self.draws[draw].table].words.len()];
        let parent = self.draws[draw].given.map_or(vec![1.0], |parent| self.marginal(parent));
        for (p, distribution) in parent.into_iter().zip(&self.draws[draw].distributions) {
            for (word, q) in distribution.iter() {
                marginal[word] += p * q;
            }
        }
        marginal
    }
}

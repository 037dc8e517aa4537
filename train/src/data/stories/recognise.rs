//! Recovers from a story's text alone how the grammar derived it, and with it −ln p(story).
//!
//! Knows nothing of the sampler. The invariant: it tries every alternative everywhere and returns *all* derivations,
//! so that "exactly one" is a finding and not an assumption.

use super::grammar::{Bound, Grammar, Symbol};

/// A partial derivation: `at` bytes of the text are explained by choices of `nats` altogether.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    at: usize,
    bound: Bound,
    pub(super) nats: f64,
}

impl Grammar {
    /// All derivations of the whole of `story`.
    pub(super) fn readings(&self, story: &str) -> Vec<Reading> {
        let start = Reading { at: 0, bound: self.unbound(), nats: 0.0 };
        let mut all = self.read(&Symbol::Rule(0), story, start);
        all.retain(|reading| reading.at == story.len());
        all
    }

    fn read(&self, symbol: &Symbol, text: &str, from: Reading) -> Vec<Reading> {
        match symbol {
            Symbol::Text(literal) => from.past(text, literal),
            Symbol::Sum { terms } => {
                let number = self.sum(terms, &from.bound);
                from.past(text, number)
            }
            Symbol::Word { draw, form } => match from.bound[*draw] {
                Some(word) => from.past(text, self.word(*draw, word, *form)),
                None => {
                    let bind = |(word, p): (usize, f64)| {
                        let mut next = from.clone();
                        next.nats -= p.ln();
                        next.bound[*draw] = Some(word);
                        next.past(text, self.word(*draw, word, *form))
                    };
                    self.distribution(*draw, &from.bound).iter().flat_map(bind).collect()
                }
            },
            Symbol::Rule(rule) => {
                let rule = &self.rules[*rule];
                let alternatives = rule.choice.iter().map(|(a, p)| (&rule.alternatives[a], -p.ln()));
                alternatives.flat_map(|(symbols, nats)| self.read_all(symbols, text, &from, nats)).collect()
            }
        }
    }

    fn read_all(&self, symbols: &[Symbol], text: &str, from: &Reading, nats: f64) -> Vec<Reading> {
        let start = Reading { nats: from.nats + nats, ..from.clone() };
        symbols.iter().fold(vec![start], |readings, symbol| {
            readings.into_iter().flat_map(|reading| self.read(symbol, text, reading)).collect()
        })
    }
}

impl Reading {
    /// This reading moved past `literal`, if the text goes on with it.
    fn past(mut self, text: &str, literal: &str) -> Vec<Self> {
        if !text[self.at..].starts_with(literal) {
            return Vec::new();
        }
        self.at += literal.len();
        vec![self]
    }
}

//! Draws a story from the grammar and counts the nats of every choice on the way.
//!
//! Knows nothing of text already written. The invariant: the nats returned are −ln p(story).

use rand_chacha::ChaCha8Rng;

use super::grammar::{Bound, Grammar, Symbol};

/// What a story is an expansion of.
static STORY: Symbol = Symbol::Rule(0);

impl Grammar {
    /// Appends one story to `out` and returns its surprisal in nats.
    pub(super) fn sample(&self, rng: &mut ChaCha8Rng, out: &mut String) -> f64 {
        let mut walk = Walk { grammar: self, rng, out, bound: self.unbound(), nats: 0.0 };
        walk.expand(&STORY);
        walk.nats
    }
}

struct Walk<'a> {
    grammar: &'a Grammar,
    rng: &'a mut ChaCha8Rng,
    out: &'a mut String,
    bound: Bound,
    nats: f64,
}

impl<'a> Walk<'a> {
    fn expand(&mut self, symbol: &'a Symbol) {
        match symbol {
            Symbol::Text(text) => self.out.push_str(text),
            Symbol::Word { draw, form } => {
                let word = match self.bound[*draw] {
                    Some(word) => word,
                    None => self.bind(*draw),
                };
                self.out.push_str(self.grammar.word(*draw, word, *form));
            }
            Symbol::Sum { terms } => self.out.push_str(self.grammar.sum(terms, &self.bound)),
            Symbol::Rule(rule) => {
                let rule = &self.grammar.rules[*rule];
                let (alternative, nats) = rule.choice.draw(self.rng);
                self.nats += nats;
                for symbol in &rule.alternatives[alternative] {
                    self.expand(symbol);
                }
            }
        }
    }

    fn bind(&mut self, draw: usize) -> usize {
        let (word, nats) = self.grammar.distribution(draw, &self.bound).draw(self.rng);
        self.nats += nats;
        self.bound[draw] = Some(word);
        word
    }
}

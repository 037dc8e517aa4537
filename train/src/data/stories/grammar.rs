//! The story grammar in memory: tables of words, draws from them, and rules that put them into sentences.
//!
//! Knows neither its file's syntax nor randomness. The invariants: every index points somewhere, a rule uses only
//! rules written after it (so there is no recursion), and every draw has a distribution for each of its parent's words.

use super::distribution::Distribution;
use super::table::{Form, Table};

/// Number words, by value. None is a prefix of another, which "six" and "sixteen" would break.
pub(super) const NUMERALS: [&str; 13] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
];

/// A word chosen once for each story, at its first mention, and repeated afterwards.
#[derive(Debug, Clone)]
pub(super) struct Draw {
    pub(super) name: String,
    pub(super) table: usize,
    /// The earlier draw on whose word the distribution depends.
    pub(super) given: Option<usize>,
    /// One distribution, or one for each word of the parent's table.
    pub(super) distributions: Vec<Distribution>,
}

/// A piece of a sentence.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Symbol {
    /// Literal text.
    Text(String),
    /// The word of a draw, in a form.
    Word { draw: usize, form: Form },
    /// The sum of drawn numbers, in words; each term has its sign.
    Sum { terms: Vec<(usize, i32)> },
    /// One of a rule's alternatives.
    Rule(usize),
}

/// Alternatives, of which one is chosen independently of everything before.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) alternatives: Vec<Vec<Symbol>>,
    pub(super) choice: Distribution,
}

/// The whole grammar; a story is an expansion of `rules[0]`.
#[derive(Debug, Clone)]
pub(super) struct Grammar {
    pub(super) tables: Vec<Table>,
    pub(super) draws: Vec<Draw>,
    pub(super) rules: Vec<Rule>,
}

/// The words drawn so far in one story, by draw.
pub(super) type Bound = Vec<Option<usize>>;

impl Grammar {
    /// Nothing drawn yet.
    pub(super) fn unbound(&self) -> Bound {
        vec![None; self.draws.len()]
    }

    /// The distribution of `draw` when the words in `bound` have been drawn.
    pub(super) fn distribution(&self, draw: usize, bound: &Bound) -> &Distribution {
        let Draw { given, distributions, name, .. } = &self.draws[draw];
        match given {
            None => &distributions[0],
            Some(parent) => match bound[*parent] {
                Some(word) => &distributions[word],
                None => {
                    unreachable!("{name} is mentioned before its parent: the tests refuse such a grammar")
                }
            },
        }
    }

    /// The text of word number `word` of `draw`.
    pub(super) fn word(&self, draw: usize, word: usize, form: Form) -> &str {
        self.tables[self.draws[draw].table].words[word].form(form)
    }

    /// The number word of a sum of bound draws.
    pub(super) fn sum(&self, terms: &[(usize, i32)], bound: &Bound) -> &'static str {
        let value: i32 = terms
            .iter()
            .map(|&(draw, sign)| {
                let word = bound[draw].map(|w| self.word(draw, w, Form::Plain));
                let value = word.and_then(|w| NUMERALS.iter().position(|n| *n == w));
                sign * value.map_or(0, |v| v as i32)
            })
            .sum();
        NUMERALS[value.clamp(0, 12) as usize]
    }
}

//! Reads one alternative of a rule: text with `{words}`, `<rules>` and `(one|another)`.
//!
//! Knows no lines. The invariants: a form exists for its word, a sum is at least two and has a number word, and a rule
//! that is named comes after the one that names it.

use super::distribution::Distribution;
use super::file::{Parsed, RULE_EXPONENT, Reader};
use super::grammar::{NUMERALS, Rule, Symbol};
use super::table::{Form, Word};

/// Reads one alternative from left to right.
pub(super) struct Template<'r, 't> {
    reader: &'r mut Reader,
    rule: usize,
    rest: &'t str,
}

impl<'r, 't> Template<'r, 't> {
    /// Reads an alternative of rule number `rule`; the rules without a name in it go to the end of the list.
    ///
    /// # Errors
    /// What is wrong, and the text that follows.
    pub(super) fn read(reader: &'r mut Reader, rule: usize, text: &'t str) -> Parsed<Vec<Symbol>> {
        let mut template = Self { reader, rule, rest: text };
        template.sequence(false).map_err(|e| format!("{e}, before `{}`", template.rest))
    }

    /// Symbols up to the end, or up to `|` or `)` if `inner`.
    fn sequence(&mut self, inner: bool) -> Parsed<Vec<Symbol>> {
        let mut symbols = Vec::new();
        while let Some(first) = self.rest.chars().next() {
            symbols.push(match first {
                '|' | ')' if inner => break,
                '|' | ')' | '}' | '>' => return Err(format!("a stray `{first}`")),
                '{' => self.slot()?,
                '<' => self.reference()?,
                '(' => self.choice()?,
                _ => {
                    let end = self.rest.find(['{', '}', '<', '>', '(', ')', '|']).unwrap_or(self.rest.len());
                    let (text, rest) = self.rest.split_at(end);
                    self.rest = rest;
                    Symbol::Text(text.to_owned())
                }
            });
        }
        Ok(symbols)
    }

    /// The text between the bracket that `rest` begins with and `close`.
    fn bracket(&mut self, close: char) -> Parsed<&str> {
        let (inside, rest) = self.rest[1..].split_once(close).ok_or(format!("want a `{close}`"))?;
        self.rest = rest;
        Ok(inside)
    }

    fn slot(&mut self) -> Parsed<Symbol> {
        let inside = self.bracket('}')?.to_owned();
        if inside.contains(['+', '-']) {
            return self.sum(&inside);
        }
        let (name, suffix) = inside.split_once('.').map_or((inside.as_str(), None), |(n, s)| (n, Some(s)));
        let capital = name.starts_with(|c: char| c.is_ascii_uppercase());
        let draw = self.reader.find_draw(&name.to_ascii_lowercase())?;
        let form = Form::from_suffix(suffix, capital).ok_or(format!("no form `{inside}`"))?;
        if form.needs_gender() && !self.reader.tables[self.reader.draws[draw].table].has_gender() {
            return Err(format!("`{name}` has no pronouns"));
        }
        Ok(Symbol::Word { draw, form })
    }

    /// `a+b-c`, which must come to two or more for all words, so that its noun is a plural.
    fn sum(&mut self, inside: &str) -> Parsed<Symbol> {
        let (mut terms, mut least, mut most, mut sign) = (Vec::new(), 0, 0, 1);
        for piece in inside.split_inclusive(['+', '-']) {
            let name = piece.trim_end_matches(['+', '-']);
            let draw = self.reader.find_draw(name)?;
            let words = &self.reader.tables[self.reader.draws[draw].table].words;
            let value = |word: &Word| NUMERALS.iter().position(|n| *n == word.plain).map(|v| sign * v as i32);
            let values: Option<Vec<i32>> = words.iter().map(value).collect();
            let values = values.ok_or(format!("`{name}` is not a number"))?;
            least += values.iter().min().copied().unwrap_or(0);
            most += values.iter().max().copied().unwrap_or(0);
            terms.push((draw, sign));
            sign = if piece.ends_with('-') { -1 } else { 1 };
        }
        if least < 2 || most >= NUMERALS.len() as i32 {
            return Err(format!("`{inside}` runs from {least} to {most}; want two to twelve"));
        }
        Ok(Symbol::Sum { terms })
    }

    fn reference(&mut self) -> Parsed<Symbol> {
        let name = self.bracket('>')?.to_owned();
        // The rules without a name of their own have a space in it.
        let named = |rule: &Rule| rule.name == name && !name.contains(' ');
        let rule = self.reader.rules.iter().position(named).ok_or(format!("no rule `{name}`"))?;
        if rule <= self.rule {
            return Err(format!("rule `{name}` must come after the rule that uses it"));
        }
        Ok(Symbol::Rule(rule))
    }

    /// `(one|another)`: a rule without a name.
    fn choice(&mut self) -> Parsed<Symbol> {
        let mut alternatives = Vec::new();
        while !self.rest.starts_with(')') {
            if self.rest.is_empty() {
                return Err("want a `)`".to_owned());
            }
            self.rest = &self.rest[1..];
            alternatives.push(self.sequence(true)?);
        }
        self.rest = &self.rest[1..];
        let choice = Distribution::zipf(0..alternatives.len(), RULE_EXPONENT);
        let name = format!("choice in {}", self.reader.rules[self.rule].name);
        self.reader.rules.push(Rule { name, alternatives, choice });
        Ok(Symbol::Rule(self.reader.rules.len() - 1))
    }
}

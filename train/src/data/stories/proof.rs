//! The proof that data/stories.grammar gives every text at most one derivation.
//!
//! Let every mention of a word stand for *any* word of its table, independently. This relaxed grammar has every
//! derivation of the true one and more, so it is enough to show for it that the texts of each symbol are prefix-free
//! and that each text has one derivation. By induction from the last rule (no rule uses an earlier one):
//! 1. No form of a table's word begins another's; the first mention of a word is in a form that tells it.
//! 2. Any two alternatives of a rule *diverge*: symbol by symbol they agree (and equal symbols, prefix-free by
//!    induction, either end at the same place or have differed already), until a letter at which they differ.

use std::collections::BTreeSet;

use super::grammar::{Grammar, NUMERALS, Symbol};
use super::table::Form;
use super::*;

/// The texts that `symbol` may stand for, or `None` if it is a rule.
fn texts(grammar: &Grammar, symbol: &Symbol) -> Option<BTreeSet<String>> {
    match symbol {
        Symbol::Text(text) => Some([text.clone()].into()),
        Symbol::Word { draw, form } => {
            let words = &grammar.tables[grammar.draws[*draw].table].words;
            Some(words.iter().map(|w| w.form(*form).to_owned()).collect())
        }
        Symbol::Sum { .. } => Some(NUMERALS.iter().map(|n| (*n).to_owned()).collect()),
        Symbol::Rule(_) => None,
    }
}

/// What is left to read: a piece of text, then symbols.
#[derive(Clone)]
struct Rest<'g> {
    text: String,
    symbols: Vec<&'g Symbol>,
}

impl<'g> Rest<'g> {
    fn of(symbols: &'g [Symbol]) -> Self {
        Self { text: String::new(), symbols: symbols.iter().collect() }
    }

    /// All ways in which the first symbol can become text or other symbols.
    fn unfold(&self, grammar: &'g Grammar) -> Vec<Self> {
        let (first, tail) = (self.symbols[0], &self.symbols[1..]);
        match (first, texts(grammar, first)) {
            (Symbol::Rule(rule), _) => {
                let then = |a: &'g Vec<Symbol>| a.iter().chain(tail.iter().copied()).collect();
                let rests = grammar.rules[*rule].alternatives.iter();
                rests.map(|a| Self { text: String::new(), symbols: then(a) }).collect()
            }
            (_, all) => {
                let all = all.into_iter().flatten();
                all.map(|text| Self { text, symbols: tail.to_vec() }).collect()
            }
        }
    }
}

/// Whether every text of `a` differs from every text of `b` at a letter that both have.
fn diverge(grammar: &Grammar, mut a: Rest, mut b: Rest) -> bool {
    let common = a.text.bytes().zip(b.text.bytes()).take_while(|(x, y)| x == y).count();
    if common < a.text.len().min(b.text.len()) {
        return true;
    }
    a.text.drain(..common);
    b.text.drain(..common);
    if a.text.is_empty() && b.text.is_empty() {
        while !a.symbols.is_empty() && a.symbols.first() == b.symbols.first() {
            a.symbols.remove(0);
            b.symbols.remove(0);
        }
    }
    match (a.text.is_empty(), b.text.is_empty()) {
        (true, _) => {
            !a.symbols.is_empty() && a.unfold(grammar).into_iter().all(|a| diverge(grammar, a, b.clone()))
        }
        (_, true) => {
            !b.symbols.is_empty() && b.unfold(grammar).into_iter().all(|b| diverge(grammar, a.clone(), b))
        }
        (false, false) => unreachable!("the common part has been removed"),
    }
}

/// Refuses two alternatives that don't diverge, and texts of a table that begin one another.
fn check_unambiguous(grammar: &Grammar) -> Result<(), String> {
    for rule in &grammar.rules {
        for symbol in rule.alternatives.iter().flatten() {
            let texts: Vec<String> = texts(grammar, symbol).into_iter().flatten().collect();
            // In sorted order, whatever begins a later text begins the next one.
            if let Some(pair) = texts.windows(2).find(|p| p[1].starts_with(&p[0])) {
                return Err(format!("in {}: `{}` begins `{}`", rule.name, pair[0], pair[1]));
            }
        }
        for (i, a) in rule.alternatives.iter().enumerate() {
            for (j, b) in rule.alternatives.iter().enumerate().skip(i + 1) {
                if !diverge(grammar, Rest::of(a), Rest::of(b)) {
                    return Err(format!("{}: alternatives {} and {} don't diverge", rule.name, i + 1, j + 1));
                }
            }
        }
    }
    Ok(())
}

/// Refuses a word that may be drawn before its parent or by a form that doesn't tell it.
/// `bound` are the draws that have surely been mentioned; returns those that have been afterwards.
fn check_bound(grammar: &Grammar, rule: usize, bound: &BTreeSet<usize>) -> Result<BTreeSet<usize>, String> {
    let mut always: Option<BTreeSet<usize>> = None;
    for (i, alternative) in grammar.rules[rule].alternatives.iter().enumerate() {
        let mut bound = bound.clone();
        let place = |what: &str| format!("{}, alternative {}: {what}", grammar.rules[rule].name, i + 1);
        for symbol in alternative {
            match symbol {
                Symbol::Text(_) => {}
                Symbol::Rule(inner) => bound = check_bound(grammar, *inner, &bound)?,
                Symbol::Sum { terms } => {
                    if let Some((draw, _)) = terms.iter().find(|(draw, _)| !bound.contains(draw)) {
                        return Err(place(&format!("a sum of {} before it", grammar.draws[*draw].name)));
                    }
                }
                Symbol::Word { draw, form } => {
                    let new = &grammar.draws[*draw];
                    if new.given.is_some_and(|parent| !bound.contains(&parent)) {
                        return Err(place(&format!("{} before its parent", new.name)));
                    }
                    if form.needs_gender() && !bound.contains(draw) {
                        return Err(place(&format!("a pronoun before {}", new.name)));
                    }
                    bound.insert(*draw);
                }
            }
        }
        always = Some(match always {
            None => bound,
            Some(others) => &others & &bound,
        });
    }
    Ok(always.unwrap_or_default())
}

fn small(rules: &str) -> Grammar {
    let head = "words name\n  she: Ann, Eve\n  he: Tom\nwords pet\n  cat, dog, catfish\nwords few\n  two, three\n\
                draw hero from name\ndraw pet from pet given hero top 2\ndraw n from few\n";
    Grammar::parse(&format!("{head}{rules}")).unwrap()
}

#[test]
fn the_grammar_of_the_stories_is_unambiguous() {
    check_unambiguous(&GRAMMAR).unwrap();
}

#[test]
fn every_word_of_the_stories_comes_after_its_parent_and_is_told_at_its_first_mention() {
    check_bound(&GRAMMAR, 0, &BTreeSet::new()).unwrap();
    for table in &GRAMMAR.tables {
        for form in [Form::Plain, Form::Capital, Form::Article, Form::Plural] {
            let forms: BTreeSet<&str> = table.words.iter().map(|w| w.form(form)).collect();
            assert_eq!(forms.len(), table.words.len(), "{form:?} of {}", table.name);
        }
    }
}

#[test]
fn every_draw_and_rule_is_used() {
    let used: Vec<&Symbol> = GRAMMAR.rules.iter().flat_map(|r| r.alternatives.iter().flatten()).collect();
    for (i, draw) in GRAMMAR.draws.iter().enumerate() {
        assert!(used.iter().any(|s| matches!(s, Symbol::Word { draw, .. } if *draw == i)), "{}", draw.name);
    }
    for (i, rule) in GRAMMAR.rules.iter().enumerate().skip(1) {
        assert!(used.contains(&&Symbol::Rule(i)), "{}", rule.name);
    }
}

#[test]
fn an_ambiguous_grammar_is_found_out() {
    let wrong = |rules: &str| check_unambiguous(&small(rules)).unwrap_err();
    assert_eq!(
        wrong("rule story\n  {hero} ran.\n  {hero} ran.\n"),
        "story: alternatives 1 and 2 don't diverge"
    );
    assert_eq!(
        wrong("rule story\n  {hero} ran\n  {hero} ran.\n"),
        "story: alternatives 1 and 2 don't diverge"
    );
    assert_eq!(wrong("rule story\n  Tom ran.\n  {hero} ran.\n"), "story: alternatives 1 and 2 don't diverge");
    assert_eq!(
        wrong("rule story\n  <a>b.\n  ab.\nrule a\n  a\n  c\n"),
        "story: alternatives 1 and 2 don't diverge"
    );
    assert_eq!(wrong("rule story\n  {hero}'s {pet}.\n"), "in story: `cat` begins `catfish`");
    assert_eq!(wrong("rule story\n  (a|ab)c\n"), "choice in story: alternatives 1 and 2 don't diverge");
    check_unambiguous(&small("rule story\n  {hero} ran (off|on).\n  {hero} sat.\n  The end.\n")).unwrap();
}

#[test]
fn a_word_before_its_parent_or_known_by_its_pronoun_only_is_found_out() {
    let check = |rules: &str| check_bound(&small(rules), 0, &BTreeSet::new());
    assert_eq!(check("rule story\n  A {pet}.\n").unwrap_err(), "story, alternative 1: pet before its parent");
    assert_eq!(
        check("rule story\n  ({hero}|No one) had {pet.a}.\n").unwrap_err(),
        "story, alternative 1: pet before its parent"
    );
    assert_eq!(
        check("rule story\n  {Hero.he} sat.\n").unwrap_err(),
        "story, alternative 1: a pronoun before hero"
    );
    assert_eq!(check("rule story\n  {n+n}\n").unwrap_err(), "story, alternative 1: a sum of n before it");
    assert_eq!(check("rule story\n  {hero} had {pet.a}.\n").unwrap().len(), 2);
}

#[test]
fn a_mistake_in_the_file_is_named_with_its_line() {
    let error = |source: &str| Grammar::parse(source).unwrap_err();
    assert_eq!(error("  cat\n"), "line 1: an indented line needs a header above it");
    assert_eq!(error("word pet\n"), "line 1: want words, facts, draw or rule, found `word pet`");
    assert_eq!(error("words pet\n  cat, cat\n"), "line 1: `cat` is in table pet twice");
    assert_eq!(error("words pet\n  cat\nwords pet\n  dog\n"), "line 3: `pet` is there already");
    assert_eq!(error("draw pet from pet\n"), "line 1: no table `pet` above");
    assert_eq!(error("words pet\n  cat\nfacts cry of pet\n  dog: woof\n"), "line 3: line 4: no word `dog`");
    assert_eq!(error("rule story\n  a {pet}\n"), "line 2: no draw `pet`, before ``");
    assert_eq!(
        error("rule story\n  <story>\n"),
        "line 2: rule `story` must come after the rule that uses it, before ``"
    );
    assert_eq!(error("rule story\n  (a|b\n"), "line 2: want a `)`, before ``");
    assert_eq!(error("rule story\n  a) b\n"), "line 2: a stray `)`, before `) b`");
    assert_eq!(error("rule story\n"), "line 1: a rule needs an alternative");
    assert_eq!(error("rule end\n  a\n"), "the first rule must be `rule story`");
    assert_eq!(
        error("words few\n  one\ndraw n from few\nrule story\n  {n+n-n}\n"),
        "line 5: `n+n-n` runs from 1 to 1; want two to twelve, before ``"
    );
}

//! Reads data/stories.grammar, whose head explains the syntax.
//!
//! Knows no probabilities beyond the two Zipf exponents. The invariant: what it returns satisfies the invariants of
//! [`Grammar`]; a mistake is an error that names the line.

use super::distribution::Distribution;
use super::grammar::{Draw, Grammar, NUMERALS, Rule, Symbol};
use super::table::{Form, Gender, Table, Word};

/// Alternatives of a rule: flat enough that each is seen often, steep enough that they are worth learning.
const RULE_EXPONENT: f64 = 0.5;
/// Words of a draw, the classic law.
const DRAW_EXPONENT: f64 = 1.0;

type Parsed<T> = Result<T, String>;

/// A header line and the indented lines below it, each with its number.
struct Block<'a> {
    line: usize,
    words: Vec<&'a str>,
    body: Vec<(usize, &'a str)>,
}

/// Which words of a table follow a word of another, spelled out: `facts TABLE of PARENT`.
struct Facts {
    table: usize,
    parent: usize,
    rows: Vec<Vec<usize>>,
}

impl Grammar {
    /// Reads a grammar.
    ///
    /// # Errors
    /// Names the line and what was wrong with it.
    pub(super) fn parse(source: &str) -> Parsed<Self> {
        let blocks = blocks(source)?;
        let mut reader = Reader { tables: Vec::new(), facts: Vec::new(), draws: Vec::new(), rules: Vec::new() };
        for block in &blocks {
            reader.declare(block).map_err(|e| format!("line {}: {e}", block.line))?;
        }
        let named: Vec<&Block> = blocks.iter().filter(|b| b.words[0] == "rule").collect();
        for (rule, block) in named.iter().enumerate() {
            reader.rule(rule, block)?;
        }
        match reader.rules.first() {
            Some(story) if story.name == "story" => {
                Ok(Self { tables: reader.tables, draws: reader.draws, rules: reader.rules })
            }
            _ => Err("the first rule must be `rule story`".to_owned()),
        }
    }
}

fn blocks(source: &str) -> Parsed<Vec<Block<'_>>> {
    let mut blocks: Vec<Block> = Vec::new();
    for (line, text) in (1..).zip(source.lines()) {
        if text.trim().is_empty() || text.starts_with('#') {
            continue;
        }
        match (text.strip_prefix("  "), blocks.last_mut()) {
            (None, _) => {
                blocks.push(Block { line, words: text.split_whitespace().collect(), body: Vec::new() });
            }
            (Some(text), Some(block)) => block.body.push((line, text)),
            (Some(_), None) => return Err(format!("line {line}: an indented line needs a header above it")),
        }
    }
    Ok(blocks)
}

struct Reader {
    tables: Vec<Table>,
    facts: Vec<Facts>,
    draws: Vec<Draw>,
    rules: Vec<Rule>,
}

impl Reader {
    fn declare(&mut self, block: &Block) -> Parsed<()> {
        match block.words.as_slice() {
            ["words", name] => self.words(name, &block.body),
            ["facts", name, "of", parent] => self.facts(name, parent, &block.body),
            ["draw", name, "from", table, options @ ..] => self.draw(name, table, options),
            ["rule", name] => {
                let choice = Distribution::zipf(0..block.body.len().max(1), RULE_EXPONENT);
                self.rules.push(Rule { name: (*name).to_owned(), alternatives: Vec::new(), choice });
                Ok(())
            }
            other => Err(format!("want words, facts, draw or rule, found `{}`", other.join(" "))),
        }
    }

    fn words(&mut self, name: &str, body: &[(usize, &str)]) -> Parsed<()> {
        let mut table = Table { name: name.to_owned(), words: Vec::new() };
        for (_, text) in body {
            let (gender, list) = match text.split_once(": ") {
                Some(("she", list)) => (Some(Gender::She), list),
                Some(("he", list)) => (Some(Gender::He), list),
                Some((other, _)) => return Err(format!("want `she:` or `he:`, found `{other}:`")),
                None => (None, *text),
            };
            for entry in entries(list) {
                let word = Word::parse(entry, gender);
                if table.find(&word.plain).is_some() {
                    return Err(format!("`{}` is in table {name} twice", word.plain));
                }
                table.words.push(word);
            }
        }
        self.tables.push(table);
        Ok(())
    }

    fn facts(&mut self, name: &str, parent: &str, body: &[(usize, &str)]) -> Parsed<()> {
        let parent = self.table(parent)?;
        let mut table = Table { name: name.to_owned(), words: Vec::new() };
        let mut rows = vec![Vec::new(); self.tables[parent].words.len()];
        for (line, text) in body {
            let (of, list) = text.split_once(": ").ok_or(format!("line {line}: want `word: word, …`"))?;
            let of = self.tables[parent].find(of).ok_or(format!("line {line}: no word `{of}`"))?;
            for word in entries(list).map(|entry| Word::parse(entry, None)) {
                let at = table.find(&word.plain).unwrap_or(table.words.len());
                if at == table.words.len() {
                    table.words.push(word);
                }
                rows[of].push(at);
            }
        }
        if let Some(missing) = rows.iter().position(Vec::is_empty) {
            return Err(format!("no row for `{}`", self.tables[parent].words[missing].plain));
        }
        self.facts.push(Facts { table: self.tables.len(), parent, rows });
        self.tables.push(table);
        Ok(())
    }

    /// `draw NAME from TABLE [given DRAW] [top N]`.
    fn draw(&mut self, name: &str, table: &str, options: &[&str]) -> Parsed<()> {
        let table = self.table(table)?;
        let all = self.tables[table].words.len();
        let (given, top) = match options {
            [] => (None, all),
            ["top", n] => (None, count(n)?),
            ["given", parent] => (Some(self.find_draw(parent)?), all),
            ["given", parent, "top", n] => (Some(self.find_draw(parent)?), count(n)?),
            other => return Err(format!("want `given DRAW` and `top N`, found `{}`", other.join(" "))),
        };
        let distributions = match given {
            None => vec![Distribution::zipf(0..top.min(all), RULE_EXPONENT)],
            Some(parent) => self.conditional(name, table, self.draws[parent].table, top)?,
        };
        self.draws.push(Draw { name: name.to_owned(), table, given, distributions });
        Ok(())
    }

    /// A distribution for each word of `parent`: its row of facts, or `top` words that a hash of both names picks.
    fn conditional(&self, name: &str, table: usize, parent: usize, top: usize) -> Parsed<Vec<Distribution>> {
        if let Some(facts) = self.facts.iter().find(|f| f.table == table) {
            if facts.parent != parent {
                return Err(format!("`{}` is known of another table's words", self.tables[table].name));
            }
            let rows = facts.rows.iter().map(|row| row.iter().copied().take(top));
            return Ok(rows.map(|row| Distribution::zipf(row, DRAW_EXPONENT)).collect());
        }
        let row = |(i, word): (usize, &Word)| {
            let others = (0..self.tables[table].words.len()).filter(|w| table != parent || *w != i);
            Distribution::shuffled(&format!("{name} of {}", word.plain), others.collect(), top, DRAW_EXPONENT)
        };
        Ok(self.tables[parent].words.iter().enumerate().map(row).collect())
    }

    fn rule(&mut self, rule: usize, block: &Block) -> Parsed<()> {
        for (line, text) in &block.body {
            let mut template = Template { reader: self, rule, rest: text };
            let parsed = template.sequence(false);
            let rest = template.rest;
            let alternative = parsed.map_err(|e| format!("line {line}: {e}, before `{rest}`"))?;
            self.rules[rule].alternatives.push(alternative);
        }
        if block.body.is_empty() {
            return Err(format!("line {}: a rule needs an alternative", block.line));
        }
        Ok(())
    }

    fn table(&self, name: &str) -> Parsed<usize> {
        self.tables.iter().position(|t| t.name == name).ok_or(format!("no table `{name}` above"))
    }

    fn find_draw(&self, name: &str) -> Parsed<usize> {
        self.draws.iter().position(|d| d.name == name).ok_or(format!("no draw `{name}`"))
    }
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

fn count(text: &str) -> Parsed<usize> {
    text.parse().ok().filter(|n| *n > 0).ok_or(format!("want a positive number, found `{text}`"))
}

/// Reads one alternative from left to right.
struct Template<'r, 't> {
    reader: &'r mut Reader,
    rule: usize,
    rest: &'t str,
}

impl Template<'_, '_> {
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
        let (mut terms, mut least, mut most) = (Vec::new(), 0, 0);
        for (at, name) in inside.split(['+', '-']).scan(0, |at, name| {
            *at += name.len() + 1;
            Some((*at - name.len() - 1, name))
        }) {
            let sign = if at > 0 && inside.as_bytes()[at - 1] == b'-' { -1 } else { 1 };
            let draw = self.reader.find_draw(name)?;
            let words = &self.reader.tables[self.reader.draws[draw].table].words;
            let value = |word: &Word| NUMERALS.iter().position(|n| *n == word.plain).map(|v| sign * v as i32);
            let values: Option<Vec<i32>> = words.iter().map(value).collect();
            let values = values.ok_or(format!("`{name}` is not a number"))?;
            least += values.iter().min().copied().unwrap_or(0);
            most += values.iter().max().copied().unwrap_or(0);
            terms.push((draw, sign));
        }
        if least < 2 || most >= NUMERALS.len() as i32 {
            return Err(format!("`{inside}` runs from {least} to {most}; want two to twelve"));
        }
        Ok(Symbol::Sum { terms })
    }

    fn reference(&mut self) -> Parsed<Symbol> {
        let name = self.bracket('>')?.to_owned();
        let rule = self.reader.rules.iter().position(|r| r.name == name).ok_or(format!("no rule `{name}`"))?;
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

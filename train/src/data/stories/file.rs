//! Reads data/stories.grammar, whose head explains the syntax.
//!
//! Knows no probabilities beyond the two Zipf exponents. The invariant: what it returns satisfies the invariants of
//! [`Grammar`]; a mistake is an error that names the line.

use super::distribution::Distribution;
use super::grammar::{Draw, Grammar, Rule};
use super::table::{Gender, Table, Word};
use super::template::Template;

/// Alternatives of a rule: flat enough that each is seen often, steep enough that they are worth learning.
pub(super) const RULE_EXPONENT: f64 = 0.25;
/// Words of a draw: a little flatter than the classic law, for the lists are short.
const DRAW_EXPONENT: f64 = 0.75;

pub(super) type Parsed<T> = Result<T, String>;

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
        let mut reader =
            Reader { tables: Vec::new(), facts: Vec::new(), draws: Vec::new(), rules: Vec::new() };
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

/// What has been read so far.
pub(super) struct Reader {
    pub(super) tables: Vec<Table>,
    facts: Vec<Facts>,
    pub(super) draws: Vec<Draw>,
    pub(super) rules: Vec<Rule>,
}

impl Reader {
    fn declare(&mut self, block: &Block) -> Parsed<()> {
        self.check_new(&block.words)?;
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

    /// Refuses a name that has been given to another of its kind.
    fn check_new(&self, header: &[&str]) -> Parsed<()> {
        let taken = match header {
            ["words" | "facts", name, ..] => self.table(name).is_ok(),
            ["draw", name, ..] => self.find_draw(name).is_ok(),
            ["rule", name, ..] => self.rules.iter().any(|rule| rule.name == *name),
            _ => false,
        };
        if taken { Err(format!("`{}` is there already", header[1])) } else { Ok(()) }
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
            let alternative = Template::read(self, rule, text).map_err(|e| format!("line {line}: {e}"))?;
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

    pub(super) fn find_draw(&self, name: &str) -> Parsed<usize> {
        self.draws.iter().position(|d| d.name == name).ok_or(format!("no draw `{name}`"))
    }
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

fn count(text: &str) -> Parsed<usize> {
    text.parse().ok().filter(|n| *n > 0).ok_or(format!("want a positive number, found `{text}`"))
}

//! A table of words and the forms in which a sentence may need them.
//!
//! Knows no probabilities. The invariant: every form that a table has, it has for every word.

/// A form of a word, by its suffix in the grammar: `{fox}`, `{Fox}`, `{fox.a}`, `{fox.s}`, `{hero.he}`, …
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// `{x}`: the word itself.
    Plain,
    /// `{X}`: with a capital.
    Capital,
    /// `{x.a}`: with its indefinite article.
    Article,
    /// `{x.s}`: plural.
    Plural,
    /// `{x.he}`: he or she.
    He,
    /// `{X.he}`: He or She.
    CapitalHe,
    /// `{x.him}`: him or her.
    Him,
    /// `{x.his}`: his or her.
    His,
    /// `{x.boy}`: boy or girl.
    Boy,
}

impl Form {
    /// Reads a suffix; `capital` says that the name before it began with a capital.
    pub(super) fn from_suffix(suffix: Option<&str>, capital: bool) -> Option<Self> {
        match (suffix, capital) {
            (None, false) => Some(Self::Plain),
            (None, true) => Some(Self::Capital),
            (Some("a"), false) => Some(Self::Article),
            (Some("s"), false) => Some(Self::Plural),
            (Some("he"), false) => Some(Self::He),
            (Some("he"), true) => Some(Self::CapitalHe),
            (Some("him"), false) => Some(Self::Him),
            (Some("his"), false) => Some(Self::His),
            (Some("boy"), false) => Some(Self::Boy),
            _ => None,
        }
    }

    /// Whether the form tells the word's gender and not the word.
    pub(super) fn needs_gender(self) -> bool {
        matches!(self, Self::He | Self::CapitalHe | Self::Him | Self::His | Self::Boy)
    }
}

/// Which pronouns a word takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gender {
    /// she, her, girl
    She,
    /// he, him, his, boy
    He,
}

/// One entry: `berry/berries` has its own plural, `apple` adds an s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) plain: String,
    plural: String,
    capital: String,
    article: String,
    pub(super) gender: Option<Gender>,
}

impl Word {
    /// Reads `word` or `word/plural`.
    pub(super) fn parse(entry: &str, gender: Option<Gender>) -> Self {
        let (plain, plural) = match entry.split_once('/') {
            Some((plain, plural)) => (plain.to_owned(), plural.to_owned()),
            None => (entry.to_owned(), format!("{entry}s")),
        };
        let article = if plain.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let mut letters = plain.chars();
        let capital = letters.next().map(|c| c.to_uppercase().chain(letters).collect()).unwrap_or_default();
        Self { article: format!("{article} {plain}"), capital, plural, gender, plain }
    }

    /// The word in `form`. The grammar has checked that only tables with genders are asked for pronouns.
    pub(super) fn form(&self, form: Form) -> &str {
        let she = self.gender == Some(Gender::She);
        match form {
            Form::Plain => &self.plain,
            Form::Capital => &self.capital,
            Form::Article => &self.article,
            Form::Plural => &self.plural,
            Form::He => ["he", "she"][usize::from(she)],
            Form::CapitalHe => ["He", "She"][usize::from(she)],
            Form::Him => ["him", "her"][usize::from(she)],
            Form::His => ["his", "her"][usize::from(she)],
            Form::Boy => ["boy", "girl"][usize::from(she)],
        }
    }
}

/// A named list of distinct words.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) words: Vec<Word>,
}

impl Table {
    /// The index of a word by its plain form.
    pub(super) fn find(&self, plain: &str) -> Option<usize> {
        self.words.iter().position(|w| w.plain == plain)
    }

    /// Whether every word has pronouns.
    pub(super) fn has_gender(&self) -> bool {
        self.words.iter().all(|w| w.gender.is_some())
    }
}

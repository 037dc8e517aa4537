//! The corpus of a recipe as one stream of documents, and as one text for the scorer.
//!
//! Knows no tokens and no file format: each format is a [`Pieces`] behind one door. Memory is bounded by the
//! longest piece, not by the corpus; the order is the order of the recipe's list.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::digest::{self, Digester};
use super::jsonl::JsonLines;
use super::parquet::ParquetColumn;
use super::source::Source;
use super::stories::{StoriesSpec, Teller};
use super::text::{LONGEST, TextPieces, next_cut};
use crate::{Error, Result};

/// The field of JSON Lines and the column of Parquet that hold the text unless a recipe says otherwise.
pub const DEFAULT_FIELD: &str = "text";

/// A document, or a part of a long one.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The text, as it stands in the source.
    pub text: String,
    /// Whether a document begins with this piece.
    pub starts: bool,
    /// Whether a document ends with this piece.
    pub ends: bool,
}

impl Piece {
    /// A document in one piece.
    pub(super) fn whole(text: String) -> Self {
        Self { text, starts: true, ends: true }
    }
}

/// How far a source is read. The beginning is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reached {
    /// Bytes of the text, or rows of a table.
    pub at: u64,
    /// Lines of JSON Lines.
    pub lines: u64,
    /// Entries without a text (nulls) met so far.
    pub skipped: u64,
    /// Whether `at` lies within a document.
    pub inside: bool,
}

/// How far a corpus is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    /// Sources that are done.
    sources: usize,
    /// Bytes of these.
    before: u64,
    /// Nulls of these.
    skipped: u64,
    /// How far the next one is read.
    reached: Reached,
}

/// What a format's reader offers.
pub(super) trait Pieces: Send {
    /// The next piece, or `None` after the last. Not called again after an error.
    fn next_piece(&mut self) -> Result<Option<Piece>>;

    /// How much of the source is read, in bytes of its file.
    fn bytes_read(&self) -> u64;

    /// Where another reader goes on with what follows the last piece.
    fn reached(&self) -> Reached;

    /// Entropy of the whole source in nats, where it is known.
    fn nats(&self) -> Option<f64> {
        None
    }
}

/// Generated stories, one document each, with the blank line that ends it: a model of them has to know where one ends.
struct StoryPieces {
    teller: Teller,
    /// Size that was announced; the text is a part of a story longer.
    bytes: u64,
}

impl StoryPieces {
    /// Those behind what was `reached`. What comes before is told again, to nobody.
    fn new(spec: &StoriesSpec, reached: Reached) -> Self {
        let mut teller = Teller::new(spec);
        while teller.told() < reached.at && teller.tell().is_some() {}
        Self { teller, bytes: spec.bytes as u64 }
    }
}

impl Pieces for StoryPieces {
    fn next_piece(&mut self) -> Result<Option<Piece>> {
        Ok(self.teller.tell().map(Piece::whole))
    }

    fn bytes_read(&self) -> u64 {
        self.teller.told().min(self.bytes)
    }

    fn reached(&self) -> Reached {
        Reached { at: self.teller.told(), ..Reached::default() }
    }

    fn nats(&self) -> Option<f64> {
        Some(self.teller.nats())
    }
}

/// The digest of generated stories: the text, not the spelling, since another version of the grammar is another corpus.
fn digest_of_stories(spec: &StoriesSpec, seen: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<[u8; 32]> {
    /// Between two reports.
    const SOME: u64 = 64 << 20;
    let (mut teller, mut digester, mut reported) = (Teller::new(spec), Digester::default(), 0);
    while let Some(story) = teller.tell() {
        digester.update(story.as_bytes());
        if teller.told() - reported >= SOME {
            reported = teller.told();
            if seen(reported).is_break() {
                return Err(Error::Interrupted);
            }
        }
    }
    Ok(digester.finish())
}

/// Sources and how their documents are found.
///
/// - A text file is one document, or with a `separator` the documents between its occurrences; the separator and
///   the line ends around it belong to no document, and documents of white space alone are left out.
/// - A document of a text file that is longer than 64 KiB comes in pieces, cut after the first blank line beyond
///   that (at the latest after 1 MiB). Each piece is tokenized by itself, so that the work is parallel and memory
///   bounded. What that changes against tokenizing the file as one string: tokens that would span a cut don't
///   (about one in 16,000), and a tokenizer that puts a space before a text puts one at each cut. Begin and end
///   marks are put at the ends of documents only.
/// - A line of JSON Lines, a row of Parquet and a generated story is a document in one piece, unless it is longer than 1 MiB: then
///   it comes in pieces as a text file does.
#[derive(Debug, Clone, PartialEq)]
pub struct Corpus {
    sources: Vec<Source>,
    field: String,
    separator: Option<String>,
}

impl Corpus {
    /// A corpus of `sources` whose texts are in `field` (for .jsonl and .parquet; default `"text"`), cut into
    /// documents at `separator` (for text files).
    ///
    /// # Errors
    /// An empty separator, which is found everywhere, and an empty list.
    pub fn new(sources: Vec<Source>, field: Option<&str>, separator: Option<&str>) -> Result<Self> {
        if separator == Some("") {
            return Err(Error::Config(
                "separator: an empty text separates nothing; leave the key out, or give the mark between \
                 documents, such as \"<|endoftext|>\""
                    .to_owned(),
            ));
        }
        if sources.is_empty() {
            return Err(Error::Config("data: the list is empty; name at least one file".to_owned()));
        }
        let field = field.unwrap_or(DEFAULT_FIELD).to_owned();
        Ok(Self { sources, field, separator: separator.map(str::to_owned) })
    }

    /// All documents, source by source.
    pub fn documents(&self) -> Documents<'_> {
        self.documents_from(Place::default())
    }

    /// Those that follow `place`.
    pub(super) fn documents_from(&self, place: Place) -> Documents<'_> {
        Documents { corpus: self, place, current: None, long: None, nats: Some(0.0), failed: false }
    }

    /// Size of all sources, in bytes of their files. [`Documents::bytes_read`] ends there.
    ///
    /// # Errors
    /// A file that can't be looked at.
    pub fn bytes(&self) -> Result<u64> {
        self.sources.iter().map(Source::bytes).sum()
    }

    /// What decides the documents, in a form to be hashed: the contents of the sources in order (their names
    /// don't matter), the field and the separator. `seen` is told how many bytes were read, and may break.
    pub(super) fn identity(&self, seen: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<Vec<Vec<u8>>> {
        let mut before = 0;
        let mut parts = vec![self.field.clone().into_bytes()];
        parts.push(self.separator.as_ref().map_or(vec![0], |s| [&[1], s.as_bytes()].concat()));
        for source in &self.sources {
            let mut seen = |read| seen(before + read);
            let (kind, digest) = match source {
                Source::Text(path) => (0, digest::of_file(path, &mut seen)?),
                Source::Jsonl(path) => (1, digest::of_file(path, &mut seen)?),
                Source::Parquet(path) => (2, digest::of_file(path, &mut seen)?),
                Source::Stories(spec) => (3, digest_of_stories(spec, &mut seen)?),
            };
            before += source.bytes()?;
            parts.push([&[kind], &digest[..]].concat());
        }
        Ok(parts)
    }

    /// Whether some of it are rows of tables.
    pub(super) fn has_rows(&self) -> bool {
        self.sources.iter().any(|source| matches!(source, Source::Jsonl(_) | Source::Parquet(_)))
    }

    /// The sources, in order.
    pub(super) fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The sources, for messages: the first few and how many more.
    pub(super) fn names(&self) -> String {
        const NAMED: usize = 3;
        let mut names: Vec<_> = self.sources.iter().take(NAMED).map(Source::to_string).collect();
        if self.sources.len() > NAMED {
            names.push(format!("{} more", self.sources.len() - NAMED));
        }
        names.join(", ")
    }

    /// The error for a corpus in which nothing was found.
    pub(super) fn empty(&self, skipped: u64) -> Error {
        let nulls = if skipped == 0 { String::new() } else { format!(" ({skipped} nulls were skipped)") };
        Error::Data(format!("{}: no text in it{nulls}; training and scoring need some", self.names()))
    }

    fn open(&self, source: &Source, from: Reached) -> Result<Box<dyn Pieces>> {
        Ok(match source {
            Source::Text(path) => Box::new(TextPieces::open(path, self.separator.as_deref(), from)?),
            Source::Jsonl(path) => Box::new(JsonLines::open(path, &self.field, from)?),
            Source::Parquet(path) => Box::new(ParquetColumn::open(path, &self.field, from)?),
            Source::Stories(spec) => Box::new(StoryPieces::new(spec, from)),
        })
    }
}

/// The documents of a corpus, read as they are asked for. Ends after the first error.
pub struct Documents<'a> {
    corpus: &'a Corpus,
    /// The sources that are done, and how far the one after them was when it was opened.
    place: Place,
    current: Option<Box<dyn Pieces>>,
    /// A document that is too long to be handed out whole, and how much of it was.
    long: Option<(String, usize)>,
    /// Entropy of the sources that are done, while it is known of all of them.
    nats: Option<f64>,
    failed: bool,
}

impl Documents<'_> {
    /// How much is read, in bytes of the sources' files.
    pub fn bytes_read(&self) -> u64 {
        self.place.before + self.current.as_ref().map_or(0, |pieces| pieces.bytes_read())
    }

    /// Entries without a text (nulls of JSON Lines and Parquet) met so far.
    pub fn skipped(&self) -> u64 {
        self.place.skipped + self.current.as_ref().map_or(0, |pieces| pieces.reached().skipped)
    }

    /// Entropy in nats of the sources that are done; `None` when it is unknown of one of them.
    pub(super) fn nats(&self) -> Option<f64> {
        self.nats
    }

    /// Where another reader goes on with what follows the last piece; `None` within a document that no reader begins in.
    pub(super) fn place(&self) -> Option<Place> {
        let reached = self.current.as_ref().map_or(self.place.reached, |pieces| pieces.reached());
        self.long.is_none().then_some(Place { reached, ..self.place })
    }

    fn next_piece(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some((text, at)) = self.long.take() {
                return Ok(Some(self.part_of(text, at)));
            }
            if let Some(pieces) = &mut self.current {
                match pieces.next_piece()? {
                    Some(piece) if piece.text.len() > LONGEST => self.long = Some((piece.text, 0)),
                    Some(piece) => return Ok(Some(piece)),
                    None => self.close(),
                }
                continue;
            }
            let Some(source) = self.corpus.sources.get(self.place.sources) else { return Ok(None) };
            self.current = Some(self.corpus.open(source, self.place.reached)?);
        }
    }

    /// The next piece of a long document, of which `at` bytes were handed out; the rest is kept.
    fn part_of(&mut self, text: String, at: usize) -> Piece {
        let rest = &text[at..];
        let len = next_cut(rest);
        let piece = Piece { text: rest[..len].to_owned(), starts: at == 0, ends: len == rest.len() };
        if !piece.ends {
            self.long = Some((text, at + len));
        }
        piece
    }

    /// The source is done.
    fn close(&mut self) {
        if let Some(pieces) = self.current.take() {
            self.nats = self.nats.zip(pieces.nats()).map(|(before, nats)| before + nats);
            self.place = Place {
                sources: self.place.sources + 1,
                before: self.place.before + pieces.bytes_read(),
                skipped: self.place.skipped + pieces.reached().skipped,
                reached: Reached::default(),
            };
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_piece();
        self.failed = next.is_err();
        next.transpose()
    }
}

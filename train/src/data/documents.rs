//! The corpus of a recipe as one stream of documents, and as one text for the scorer.
//!
//! Knows no tokens and no file format: each format is a [`Pieces`] behind one door. Memory is bounded by the
//! longest piece, not by the corpus; the order is the order of the recipe's list.

use super::digest;
use super::jsonl::JsonLines;
use super::parquet::ParquetColumn;
use super::source::Source;
use super::stories::{SEPARATOR, Stories, StoriesSpec};
use super::text::TextPieces;
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

/// What a format's reader offers.
pub(super) trait Pieces: Send {
    /// The next piece, or `None` after the last. Not called again after an error.
    fn next_piece(&mut self) -> Result<Option<Piece>>;

    /// How much of the source is read, in bytes of its file.
    fn bytes_read(&self) -> u64;

    /// Entries without a text (nulls) met so far.
    fn skipped(&self) -> u64 {
        0
    }

    /// Entropy of the whole source in nats, where it is known.
    fn nats(&self) -> Option<f64> {
        None
    }
}

/// Generated stories, one document each, with the blank line that ends it: a model of them has to know where one ends.
struct StoryPieces {
    stories: Stories,
    /// Bytes of the text handed out.
    at: usize,
    /// Size that was announced; the text is a part of a story longer.
    bytes: usize,
}

impl StoryPieces {
    fn new(spec: &StoriesSpec) -> Self {
        Self { stories: spec.generate(), at: 0, bytes: spec.bytes }
    }
}

impl Pieces for StoryPieces {
    fn next_piece(&mut self) -> Result<Option<Piece>> {
        let story = self.stories.text[self.at..].split_inclusive(SEPARATOR).next().map(str::to_owned);
        self.at += story.as_ref().map_or(0, String::len);
        Ok(story.map(Piece::whole))
    }

    fn bytes_read(&self) -> u64 {
        self.at.min(self.bytes) as u64
    }

    fn nats(&self) -> Option<f64> {
        Some(self.stories.nats)
    }
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
/// - A line of JSON Lines, a row of Parquet and a generated story is a document in one piece, whatever its length.
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
        Documents {
            corpus: self,
            opened: 0,
            current: None,
            before: 0,
            skipped: 0,
            nats: Some(0.0),
            failed: false,
        }
    }

    /// Size of all sources, in bytes of their files. [`Documents::bytes_read`] ends there.
    ///
    /// # Errors
    /// A file that can't be looked at.
    pub fn bytes(&self) -> Result<u64> {
        self.sources.iter().map(Source::bytes).sum()
    }

    /// What decides the documents, in a form to be hashed: the contents of the sources in order (their names
    /// don't matter), the field and the separator.
    pub(super) fn identity(&self) -> Result<Vec<Vec<u8>>> {
        let mut parts = vec![self.field.clone().into_bytes()];
        parts.push(self.separator.as_ref().map_or(vec![0], |s| [&[1], s.as_bytes()].concat()));
        for source in &self.sources {
            let (kind, digest) = match source {
                Source::Text(path) => (0, digest::of_file(path)?),
                Source::Jsonl(path) => (1, digest::of_file(path)?),
                Source::Parquet(path) => (2, digest::of_file(path)?),
                // The text, not the spelling: another version of the grammar is another corpus.
                Source::Stories(spec) => (3, digest::of_bytes(spec.generate().text.as_bytes())),
            };
            parts.push([&[kind], &digest[..]].concat());
        }
        Ok(parts)
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

    fn open(&self, source: &Source) -> Result<Box<dyn Pieces>> {
        Ok(match source {
            Source::Text(path) => Box::new(TextPieces::open(path, self.separator.as_deref())?),
            Source::Jsonl(path) => Box::new(JsonLines::open(path, &self.field)?),
            Source::Parquet(path) => Box::new(ParquetColumn::open(path, &self.field)?),
            Source::Stories(spec) => Box::new(StoryPieces::new(spec)),
        })
    }
}

/// The documents of a corpus, read as they are asked for. Ends after the first error.
pub struct Documents<'a> {
    corpus: &'a Corpus,
    opened: usize,
    current: Option<Box<dyn Pieces>>,
    /// Bytes and nulls of the sources that are done.
    before: u64,
    skipped: u64,
    /// Entropy of the sources that are done, while it is known of all of them.
    nats: Option<f64>,
    failed: bool,
}

impl Documents<'_> {
    /// How much is read, in bytes of the sources' files.
    pub fn bytes_read(&self) -> u64 {
        self.before + self.current.as_ref().map_or(0, |pieces| pieces.bytes_read())
    }

    /// Entries without a text (nulls of JSON Lines and Parquet) met so far.
    pub fn skipped(&self) -> u64 {
        self.skipped + self.current.as_ref().map_or(0, |pieces| pieces.skipped())
    }

    /// Entropy in nats of the sources that are done; `None` when it is unknown of one of them.
    pub(super) fn nats(&self) -> Option<f64> {
        self.nats
    }

    fn next_piece(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some(pieces) = &mut self.current {
                if let Some(piece) = pieces.next_piece()? {
                    return Ok(Some(piece));
                }
                self.before += pieces.bytes_read();
                self.skipped += pieces.skipped();
                self.nats = self.nats.zip(pieces.nats()).map(|(before, nats)| before + nats);
                self.current = None;
            }
            let Some(source) = self.corpus.sources.get(self.opened) else { return Ok(None) };
            self.current = Some(self.corpus.open(source)?);
            self.opened += 1;
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

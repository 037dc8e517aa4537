//! Conversations become windows of whole documents, in which the answers are learned.
//!
//! Knows no model. Invariant: as with text ([`super::tokenize`]), the windows depend on the key and on nothing else.

mod layout;
mod pack;
mod records;
mod windows;

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use qat_infer::chat::{ChatTemplate, Message};
use qat_infer::files::load_tokenizer;
use rayon::prelude::*;
use tokenizers::Tokenizer;

use self::layout::Row;
use self::records::{Record, Records};
pub use self::windows::Lost;
use self::windows::{Document, Windows, documents_in, spelled};
use super::documents::Corpus;
use super::packed::{FIRST, LEARNED};
use super::part::Part;
use super::token_file::{Header, MARKED, Tokens};
use super::token_writer::TokenWriter;
use super::tokenize::{Origin, Progress, Stage, Watch, found_or_made, identity, key_of, mark};
use crate::{Error, Result, ranks::Ranks};

/// Rows that are read at a time. Bounds memory; the windows don't depend on it.
const ROWS: usize = 2048;

/// When templates that write the date are rendered: a fixed day, so that the windows of a run are those of another.
const DAY: u64 = 1_721_952_000;

/// What turns a conversation into a text.
#[derive(Debug, Clone)]
pub enum Frame {
    /// The model's own template, or one of the user's.
    Template(Box<ChatTemplate>),
    /// A question and its answer, one after the other.
    Plain,
}

impl Frame {
    /// The template of the model whose tokenizer is in `folder`, or what `spelling` asks for: `model`, `plain`, or a file.
    ///
    /// # Errors
    /// There is no template, or none that can be read.
    pub fn of(spelling: &str, folder: &Path) -> Result<Self> {
        let wrong = |problem: &str| Error::Config(format!("data.template = {spelling:?}: {problem}"));
        let template = match spelling {
            "plain" => return Ok(Self::Plain),
            "model" => ChatTemplate::of(folder)?.ok_or_else(|| {
                wrong("the model has no chat template; name a file with one, or write questions and answers one after the other with \"plain\"")
            })?,
            file => {
                let path = Path::new(file);
                let source = std::fs::read_to_string(path)
                    .map_err(|e| wrong(&format!("want model, plain or the file of a template: {e}")))?;
                let config = folder.join(qat_infer::files::TOKENIZER_CONFIG_FILE);
                let config = if config.is_file() { qat_infer::files::read_json(&config)? } else { serde_json::json!({}) };
                ChatTemplate::new(path, source, &config)?
            }
        };
        Ok(Self::Template(Box::new(template.at(DAY))))
    }
}

/// Everything that decides a file of windows.
#[derive(Debug, Clone)]
pub struct ChatTokenization<'a> {
    /// Where the rows are.
    pub corpus: &'a Corpus,
    /// The `tokenizer.json`.
    pub tokenizer: &'a Path,
    /// Vocabulary size of the model; no id reaches it.
    pub vocab_size: usize,
    /// How conversations are written.
    pub frame: &'a Frame,
    /// Whether all of a conversation is learned, and not the answers alone.
    pub learn_all: bool,
    /// Id put before documents that no template writes.
    pub bos: Option<u32>,
    /// Id put after them.
    pub eos: Option<u32>,
    /// Tokens of a window: its inputs and one more.
    pub window: usize,
}

impl ChatTokenization<'_> {
    /// The windows, from the file `KEY.tokens` in the folder `cache`, which is made if it isn't there or is damaged; then what was
    /// lost comes with it. Each of `ranks` encodes a share of the rows; the first puts them into windows, and alone knows what was lost.
    ///
    /// # Errors
    /// A row that is no conversation or whose answers can't be found, with file and line; everything else that can be wrong with the
    /// sources, the tokenizer and the folder; another rank has failed.
    pub fn tokens_on(
        &self,
        ranks: &Ranks,
        cache: &Path,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(Tokens, Origin, Option<Lost>)> {
        let tokenizer = load_tokenizer(self.tokenizer, self.vocab_size)?;
        let key = ranks.agree(self.key(progress))?;
        let make =
            |ranks: &Ranks, part, progress: &mut Watch| self.make((&tokenizer, ranks), key, part, progress);
        found_or_made(ranks, (cache, key), progress, &make)
    }

    fn key(&self, progress: &mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<[u8; 32]> {
        let tokenizer =
            std::fs::read(self.tokenizer).map_err(|e| Error::io("cannot read", self.tokenizer, e))?;
        let frame = match self.frame {
            Frame::Template(template) => template.identity(),
            Frame::Plain => Vec::new(),
        };
        let mut parts = vec![
            MARKED.to_le_bytes().to_vec(),
            (self.vocab_size as u64).to_le_bytes().to_vec(),
            (self.window as u64).to_le_bytes().to_vec(),
            vec![u8::from(self.learn_all)],
            mark(self.bos),
            mark(self.eos),
            frame,
            tokenizer,
        ];
        parts.extend(identity(self.corpus, progress)?);
        Ok(key_of(parts))
    }

    fn make(
        &self,
        (tokenizer, ranks): (&Tokenizer, &Ranks),
        key: [u8; 32],
        part: Option<Part>,
        progress: &mut Watch,
    ) -> Result<Lost> {
        let vocab_size = self.vocab_size as u64;
        let counts =
            Header { vocab_size, tokens: 0, documents: 0, skipped: 0, text_bytes: 0, key, marked: true };
        let begun = part.map(|part| TokenWriter::begin(part, counts)).transpose();
        let mut windows = ranks.agree(begun)?.map(|writer| Windows::new(self, writer));
        let (bytes_total, mut bytes_done, mut tokens) = (self.corpus.bytes()?, 0, 0);
        let encoder = Encoder::new(self, tokenizer);
        for source in self.corpus.sources() {
            let mut records = Records::open(source)?;
            let place = PathBuf::from(source.to_string());
            loop {
                let rows = some_rows(&mut records)?;
                if rows.is_empty() {
                    break;
                }
                let share = &rows[ranks.share(rows.len())];
                let documents: Vec<_> = share.par_iter().map(|row| encoder.documents(&place, row)).collect();
                let documents = documents.into_iter().collect::<Result<Vec<_>>>();
                let all = ranks.concat(documents.map(|documents| spelled(&documents.concat())))?;
                let mut written = Ok(());
                for document in documents_in(&all) {
                    tokens += document.ids.len() as u64;
                    if let Some(windows) = &mut windows {
                        written = written.and_then(|()| windows.add(document));
                    }
                }
                let is_stopped =
                    progress(Progress { stage: Stage::Tokenizing, bytes_done, bytes_total, tokens })
                        .is_break();
                ranks.agree(if is_stopped { written.and(Err(Error::Interrupted)) } else { written })?;
            }
            bytes_done += source.bytes()?;
        }
        windows.map_or(Ok(Lost::default()), Windows::finish)
    }
}

fn some_rows(records: &mut Records) -> Result<Vec<Record>> {
    let mut rows = Vec::new();
    while rows.len() < ROWS {
        let Some(row) = records.next()? else { break };
        rows.push(row);
    }
    Ok(rows)
}

/// Turns rows into documents.
struct Encoder<'a> {
    how: &'a ChatTokenization<'a>,
    tokenizer: &'a Tokenizer,
    /// The texts of special tokens, one of which may end a turn.
    ends: Vec<String>,
}

impl<'a> Encoder<'a> {
    fn new(how: &'a ChatTokenization<'a>, tokenizer: &'a Tokenizer) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let ends = added.into_values().filter(|token| token.special).map(|token| token.content).collect();
        Self { how, tokenizer, ends }
    }

    fn documents(&self, place: &Path, (at, object): &Record) -> Result<Vec<Document>> {
        let wrong = |problem: String| Error::file(place, format!("{at}: {problem}"));
        let rows = layout::read(object).map_err(wrong)?;
        rows.into_iter().map(|row| self.document(row).map_err(wrong)).collect()
    }

    fn document(&self, row: Row) -> Result<Document, String> {
        match (row, self.how.frame) {
            (Row::Text(text), _) => self.encode(&text, std::slice::from_ref(&(0..text.len())), true),
            (Row::Talk(messages), Frame::Template(template)) => self.talk(&messages, template),
            (Row::Talk(messages), Frame::Plain) => self.plain(&messages),
        }
    }

    fn talk(&self, messages: &[Message], template: &ChatTemplate) -> Result<Document, String> {
        if self.how.learn_all {
            let text = template.render(messages, false).map_err(|e| e.to_string())?;
            return self.encode(&text, std::slice::from_ref(&(0..text.len())), false);
        }
        let written = template.with_answers(messages, &self.ends).map_err(|e| e.to_string())?;
        let written = written.ok_or(
            "the chat template rewrites this conversation, so that its answers can't be found in it; learn all of it with \
             data.learn = \"all\", or mark answers in a template of your own with {% generation %} (data.template = FILE)",
        )?;
        self.encode(&written.text, &written.answers, false)
    }

    fn plain(&self, messages: &[Message]) -> Result<Document, String> {
        let [question, answer] = messages else {
            return Err(format!(
                "data.template = \"plain\" writes a question and its answer, and here are {} messages; they need a chat template",
                messages.len()
            ));
        };
        let mut text = question.content.clone();
        if !text.is_empty() && !text.ends_with(char::is_whitespace) {
            text.push('\n');
        }
        let start = if self.how.learn_all { 0 } else { text.len() };
        text.push_str(&answer.content);
        self.encode(&text, std::slice::from_ref(&(start..text.len())), true)
    }

    /// `text` as tokens, of which those in `learned` are; between the marks of a document where no template writes them.
    fn encode(&self, text: &str, learned: &[Range<usize>], marks: bool) -> Result<Document, String> {
        let encoding = self.tokenizer.encode(text, false).map_err(|e| format!("can't be encoded: {e}"))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets()).map(|(id, (start, end))| {
            // A token that reaches into an answer is the first one of it; one that reaches out of it is not learned.
            let is_learned =
                learned.iter().any(|range| *start < range.end && *end > range.start && *end <= range.end);
            if is_learned { id | LEARNED } else { *id }
        });
        let bos = self.how.bos.filter(|_| marks);
        let eos = self.how.eos.filter(|_| marks).map(|id| id | LEARNED);
        let ids = bos.into_iter().chain(tokens).chain(eos).collect();
        Ok(Document { ids, text_bytes: text.len() as u64 })
    }
}

/// What windows hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// Documents.
    pub documents: u64,
    /// Tokens of documents.
    pub tokens: u64,
    /// Of these, targets that are learned.
    pub learned: u64,
    /// Tokens that fill windows.
    pub fill: u64,
    /// Documents that were longer than a window.
    pub cut: u64,
}

impl Census {
    /// Of the tokens of `windows`, with their marks.
    pub(super) fn of(tokens: impl Iterator<Item = u32>) -> Self {
        use super::packed::{CUT, FILL};
        let mut census = Self::default();
        for token in tokens {
            let has = |mark: u32| u64::from(token & mark != 0);
            census.documents += has(FIRST);
            census.tokens += 1 - has(FILL);
            census.learned += has(LEARNED) * (1 - has(FIRST));
            census.fill += has(FILL);
            census.cut += has(CUT);
        }
        census
    }
}

//! Text becomes tokens: documents in order, in parallel, into a token file that is made once.
//!
//! Knows no windows. Invariant: the ids depend on the key and on nothing else — not on threads, batches or file
//! names — so that a token file with the wanted key is the wanted one.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use qat_infer::files::load_tokenizer;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::documents::{Corpus, Documents, Piece, Place};
use super::part::Part;
use super::token_file::{Header, Tokens};
use super::token_writer::TokenWriter;
use crate::{Error, Result, ranks::Ranks};

/// Version of the rules by which text becomes ids, of text files and stories, and of rows, which once were never cut. Part of the key, so
/// that a file of other rules is never used.
const RULES: [u32; 2] = [1, 2];

/// Text that is encoded at a time, in bytes for each thread. Bounds memory; the ids don't depend on it.
const BATCH_BYTES: usize = 2 << 20;

/// Everything that decides a token file.
#[derive(Debug, Clone)]
pub struct Tokenization<'a> {
    /// The text.
    pub corpus: &'a Corpus,
    /// The `tokenizer.json`. Its template adds no tokens; the two marks below are all that is added.
    pub tokenizer: &'a Path,
    /// Vocabulary size of the model; no id reaches it.
    pub vocab_size: usize,
    /// Id put before each document.
    pub bos: Option<u32>,
    /// Id put after each document.
    pub eos: Option<u32>,
}

/// What is being done with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is read, to know which text it is.
    Reading,
    /// Another process is tokenizing it.
    Waiting,
    /// It becomes tokens.
    Tokenizing,
}

/// How far a tokenization is. The numbers of a stage only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes of the sources with which that is done.
    pub bytes_done: u64,
    /// Bytes of all sources.
    pub bytes_total: u64,
    /// Tokens so far.
    pub tokens: u64,
}

impl Progress {
    /// Nothing is done here.
    const WAITING: Self = Self { stage: Stage::Waiting, bytes_done: 0, bytes_total: 0, tokens: 0 };
}

/// Where the tokens came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file was there.
    Reused,
    /// The file was made now.
    Made,
    /// The file was made now, but for its beginning, which a run that was stopped or killed has left.
    Continued {
        /// Bytes of text that were tokenized by then.
        text_bytes: u64,
    },
    /// A file was there but could not be used, and was made anew.
    Remade {
        /// What was wrong with it.
        reason: String,
    },
}

impl Tokenization<'_> {
    /// The tokens, from the file `KEY.tokens` in the folder `cache`, which is made if it isn't there or is damaged.
    ///
    /// `progress` is called now and then; when it breaks, this ends with [`Error::Interrupted`]. What is tokenized by then is kept, and gone
    /// on with the next time, as it is after a kill. A file that another process is making is waited for.
    ///
    /// # Errors
    /// Everything that can be wrong with the sources and the tokenizer, a corpus without text, and a folder that
    /// can't be written.
    pub fn tokens(
        &self,
        cache: &Path,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(Tokens, Origin)> {
        self.tokens_on(&Ranks::alone(), cache, progress)
    }

    /// The same of several `ranks`, which encode a share of each batch; the first writes what all have encoded.
    ///
    /// # Errors
    /// As [`Self::tokens`]; another rank has failed.
    pub fn tokens_on(
        &self,
        ranks: &Ranks,
        cache: &Path,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(Tokens, Origin)> {
        let tokenizer = load_tokenizer(self.tokenizer, self.vocab_size)?;
        for (name, id) in [("bos", self.bos), ("eos", self.eos)] {
            if let Some(id) = id.filter(|&id| id as usize >= self.vocab_size) {
                let vocab = self.vocab_size;
                let problem =
                    format!("{name}: id {id} is outside the model's vocabulary (vocab_size {vocab})");
                return Err(Error::Config(problem));
            }
        }
        let key = ranks.agree(self.key(progress))?;
        let make =
            |ranks: &Ranks, part, progress: &mut Watch| self.make((&tokenizer, ranks), key, part, progress);
        let (tokens, origin, before) = found_or_made(ranks, (cache, key), progress, &make)?;
        Ok(match (origin, before) {
            (Origin::Made, Some(text_bytes @ 1..)) => (tokens, Origin::Continued { text_bytes }),
            (origin, _) => (tokens, origin),
        })
    }

    /// SHA-256 over the version, the contents of the sources, the tokenizer and the settings, each with its length.
    fn key(&self, progress: &mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<[u8; 32]> {
        let tokenizer =
            std::fs::read(self.tokenizer).map_err(|e| Error::io("cannot read", self.tokenizer, e))?;
        let mut parts = vec![
            RULES[usize::from(self.corpus.has_rows())].to_le_bytes().to_vec(),
            (self.vocab_size as u64).to_le_bytes().to_vec(),
            mark(self.bos),
            mark(self.eos),
            tokenizer,
        ];
        parts.extend(identity(self.corpus, progress)?);
        Ok(key_of(parts))
    }

    /// Makes the file; bytes of text that an earlier run had tokenized.
    fn make(
        &self,
        (tokenizer, ranks): (&Tokenizer, &Ranks),
        key: [u8; 32],
        part: Option<Part>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<u64> {
        let vocab_size = self.vocab_size as u64;
        let counts =
            Header { vocab_size, tokens: 0, documents: 0, skipped: 0, text_bytes: 0, key, marked: false };
        // The first rank writes; all know where the text goes on.
        let begun = ranks.agree(part.map(|part| TokenWriter::go_on(part, counts)).transpose())?;
        let (mut writer, place) = begun.unzip();
        let before = writer.as_mut().map_or(counts, |writer| *writer.header());
        let told = || Ok((place.flatten().unwrap_or_default(), before.text_bytes, before.tokens));
        let (place, text_bytes, tokens) = ranks.from_first(told)?;
        let mut place = Some(place);
        let counts = Header { tokens, text_bytes, ..counts };
        let filled = self.fill((tokenizer, ranks), &mut writer, counts, &mut place, progress);
        let Some(mut writer) = writer else { return filled.map(|_| text_bytes) };
        match filled {
            Ok(skipped) => writer.header().skipped = skipped,
            Err(error) => {
                // What is wrong with the text or the tokenizer will be another text or tokenizer when it is mended.
                if matches!(error, Error::Interrupted | Error::Io { .. }) {
                    writer.leave(place.as_ref());
                }
                return Err(error);
            }
        }
        writer.finish()?;
        Ok(text_bytes)
    }

    /// Writes the tokens of everything behind `place`, which moves along where that can be said; `counts` is what there was before. How many
    /// nulls there were.
    fn fill(
        &self,
        (tokenizer, ranks): (&Tokenizer, &Ranks),
        writer: &mut Option<TokenWriter>,
        counts: Header,
        place: &mut Option<Place>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<u64> {
        let threads = ranks.sum(&[rayon::current_num_threads() as f64])?[0] as usize;
        let (bytes_total, stage) = (self.corpus.bytes()?, Stage::Tokenizing);
        let mut documents = self.corpus.documents_from(place.unwrap_or_default());
        let mut batch = Batch::read(&mut documents, threads)?;
        let Header { mut tokens, mut text_bytes, .. } = counts;
        while !batch.pieces.is_empty() {
            let share = &batch.pieces[ranks.share(batch.pieces.len())];
            // The next batch is read while this one is encoded.
            let (encoded, next) =
                rayon::join(|| self.encode(tokenizer, share), || Batch::read(&mut documents, threads));
            let ids = encoded.into_iter().collect::<Result<Vec<_>>>().map(|ids| ids.concat());
            let ids = ranks.concat(ids)?;
            tokens += ids.len() as u64;
            text_bytes += batch.text_bytes();
            *place = None;
            let written: Result<()> = writer.as_mut().map_or(Ok(()), |writer| {
                writer.write(&ids)?;
                let counts = writer.header();
                counts.documents += batch.pieces.iter().filter(|piece| piece.starts).count() as u64;
                counts.text_bytes = text_bytes;
                *place = batch.place;
                place.iter().try_for_each(|place| writer.reached(place))
            });
            let is_stopped =
                progress(Progress { stage, bytes_done: batch.bytes_done, bytes_total, tokens }).is_break();
            ranks.agree(if is_stopped { written.and(Err(Error::Interrupted)) } else { written })?;
            batch = next?;
        }
        if text_bytes == 0 {
            return Err(self.corpus.empty(documents.skipped()));
        }
        Ok(documents.skipped())
    }

    /// The ids of each piece, in the order of the pieces.
    fn encode(&self, tokenizer: &Tokenizer, batch: &[Piece]) -> Vec<Result<Vec<u32>>> {
        let encode = |piece: &Piece| {
            let encoding = tokenizer
                .encode_fast(piece.text.as_str(), false)
                .map_err(|e| Error::file(self.tokenizer, format!("can't encode a document: {e}")))?;
            let bos = self.bos.filter(|_| piece.starts);
            let eos = self.eos.filter(|_| piece.ends);
            Ok(bos.into_iter().chain(encoding.get_ids().iter().copied()).chain(eos).collect())
        };
        batch.par_iter().map(encode).collect()
    }
}

/// SHA-256 over `parts`, each with its length.
pub(super) fn key_of(parts: Vec<Vec<u8>>) -> [u8; 32] {
    let mut key = Sha256::new();
    for part in parts {
        key.update((part.len() as u64).to_le_bytes());
        key.update(part);
    }
    key.finalize().into()
}

/// The bytes of a mark, if there is one.
pub(super) fn mark(id: Option<u32>) -> Vec<u8> {
    id.map_or(vec![], |id| id.to_le_bytes().to_vec())
}

/// What decides the documents of `corpus`, with reports of how far it is read.
pub(super) fn identity(
    corpus: &Corpus,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<Vec<u8>>> {
    let bytes_total = corpus.bytes()?;
    corpus.identity(&mut |bytes_done| {
        progress(Progress { stage: Stage::Reading, bytes_done, bytes_total, tokens: 0 })
    })
}

/// Is told how far the work is; breaks to end it.
pub(super) type Watch<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// The token file `KEY.tokens` in the folder `cache`; where it isn't there or is damaged, it is what all `ranks` write together with `make`, whose
/// result comes with it. The part is the first one's. What another process makes is waited for.
pub(super) fn found_or_made<T>(
    ranks: &Ranks,
    (cache, key): (&Path, [u8; 32]),
    progress: &mut Watch,
    make: &impl Fn(&Ranks, Option<Part>, &mut Watch) -> Result<T>,
) -> Result<(Tokens, Origin, Option<T>)> {
    let path = path_of(cache, &key);
    let (mut found, mut origin, mut made) = (find(&path, &key), Origin::Reused, None);
    if ranks.from_first(|| Ok(found.is_err()))? {
        let part = ranks.on_first(|| Part::claim(&path, &mut || progress(Progress::WAITING)))?;
        // Another process may have made it before the part was ours.
        if ranks.from_first(|| Ok(find(&path, &key).is_err()))? {
            made = Some(ranks.agree(make(ranks, part, progress))?);
            origin = found.err().unwrap_or(Origin::Made);
        }
        found = find(&path, &key);
    }
    match found {
        Ok(tokens) => Ok((tokens, origin, made)),
        // A rank that doesn't see what the first has written makes it for itself.
        Err(_) if ranks.size() > 1 => found_or_made(&Ranks::alone(), (cache, key), progress, make),
        Err(_) => Ok((Tokens::open(&path)?, origin, made)),
    }
}

/// Where the token file with `key` is in the folder `cache`.
fn path_of(cache: &Path, key: &[u8; 32]) -> PathBuf {
    cache.join(format!("{}.tokens", hex(key)))
}

/// The token file at `path`, or why it has to be made.
fn find(path: &Path, key: &[u8; 32]) -> Result<Tokens, Origin> {
    if !path.exists() {
        return Err(Origin::Made);
    }
    let reason = match Tokens::open(path) {
        Ok(tokens) if &tokens.header().key == key => return Ok(tokens),
        Ok(_) => Error::file(path, "holds the tokens of another corpus or tokenizer than its name says"),
        Err(damage) => damage,
    };
    Err(Origin::Remade { reason: reason.to_string() })
}

/// Some documents, one after the other.
struct Batch {
    pieces: Vec<Piece>,
    /// How much of the sources is read with them.
    bytes_done: u64,
    /// What follows them, where another reader can begin there.
    place: Option<Place>,
}

impl Batch {
    /// The next ones, enough for so many `threads`; none at the end.
    fn read(documents: &mut Documents<'_>, threads: usize) -> Result<Self> {
        let enough = BATCH_BYTES * threads;
        let mut pieces = Vec::new();
        let mut bytes = 0;
        while bytes < enough {
            let Some(piece) = documents.next().transpose()? else { break };
            // A short document costs an allocation and a call too: 64 bytes bound their number.
            bytes += piece.text.len() + 64;
            pieces.push(piece);
        }
        Ok(Self { pieces, bytes_done: documents.bytes_read(), place: documents.place() })
    }

    fn text_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.text.len() as u64).sum()
    }
}

/// A key as it is spelled in file names and cursors.
pub(super) fn hex(key: &[u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

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

use super::documents::{Corpus, Documents, Piece};
use super::token_file::{Header, Tokens, VERSION};
use super::token_writer::TokenWriter;
use crate::{Error, Result, ranks::Ranks};

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

/// How far a tokenization is. The numbers only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the sources that are tokenized.
    pub bytes_done: u64,
    /// Bytes of all sources.
    pub bytes_total: u64,
    /// Tokens so far.
    pub tokens: u64,
}

/// Where the tokens came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file was there.
    Reused,
    /// The file was made now.
    Made,
    /// A file was there but could not be used, and was made anew.
    Remade {
        /// What was wrong with it.
        reason: String,
    },
}

impl Tokenization<'_> {
    /// The tokens, from the file `KEY.tokens` in the folder `cache`, which is made if it isn't there or is damaged.
    ///
    /// `progress` is called after each batch; when it breaks, the tokenization ends with [`Error::Interrupted`] and
    /// nothing is left behind.
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
        let key = self.key()?;
        let path = place(cache, &key);
        let missing = || Ok(!matches!(find(&path, &key), Ok(Some(_))));
        if ranks.size() > 1 && ranks.from_first(missing)? {
            let made = self.make((&tokenizer, ranks), key, &path, progress);
            ranks.agree(made)?;
        }
        // A rank that doesn't see what the first has written makes it for itself.
        let alone = Ranks::alone();
        let (tokens, origin, _) =
            found_or_made(cache, key, |path| self.make((&tokenizer, &alone), key, path, progress))?;
        Ok((tokens, origin))
    }

    /// SHA-256 over the version, the contents of the sources, the tokenizer and the settings, each with its length.
    fn key(&self) -> Result<[u8; 32]> {
        let tokenizer =
            std::fs::read(self.tokenizer).map_err(|e| Error::io("cannot read", self.tokenizer, e))?;
        let mut parts = vec![
            VERSION.to_le_bytes().to_vec(),
            (self.vocab_size as u64).to_le_bytes().to_vec(),
            mark(self.bos),
            mark(self.eos),
            tokenizer,
        ];
        parts.extend(self.corpus.identity()?);
        Ok(key_of(parts))
    }

    fn make(
        &self,
        (tokenizer, ranks): (&Tokenizer, &Ranks),
        key: [u8; 32],
        path: &Path,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<()> {
        let vocab_size = self.vocab_size as u64;
        let counts =
            Header { vocab_size, tokens: 0, documents: 0, skipped: 0, text_bytes: 0, key, marked: false };
        let mut writer = ranks.on_first(|| TokenWriter::create(path, counts))?;
        let threads = ranks.sum(&[rayon::current_num_threads() as f64])?[0] as usize;
        let bytes_total = self.corpus.bytes()?;
        let mut documents = self.corpus.documents();
        let (mut batch, mut bytes_done) = read_batch(&mut documents, threads)?;
        let (mut tokens, mut text_bytes) = (0, 0);
        while !batch.is_empty() {
            let cut = |rank: usize| batch.len() * rank / ranks.size();
            let share = &batch[cut(ranks.rank())..cut(ranks.rank() + 1)];
            // The next batch is read while this one is encoded.
            let (encoded, next) =
                rayon::join(|| self.encode(tokenizer, share), || read_batch(&mut documents, threads));
            let ids = encoded.into_iter().collect::<Result<Vec<_>>>().map(|ids| ids.concat());
            let ids = ranks.concat(ids)?;
            tokens += ids.len() as u64;
            text_bytes += batch.iter().map(|piece| piece.text.len() as u64).sum::<u64>();
            let written: Result<()> = writer.as_mut().map_or(Ok(()), |writer| {
                writer.write(&ids)?;
                let counts = writer.header();
                counts.documents += batch.iter().filter(|piece| piece.starts).count() as u64;
                counts.text_bytes = text_bytes;
                Ok(())
            });
            let is_stopped = progress(Progress { bytes_done, bytes_total, tokens }).is_break();
            ranks.agree(if is_stopped { written.and(Err(Error::Interrupted)) } else { written })?;
            (batch, bytes_done) = next?;
        }
        if text_bytes == 0 {
            return Err(self.corpus.empty(documents.skipped()));
        }
        writer.map_or(Ok(()), |mut writer| {
            writer.header().skipped = documents.skipped();
            writer.finish()
        })
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

/// The token file `KEY.tokens` in the folder `cache`; where it isn't there or is damaged, it is what `make` writes, whose result comes with it.
pub(super) fn found_or_made<T>(
    cache: &Path,
    key: [u8; 32],
    make: impl FnOnce(&Path) -> Result<T>,
) -> Result<(Tokens, Origin, Option<T>)> {
    let path = place(cache, &key);
    let origin = match find(&path, &key) {
        Ok(Some(tokens)) => return Ok((tokens, Origin::Reused, None)),
        Ok(None) => Origin::Made,
        Err(e) => Origin::Remade { reason: e.to_string() },
    };
    let made = make(&path)?;
    Ok((Tokens::open(&path)?, origin, Some(made)))
}

/// Where the token file with `key` is in the folder `cache`.
fn place(cache: &Path, key: &[u8; 32]) -> PathBuf {
    cache.join(format!("{}.tokens", hex(key)))
}

/// The token file at `path`, if there is one.
fn find(path: &Path, key: &[u8; 32]) -> Result<Option<Tokens>> {
    if !path.exists() {
        return Ok(None);
    }
    let tokens = Tokens::open(path)?;
    if &tokens.header().key != key {
        return Err(Error::file(path, "holds the tokens of another corpus or tokenizer than its name says"));
    }
    Ok(Some(tokens))
}

/// The next documents, enough for so many `threads`, and how much of the sources is read with them.
fn read_batch(documents: &mut Documents<'_>, threads: usize) -> Result<(Vec<Piece>, u64)> {
    let enough = BATCH_BYTES * threads;
    let mut batch = Vec::new();
    let mut bytes = 0;
    while bytes < enough {
        let Some(piece) = documents.next().transpose()? else { break };
        // A short document costs an allocation and a call too: 64 bytes bound their number.
        bytes += piece.text.len() + 64;
        batch.push(piece);
    }
    Ok((batch, documents.bytes_read()))
}

/// A key as it is spelled in file names and cursors.
pub(super) fn hex(key: &[u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

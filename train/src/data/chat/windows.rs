//! Documents become windows in a token file; and how ranks tell each other theirs.
//!
//! Knows no text.

use super::ChatTokenization;
use super::pack::Packer;
use crate::data::packed::LEARNED;
use crate::data::token_writer::TokenWriter;
use crate::{Error, Result};

/// A document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    /// Its tokens with marks.
    pub ids: Vec<u32>,
    /// Bytes of its text.
    pub text_bytes: u64,
}

/// What became of the documents that were not taken whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lost {
    /// Longer than a window, and cut.
    pub cut: u64,
    /// Tokens that were cut off.
    pub tokens: u64,
    /// Left out, because nothing to learn is within a window.
    pub left_out: u64,
}

/// The file in the making.
pub(super) struct Windows<'a> {
    how: &'a ChatTokenization<'a>,
    packer: Packer,
    writer: TokenWriter,
    lost: Lost,
}

impl<'a> Windows<'a> {
    /// No window yet.
    pub(super) fn new(how: &'a ChatTokenization, writer: TokenWriter) -> Self {
        let packer = Packer::new(how.window, how.eos.or(how.bos).unwrap_or(0));
        Self { how, packer, writer, lost: Lost::default() }
    }

    /// Puts a document into a window, unless nothing to learn would be in it.
    pub(super) fn add(&mut self, Document { ids, text_bytes }: Document) -> Result<()> {
        // The first token is nobody's target.
        if !ids.iter().take(self.how.window).skip(1).any(|id| id & LEARNED != 0) {
            self.lost.left_out += 1;
            return Ok(());
        }
        let (window, over) = self.packer.add(ids);
        self.lost.cut += u64::from(over > 0);
        self.lost.tokens += over as u64;
        let counts = self.writer.header();
        counts.documents += 1;
        counts.text_bytes += text_bytes;
        window.map_or(Ok(()), |window| self.writer.write(&window))
    }

    /// Writes the windows that are not full, and puts the file in its place.
    ///
    /// # Errors
    /// No document was taken; a disk that is full.
    pub(super) fn finish(mut self) -> Result<Lost> {
        for window in self.packer.finish() {
            self.writer.write(&window)?;
        }
        if self.writer.header().documents == 0 {
            return Err(Error::Data(format!(
                "{}: no conversation with something to learn in a window of {} tokens ({} left out)",
                self.how.corpus.names(),
                self.how.window,
                self.lost.left_out
            )));
        }
        self.writer.finish()?;
        Ok(self.lost)
    }
}

/// Documents as words: how many tokens, the bytes of the text in two halves, the tokens.
pub(super) fn spelled(documents: &[Document]) -> Vec<u32> {
    let words = |document: &Document| {
        let Document { ids, text_bytes } = document;
        [&[ids.len() as u32, *text_bytes as u32, (text_bytes >> 32) as u32], ids.as_slice()].concat()
    };
    documents.iter().flat_map(words).collect()
}

/// What was [`spelled`].
pub(super) fn documents_in(mut words: &[u32]) -> impl Iterator<Item = Document> {
    std::iter::from_fn(move || {
        let ([len, low, high], rest) = words.split_first_chunk()?;
        let (ids, rest) = rest.split_at_checked(*len as usize)?;
        words = rest;
        Some(Document { ids: ids.to_vec(), text_bytes: u64::from(*low) | u64::from(*high) << 32 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_come_back_from_their_words() {
        let document = |ids: &[u32], text_bytes| Document { ids: ids.to_vec(), text_bytes };
        let documents = [
            document(&[], 0),
            document(&[1, LEARNED | 2], 7),
            document(&[3], (5 << 32) + 1),
            document(&[0; 3], 3),
        ];
        assert_eq!(documents_in(&spelled(&documents)).collect::<Vec<_>>(), documents);
        assert_eq!(documents_in(&spelled(&[])).count(), 0);
    }
}

//! The tokenizer library by itself: what there would be to do if text came from nowhere and tokens went nowhere.
//!
//! A measure to hold [`super::Tokenization`] against, on the same text.

use qat_infer::files::Tokenizer;

use super::documents::{Corpus, Piece};
use crate::{Error, Result};

/// Some text in memory, and the library that makes tokens of it.
pub struct Library {
    tokenizer: Tokenizer,
    pieces: Vec<Piece>,
}

impl Library {
    /// The first `bytes` of `corpus`, in the pieces that are tokenized.
    ///
    /// # Errors
    /// Everything that can be wrong with the text.
    pub fn new(corpus: &Corpus, bytes: usize, tokenizer: Tokenizer) -> Result<Self> {
        let (mut pieces, mut taken) = (Vec::new(), 0);
        for piece in corpus.documents() {
            let piece = piece?;
            taken += piece.text.len();
            pieces.push(piece);
            if taken >= bytes {
                break;
            }
        }
        Ok(Self { tokenizer, pieces })
    }

    /// Bytes of the text.
    pub fn text_bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.text.len()).sum()
    }

    /// Makes tokens of the text, on one thread, and lets go of them; how many there were.
    ///
    /// # Errors
    /// What the library says.
    pub fn encode(&self) -> Result<usize> {
        let encoded = self.pieces.iter().map(|piece| self.tokenizer.encode_fast(piece.text.as_str(), false));
        encoded
            .map(|encoding| encoding.map(|encoding| encoding.len()))
            .sum::<Result<usize, _>>()
            .map_err(|e| Error::Data(format!("the tokenizer can't encode a document: {e}")))
    }
}

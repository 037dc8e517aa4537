//! The corpus as one text, which is what a scorer reads.
//!
//! Knows no tokens. Text files come out to the byte; what joins documents and files is a blank line.

use super::documents::Corpus;
use crate::Result;

/// What stands between two documents.
const BETWEEN: &str = "\n\n";

/// Text to be scored.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalText {
    /// All documents in order, a blank line between two.
    pub text: String,
    /// Entropy of the text in nats under the process that made it, where that is known: when all sources are
    /// generated stories.
    pub nats: Option<f64>,
}

impl Corpus {
    /// The whole corpus in memory. A text file without a separator is one document, and so comes out verbatim.
    ///
    /// # Errors
    /// Everything that can be wrong with the sources, and a corpus without text.
    pub fn read_text(&self) -> Result<EvalText> {
        let mut text = String::new();
        let mut documents = self.documents();
        while let Some(piece) = documents.next().transpose()? {
            if piece.starts && !text.is_empty() && !text.ends_with(BETWEEN) {
                text.push_str(BETWEEN);
            }
            text.push_str(&piece.text);
        }
        if text.trim().is_empty() {
            return Err(self.empty(documents.skipped()));
        }
        Ok(EvalText { text, nats: documents.nats() })
    }
}

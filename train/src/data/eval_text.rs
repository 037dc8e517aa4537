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
    /// The whole corpus, part by part. A text file without a separator is one document, and so comes out verbatim.
    pub fn joined(&self) -> impl Iterator<Item = Result<String>> {
        self.documents().scan(Joint::default(), |joint, piece| {
            Some(piece.map(|piece| joint.before(&piece.text, piece.starts) + &piece.text))
        })
    }

    /// The same in memory.
    ///
    /// # Errors
    /// Everything that can be wrong with the sources, and a corpus without text.
    pub fn read_text(&self) -> Result<EvalText> {
        let (mut text, mut joint) = (String::new(), Joint::default());
        let mut documents = self.documents();
        while let Some(piece) = documents.next().transpose()? {
            text += &joint.before(&piece.text, piece.starts);
            text += &piece.text;
        }
        if text.trim().is_empty() {
            return Err(self.empty(documents.skipped()));
        }
        Ok(EvalText { text, nats: documents.nats() })
    }
}

/// The end of the text so far.
#[derive(Default)]
struct Joint {
    /// Line ends at its end, two at most; none known of an empty text.
    line_ends: Option<usize>,
}

impl Joint {
    /// What comes before `text`, which then belongs to what is there.
    fn before(&mut self, text: &str, starts: bool) -> String {
        let is_apart = self.line_ends.is_none_or(|count| count >= BETWEEN.len());
        let between = if starts && !is_apart { BETWEEN } else { "" };
        if !text.is_empty() || !between.is_empty() {
            let own = text.bytes().rev().take_while(|byte| *byte == b'\n').count();
            let before = if own < text.len() { 0 } else { self.line_ends.unwrap_or(0) + between.len() };
            self.line_ends = Some((own + before).min(BETWEEN.len()));
        }
        between.to_owned()
    }
}

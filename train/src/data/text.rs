//! Text files as a stream of pieces, in memory that does not grow with the file.
//!
//! Knows no tokens. Without a separator the pieces of a file, one after the other, are its text to the byte.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::documents::{Piece, Pieces, Reached};
use crate::{Error, Result};

/// A piece longer than this is cut at the next blank line. Small enough that a batch of pieces feeds many cores,
/// large enough that the tokens changed by a cut do not matter.
pub(super) const SHORTEST: usize = 64 << 10;

/// No piece is longer than this, in bytes. Without a blank line the cut is at the last line end before it, else at
/// the last space, else between two characters.
pub(super) const LONGEST: usize = 1 << 20;

/// Characters of a line end. Around a separator they belong to the separator's line, not to the document.
const LINE_END: [char; 2] = ['\n', '\r'];

/// The pieces of one text file.
pub(super) struct TextPieces {
    path: PathBuf,
    file: File,
    separator: Option<String>,
    /// Text read from the file; what lies before `at` is already handed out.
    buffer: String,
    at: usize,
    /// First bytes of a character whose other bytes are not read yet.
    partial: Vec<u8>,
    bytes_read: u64,
    at_end: bool,
    starts: bool,
}

impl TextPieces {
    /// Opens `path` behind what was `reached`. Documents lie between occurrences of `separator`; without one the file is one document.
    pub(super) fn open(path: &Path, separator: Option<&str>, reached: Reached) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: open_at(path, reached.at)?,
            separator: separator.map(str::to_owned),
            buffer: String::new(),
            at: 0,
            partial: Vec::new(),
            bytes_read: reached.at,
            at_end: false,
            starts: !reached.inside,
        })
    }

    /// Reads on until the buffer holds more than one longest piece and a separator, or the rest of the file: so where pieces are cut
    /// doesn't depend on where reads end.
    fn fill(&mut self) -> Result<()> {
        let wanted = LONGEST + self.separator.as_ref().map_or(0, String::len) + 1;
        if self.at_end || self.buffer.len() - self.at >= wanted {
            return Ok(());
        }
        self.buffer.drain(..self.at);
        self.at = 0;
        while !self.at_end && self.buffer.len() < 2 * wanted {
            self.read_on()?;
        }
        Ok(())
    }

    fn read_on(&mut self) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.partial);
        let start = self.bytes_read - bytes.len() as u64;
        let read = (&mut self.file)
            .take(LONGEST as u64)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("cannot read", &self.path, e))?;
        self.bytes_read += read as u64;
        self.at_end = read < LONGEST;
        match std::str::from_utf8(&bytes) {
            Ok(text) => self.buffer.push_str(text),
            Err(e) if e.error_len().is_none() && !self.at_end => {
                self.partial = bytes.split_off(e.valid_up_to());
                // Valid by the check just made, so nothing is replaced.
                self.buffer.push_str(&String::from_utf8_lossy(&bytes));
            }
            Err(e) => {
                let offset = start + e.valid_up_to() as u64;
                return Err(Error::file(
                    &self.path,
                    format!("not UTF-8 at byte {offset}; convert it to UTF-8"),
                ));
            }
        }
        Ok(())
    }
}

impl Pieces for TextPieces {
    fn next_piece(&mut self) -> Result<Option<Piece>> {
        loop {
            self.fill()?;
            let rest = &self.buffer[self.at..];
            if rest.is_empty() {
                return Ok(None);
            }
            let separator = self.separator.as_deref().unwrap_or_default();
            let cut = Cut::of(rest, separator, self.at_end);
            let mut text = &rest[..cut.len];
            if !separator.is_empty() && self.starts {
                text = text.trim_start_matches(LINE_END);
            }
            if !separator.is_empty() && cut.ends {
                text = text.trim_end_matches(LINE_END);
            }
            let piece = Piece { text: text.to_owned(), starts: self.starts, ends: cut.ends };
            self.at += cut.len + cut.skipped;
            self.starts = cut.ends;
            if !(piece.starts && piece.ends && piece.text.trim().is_empty()) {
                return Ok(Some(piece));
            }
        }
    }

    fn bytes_read(&self) -> u64 {
        self.bytes_read - (self.partial.len() + self.buffer.len() - self.at) as u64
    }

    fn reached(&self) -> Reached {
        Reached { at: self.bytes_read(), inside: !self.starts, ..Reached::default() }
    }
}

/// The file at `path`, to be read behind its first `at` bytes.
pub(super) fn open_at(path: &Path, at: u64) -> Result<File> {
    let open = || -> std::io::Result<File> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(at))?;
        Ok(file)
    };
    open().map_err(|e| Error::io("cannot read", path, e))
}

/// Where the next piece ends.
struct Cut {
    len: usize,
    /// Bytes of separator after it.
    skipped: usize,
    /// Whether the document ends there.
    ends: bool,
}

impl Cut {
    /// The cut in `rest`, which holds a longest piece and a separator unless it is the last of the file. An empty
    /// separator is none.
    fn of(rest: &str, separator: &str, is_last: bool) -> Self {
        // A separator that begins at or before the limit; it may end beyond it.
        let before = |limit: usize| {
            let window = &rest[..floor_boundary(rest, limit.saturating_add(separator.len()))];
            let len = if separator.is_empty() { None } else { window.find(separator) };
            len.map(|len| Self { len, skipped: separator.len(), ends: true })
        };
        if let Some(cut) = before(SHORTEST) {
            return cut;
        }
        let len = piece_len(rest, is_last);
        before(len).unwrap_or(Self { len, skipped: 0, ends: is_last && len == rest.len() })
    }
}

/// Length of the first piece of `rest`, which is all that is left of a document.
pub(super) fn next_cut(rest: &str) -> usize {
    piece_len(rest, true)
}

/// Length of the next piece when no separator stands in the way.
fn piece_len(rest: &str, is_last: bool) -> usize {
    if is_last && rest.len() <= SHORTEST {
        return rest.len();
    }
    let window = &rest[..floor_boundary(rest, LONGEST)];
    if let Some(len) = after_blank_line(window, floor_boundary(window, SHORTEST)) {
        return len;
    }
    if is_last && rest.len() <= LONGEST {
        return rest.len();
    }
    window.rfind('\n').or_else(|| window.rfind(' ')).map_or(window.len(), |last| last + 1)
}

/// End of the first run of blank lines that begins at or after `from`.
fn after_blank_line(text: &str, from: usize) -> Option<usize> {
    text[from..].match_indices('\n').find_map(|(line_end, _)| {
        let next = from + line_end + 1;
        let blank = text.len() - next - text[next..].trim_start_matches(LINE_END).len();
        text[next..next + blank].contains('\n').then_some(next + blank)
    })
}

/// The last character boundary at or before `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

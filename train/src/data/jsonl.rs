//! JSON Lines as documents: one object a line, the text in one of its fields.
//!
//! Knows no tokens. A line that can't be used is named by its number, never passed over; a null is passed over and
//! counted.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::documents::{Piece, Pieces, Reached};
use super::text::open_at;
use crate::{Error, Result};

/// No line is longer than this, in bytes: it bounds the memory that a file without line ends can take.
const LONGEST_LINE: u64 = 256 << 20;

/// Room that is kept from line to line.
const USUAL_LINE: usize = 1 << 20;

/// The documents of one JSON Lines file.
pub(super) struct JsonLines {
    path: PathBuf,
    reader: BufReader<File>,
    field: String,
    buffer: Vec<u8>,
    line: u64,
    bytes_read: u64,
    skipped: u64,
}

impl JsonLines {
    /// Opens `path`, whose texts are in `field`, behind what was `reached`.
    pub(super) fn open(path: &Path, field: &str, reached: Reached) -> Result<Self> {
        let file = open_at(path, reached.at)?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(256 << 10, file),
            field: field.to_owned(),
            buffer: Vec::new(),
            line: reached.lines,
            bytes_read: reached.at,
            skipped: reached.skipped,
        })
    }

    fn bad_line(&self, problem: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("line {}: {problem}", self.line))
    }

    /// The object of the line in the buffer.
    fn object(&self) -> Result<Map<String, Value>> {
        if let Err(e) = std::str::from_utf8(&self.buffer) {
            let offset = self.bytes_read - (self.buffer.len() - e.valid_up_to()) as u64;
            return Err(self.bad_line(format!("not UTF-8 at byte {offset} of the file; convert it to UTF-8")));
        }
        let value: Value = serde_json::from_slice(self.buffer.trim_ascii_end()).map_err(|e| {
            // The parser sees one line and calls it line 1.
            self.bad_line(format!("not JSON: {}", e.to_string().replace(" at line 1 column", " at column")))
        })?;
        match value {
            Value::Object(object) => Ok(object),
            _ => Err(self.bad_line(format!("want an object such as {{\"{}\": \"…\"}}", self.field))),
        }
    }

    /// The text of the line in the buffer; `None` for a null.
    fn text(&self) -> Result<Option<String>> {
        let mut object = self.object()?;
        match object.swap_remove(&self.field) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Null) => Ok(None),
            Some(_) => Err(self.bad_line(format!("field \"{}\" is not a string", self.field))),
            None => {
                let present: Vec<_> = object.keys().map(|key| format!("\"{key}\"")).collect();
                Err(self.bad_line(format!("no field \"{}\"; present are {}", self.field, present.join(", "))))
            }
        }
    }

    /// The next object and the number of its line, or `None` after the last.
    pub(super) fn next_object(&mut self) -> Result<Option<(u64, Map<String, Value>)>> {
        Ok(if self.next_line()? { Some((self.line, self.object()?)) } else { None })
    }

    /// Reads the next line that is not blank; `false` at the end of the file.
    fn next_line(&mut self) -> Result<bool> {
        loop {
            self.buffer.clear();
            // A long line doesn't keep its room to the end of the file.
            self.buffer.shrink_to(USUAL_LINE);
            let read = (&mut self.reader)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut self.buffer)
                .map_err(|e| Error::io("cannot read", &self.path, e))? as u64;
            if read == 0 {
                return Ok(false);
            }
            self.line += 1;
            self.bytes_read += read;
            if read == LONGEST_LINE && !self.buffer.ends_with(b"\n") {
                return Err(self.bad_line(format!("longer than {LONGEST_LINE} bytes; is this JSON Lines?")));
            }
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }
}

impl Pieces for JsonLines {
    fn next_piece(&mut self) -> Result<Option<Piece>> {
        while self.next_line()? {
            match self.text()? {
                Some(text) => return Ok(Some(Piece::whole(text))),
                None => self.skipped += 1,
            }
        }
        Ok(None)
    }

    fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    fn reached(&self) -> Reached {
        Reached { at: self.bytes_read, lines: self.line, skipped: self.skipped, inside: false }
    }
}

//! Writes a token file aside and puts it in its place when it is whole.
//!
//! Knows no text. Invariants: the final name appears only with the last byte on the disk; memory does not grow with
//! the file; what an earlier writer left is gone on with only where its ids are those that it noted.

use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use super::digest::Digester;
use super::documents::Place;
use super::packed::ID;
use super::part::{CANNOT_WRITE, Mark, Part};
use super::token_file::{HEADER_BYTES, Header};
use super::tokenize::hex;
use crate::{Error, Result};

/// How much work a killed writer loses at most, about. The disk is waited for as often.
const NOTED: Duration = Duration::from_secs(2);

/// Bytes that are gathered before they are written.
const BUFFER: usize = 1 << 20;

/// A token file in the making.
pub(super) struct TokenWriter {
    part: Part,
    /// Ids that are not in the file yet.
    waiting: Vec<u8>,
    ids: Digester,
    header: Header,
    noted: Instant,
}

impl TokenWriter {
    /// Begins the file of `part`. `header` has the key and the vocabulary; its counts are kept by the writer.
    pub(super) fn begin(part: Part, header: Header) -> Result<Self> {
        let mut writer = Self {
            part,
            waiting: Vec::with_capacity(BUFFER),
            ids: Digester::default(),
            header,
            noted: Instant::now(),
        };
        writer.cut(0)?;
        Ok(writer)
    }

    /// Goes on with what an earlier writer left in `part`, and says where in the text; without anything that can be used, begins.
    pub(super) fn go_on(part: Part, header: Header) -> Result<(Self, Option<Place>)> {
        let Some(mark) =
            part.mark().filter(|mark| mark.version == header.version() && mark.key == hex(&header.key))
        else {
            return Ok((Self::begin(part, header)?, None));
        };
        let len = mark.tokens.saturating_mul(header.id_bytes() as u64);
        let ids = Digester::over(part.path(), HEADER_BYTES as u64, len);
        let Some(ids) = ids.ok().filter(|ids| hex(&ids.clone().finish()) == mark.digest) else {
            return Ok((Self::begin(part, header)?, None));
        };
        let Mark { tokens, documents, text_bytes, place, .. } = mark;
        let header = Header { tokens, documents, text_bytes, ..header };
        let mut writer =
            Self { part, waiting: Vec::with_capacity(BUFFER), ids, header, noted: Instant::now() };
        writer.cut(len)?;
        Ok((writer, Some(place)))
    }

    /// Cuts the file off behind `len` bytes of ids; what is written follows them.
    fn cut(&mut self, len: u64) -> Result<()> {
        let mut file = self.part.file();
        // Room for the header, which is known last.
        let end = HEADER_BYTES as u64 + len;
        let cut = file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end)));
        cut.map(|_| ()).map_err(|e| self.cannot_write(e))
    }

    fn cannot_write(&self, error: std::io::Error) -> Error {
        Error::io(CANNOT_WRITE, self.part.path(), error)
    }

    /// Counts of what was written so far.
    pub(super) fn header(&mut self) -> &mut Header {
        &mut self.header
    }

    /// Appends ids.
    ///
    /// # Errors
    /// An id that is not below the vocabulary size, and a disk that is full.
    pub(super) fn write(&mut self, ids: &[u32]) -> Result<()> {
        let plain = if self.header.marked { ID } else { u32::MAX };
        if let Some(id) = ids.iter().map(|id| id & plain).find(|&id| u64::from(id) >= self.header.vocab_size)
        {
            return Err(Error::Data(format!(
                "token id {id} is outside the model's vocabulary (vocab_size {}); use the tokenizer of the model",
                self.header.vocab_size
            )));
        }
        let begin = self.waiting.len();
        match self.header.id_bytes() {
            2 => self.waiting.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            _ => self.waiting.extend(ids.iter().flat_map(|&id| id.to_le_bytes())),
        }
        self.ids.update(&self.waiting[begin..]);
        self.header.tokens += ids.len() as u64;
        if self.waiting.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let mut file = self.part.file();
        file.write_all(&self.waiting).map_err(|e| self.cannot_write(e))?;
        self.waiting.clear();
        Ok(())
    }

    /// Says that the text goes on at `place`, behind all that was written; noted now and then.
    pub(super) fn reached(&mut self, place: &Place) -> Result<()> {
        if self.noted.elapsed() < NOTED {
            return Ok(());
        }
        self.note(place)
    }

    fn note(&mut self, place: &Place) -> Result<()> {
        self.flush()?;
        self.part.file().sync_data().map_err(|e| self.cannot_write(e))?;
        let Header { tokens, documents, text_bytes, key, .. } = self.header;
        self.part.note(&Mark {
            version: self.header.version(),
            key: hex(&key),
            tokens,
            documents,
            text_bytes,
            digest: hex(&self.ids.clone().finish()),
            place: *place,
        })?;
        self.noted = Instant::now();
        Ok(())
    }

    /// Ends before the text does: a later writer goes on at `place`, or where it was last noted if that isn't known.
    pub(super) fn leave(mut self, place: Option<&Place>) {
        if let Some(place) = place {
            // What can't be noted is made again.
            let _ = self.note(place);
        }
        self.part.leave();
    }

    /// Writes the header, waits for the disk and gives the file its name.
    pub(super) fn finish(mut self) -> Result<()> {
        self.flush()?;
        let header = self.header.to_bytes(std::mem::take(&mut self.ids).finish());
        let mut file = self.part.file();
        let written = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&header));
        written.map_err(|e| self.cannot_write(e))?;
        self.part.put_in_place()
    }
}

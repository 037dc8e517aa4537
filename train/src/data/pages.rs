//! The pages of a Parquet column, looked at before time and room are spent on what they claim.
//!
//! Knows no rows. Invariants: a header or footer that is handed on is read in as many steps as it has bytes; a dictionary has at most as
//! many values as its bytes can hold.

use std::fs::File;

use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length as _};

use super::{
    headers,
    thrift::{self, Flaw, Header},
};

/// Fewest bytes of a string in a dictionary: those of its length.
const LEAST: usize = 4;

/// Bytes of a header that are looked at first; headers with long statistics take more.
const HEADER: u64 = 4096;

/// The fields of a page's header that have a meaning here: what it is, and the length of what follows it.
const PAGE_TYPE: i16 = 1;
const COMPRESSED_PAGE_SIZE: i16 = 3;

/// The type of a page that is passed over.
const INDEX_PAGE: i64 = 1;

/// The pages of a string column.
pub(super) struct CheckedPages {
    pages: Box<dyn PageReader>,
    file: File,
    /// Where the next page begins in the file.
    next: u64,
    /// Where the column ends.
    end: u64,
}

impl CheckedPages {
    /// `pages` of the column that lies in `file` at `start..start + length`.
    pub(super) fn new(pages: Box<dyn PageReader>, file: File, (start, length): (u64, u64)) -> Self {
        Self { pages, file, next: start, end: start.saturating_add(length) }
    }

    /// Looks at the headers up to that of the next page that is not passed over, and gives the place behind that page.
    fn behind_next(&self) -> Result<u64, ParquetError> {
        let mut at = self.next;
        while at < self.end {
            let Header { len, integers } = self.header(at)?;
            let size = integers.get(&COMPRESSED_PAGE_SIZE).and_then(|&size| u64::try_from(size).ok());
            let behind = size.and_then(|size| at.checked_add(size)?.checked_add(len as u64));
            at = behind.ok_or_else(damaged)?;
            if integers.get(&PAGE_TYPE) != Some(&INDEX_PAGE) {
                break;
            }
        }
        Ok(at)
    }

    fn header(&self, at: u64) -> Result<Header, ParquetError> {
        let (left, mut looked_at) = (self.end - at, HEADER);
        loop {
            let bytes = self.file.get_bytes(at, looked_at.min(left) as usize)?;
            match thrift::header(&bytes, headers::PAGE) {
                Ok(header) => return Ok(header),
                Err(Flaw::CutShort) if looked_at < left => looked_at *= 2,
                Err(_) => return Err(damaged()),
            }
        }
    }

    /// Goes behind the next page.
    fn advance(&mut self) -> Result<(), ParquetError> {
        self.next = self.behind_next()?;
        Ok(())
    }
}

fn damaged() -> ParquetError {
    ParquetError::General("the header of a page is damaged".to_owned())
}

/// Looks at what the end of `file` says about it.
pub(super) fn check_footer(file: &File) -> Result<(), ParquetError> {
    /// The footer's length, and the magic number of a file that is not encrypted.
    const TAIL: u64 = 8;
    let Some(tail) = file.len().checked_sub(TAIL) else { return Ok(()) };
    let bytes = file.get_bytes(tail, TAIL as usize)?;
    let Some((len, b"PAR1")) = bytes.split_first_chunk::<4>() else { return Ok(()) };
    let len = u64::from(u32::from_le_bytes(*len));
    let Some(start) = tail.checked_sub(len) else { return Ok(()) };
    match thrift::header(&file.get_bytes(start, len as usize)?, headers::FILE) {
        Ok(_) => Ok(()),
        Err(_) => Err(ParquetError::General("the footer is damaged".to_owned())),
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        self.advance()?;
        let page = self.pages.get_next_page()?;
        if let Some(Page::DictionaryPage { buf, num_values, .. }) = &page
            && *num_values as usize > buf.len() / LEAST
        {
            let problem = format!("a dictionary of {num_values} values in {} bytes", buf.len());
            return Err(ParquetError::General(problem));
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.behind_next()?;
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.advance()?;
        self.pages.skip_next_page()
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

//! The pages of a Parquet column, looked at before time and room are spent on what they claim.
//!
//! Knows no rows. Invariants: a header that is handed on is read in as many steps as it has bytes; a dictionary has at most as
//! many values as its bytes can hold.

use std::fs::File;

use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::ParquetError;
use parquet::file::reader::ChunkReader;

use super::thrift::{self, Flaw, Header, Kind};

/// Fewest bytes of a string in a dictionary: those of its length.
const LEAST: usize = 4;

/// Bytes of a header that are looked at first; headers with long statistics take more.
const HEADER: u64 = 4096;

/// The fields of a page's header that have a meaning here: what it is, and the length of what follows it.
const PAGE_TYPE: i16 = 1;
const COMPRESSED_PAGE_SIZE: i16 = 3;

/// The type of a page that is passed over.
const INDEX_PAGE: i64 = 1;

/// What the fields of a page's header hold (parquet.thrift).
const PAGE_HEADER: &[Kind] = &[
    Kind::Integer,
    Kind::Integer,
    Kind::Integer,
    Kind::Integer,
    Kind::Struct(&[Kind::Integer, Kind::Integer, Kind::Integer, Kind::Integer, Kind::Struct(STATISTICS)]),
    Kind::Struct(&[]),
    Kind::Struct(&[Kind::Integer, Kind::Integer, Kind::Bool]),
    Kind::Struct(&[
        Kind::Integer,
        Kind::Integer,
        Kind::Integer,
        Kind::Integer,
        Kind::Integer,
        Kind::Integer,
        Kind::Bool,
        Kind::Struct(STATISTICS),
    ]),
];

const STATISTICS: &[Kind] = &[
    Kind::Bytes,
    Kind::Bytes,
    Kind::Integer,
    Kind::Integer,
    Kind::Bytes,
    Kind::Bytes,
    Kind::Bool,
    Kind::Bool,
    Kind::Integer,
];

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
            match thrift::header(&bytes, PAGE_HEADER) {
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

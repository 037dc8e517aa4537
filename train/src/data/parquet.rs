//! One string column of a Parquet file as documents.
//!
//! Knows no tokens. Reads page by page: memory is bounded by a dictionary and a few rows. Nulls are passed over and
//! counted; what can't be read is refused when the file is opened, before any work is done.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::basic::{Compression, ConvertedType, LogicalType, Type as Physical};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use super::documents::{Piece, Pieces, Reached};
use super::pages::{CheckedPages, check_footer};
use crate::{Error, Result};

/// Rows taken at a time. They keep the pages they lie on in memory, so the number is small.
const ROWS: usize = 64;

/// The documents of one Parquet file.
pub(super) struct ParquetColumn {
    path: PathBuf,
    file: SerializedFileReader<File>,
    /// The same file, to look at before the library does.
    handle: File,
    file_bytes: u64,
    column: usize,
    next_group: usize,
    group: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Rows taken from the file and not yet handed out, last first; `None` is a null.
    rows: Vec<Option<ByteArray>>,
    rows_total: u64,
    rows_read: u64,
    skipped: u64,
}

impl ParquetColumn {
    /// Opens `path` behind the rows that were `reached`, and checks that `field` is a string column at the top level, in a compression
    /// that is read.
    pub(super) fn open(path: &Path, field: &str, reached: Reached) -> Result<Self> {
        let handle = File::open(path).map_err(|e| Error::io("cannot read", path, e))?;
        let file_bytes = handle.metadata().map_err(|e| Error::io("cannot read", path, e))?.len();
        let file = opened(path)?;
        let column = find_column(&file, field).map_err(|problem| Error::file(path, problem))?;
        check_compression(&file, column).map_err(|problem| Error::file(path, problem))?;
        let rows_total = u64::try_from(file.metadata().file_metadata().num_rows())
            .map_err(|_| Error::file(path, "damaged Parquet file: a negative number of rows"))?;
        let mut reader = Self {
            path: path.to_owned(),
            file,
            handle,
            file_bytes,
            column,
            next_group: 0,
            group: None,
            rows: Vec::new(),
            rows_total,
            rows_read: reached.at,
            skipped: reached.skipped,
        };
        guarded(path, || reader.pass_over(reached.at))?;
        Ok(reader)
    }

    /// Goes behind the first `rows` rows, whole row groups unread.
    fn pass_over(&mut self, mut rows: u64) -> Result<(), ParquetError> {
        while rows > 0 && self.next_group < self.file.num_row_groups() {
            let group = self.file.metadata().row_group(self.next_group).num_rows();
            let group = u64::try_from(group)
                .map_err(|_| ParquetError::General("a negative number of rows".to_owned()))?;
            if rows < group {
                let passed = self.next_column()?.skip_records(rows as usize)?;
                let problem = || ParquetError::General(format!("{passed} rows where {rows} are to be"));
                return if passed as u64 == rows { Ok(()) } else { Err(problem()) };
            }
            rows -= group;
            self.next_group += 1;
        }
        Ok(())
    }

    /// The reader of the next row group.
    fn next_column(&mut self) -> Result<&mut ColumnReaderImpl<ByteArrayType>, ParquetError> {
        let group = self.file.get_row_group(self.next_group)?;
        self.next_group += 1;
        let column = group.metadata().column(self.column);
        let handle = self.handle.try_clone()?;
        let pages = group.get_column_page_reader(self.column)?;
        let pages = CheckedPages::new(pages, handle, column.byte_range());
        Ok(self.group.insert(ColumnReaderImpl::new(column.column_descr_ptr(), Box::new(pages))))
    }

    /// Takes the next rows; `false` at the end of the file.
    fn take_rows(&mut self) -> Result<bool, ParquetError> {
        loop {
            if let Some(group) = &mut self.group {
                let (mut levels, mut texts) = (Vec::with_capacity(ROWS), Vec::with_capacity(ROWS));
                let (rows, ..) = group.read_records(ROWS, Some(&mut levels), None, &mut texts)?;
                if rows > 0 {
                    // A column that can't be null has no levels, and a text in each row.
                    levels.resize(rows, 1);
                    self.rows = levels.iter().rev().map(|&level| (level > 0).then(|| texts.pop())?).collect();
                    return Ok(true);
                }
                self.group = None;
            }
            if self.next_group == self.file.num_row_groups() {
                return Ok(false);
            }
            self.next_column()?;
        }
    }
}

impl Pieces for ParquetColumn {
    fn next_piece(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some(row) = self.rows.pop() {
                self.rows_read += 1;
                let Some(text) = row else {
                    self.skipped += 1;
                    continue;
                };
                let text = std::str::from_utf8(text.data()).map_err(|e| {
                    let (row, byte) = (self.rows_read, e.valid_up_to());
                    Error::file(&self.path, format!("row {row}: not UTF-8 at byte {byte} of its text"))
                })?;
                return Ok(Some(Piece::whole(text.to_owned())));
            }
            let path = self.path.clone();
            if !guarded(&path, || self.take_rows())? {
                return Ok(None);
            }
        }
    }

    fn bytes_read(&self) -> u64 {
        // Rows say how far the reader is; the bytes of one column would not add up to the file.
        match self.rows_total {
            0 => self.file_bytes,
            rows => (self.file_bytes as f64 * (self.rows_read as f64 / rows as f64)) as u64,
        }
    }

    fn reached(&self) -> Reached {
        Reached { at: self.rows_read, skipped: self.skipped, ..Reached::default() }
    }
}

/// The library's reader of the file at `path`.
pub(super) fn opened(path: &Path) -> Result<SerializedFileReader<File>> {
    let cannot_read = |e| Error::io("cannot read", path, e);
    let handle = File::open(path).map_err(cannot_read)?;
    let copy = handle.try_clone().map_err(cannot_read)?;
    guarded(path, || {
        check_footer(&handle)?;
        SerializedFileReader::new(copy)
    })
}

/// Runs the library, which answers some damaged files with a panic: for the user that is a damaged file too. A
/// reader that failed is not used again, so nothing half done is seen.
pub(super) fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Error::file(path, format!("not a Parquet file that can be read: {e}"))),
        Err(_) => {
            Err(Error::file(path, "damaged Parquet file: its parts contradict each other; make it again"))
        }
    }
}

/// Index of the column `field`, or why it can't be used.
fn find_column(file: &SerializedFileReader<File>, field: &str) -> Result<usize, String> {
    let schema = file.metadata().file_metadata().schema_descr();
    let columns = schema.columns();
    let strings: Vec<_> = columns.iter().filter(|c| problem_of(c).is_none()).map(|c| c.name()).collect();
    let readable = match strings.len() {
        0 => "the file has no string column".to_owned(),
        _ => format!("string columns are \"{}\"", strings.join("\", \"")),
    };
    let Some(index) = columns.iter().position(|c| c.path().parts().first().is_some_and(|name| name == field))
    else {
        return Err(format!("no column \"{field}\"; {readable}"));
    };
    match problem_of(&columns[index]) {
        None => Ok(index),
        Some(problem) => Err(format!("column \"{field}\" {problem}; {readable}")),
    }
}

/// Why a column can't be read as text, if so. Bytes without an annotation may be text: old writers left it out.
fn problem_of(column: &ColumnDescriptor) -> Option<String> {
    if column.path().parts().len() > 1 || column.max_rep_level() > 0 {
        return Some("is nested (a list, map or struct), want a string at the top level".to_owned());
    }
    let physical = column.physical_type();
    let is_text = physical == Physical::BYTE_ARRAY
        && match column.logical_type_ref() {
            Some(logical) => *logical == LogicalType::String,
            None => matches!(column.converted_type(), ConvertedType::NONE | ConvertedType::UTF8),
        };
    let found = column.logical_type_ref().map_or(physical.to_string(), |logical| format!("{logical:?}"));
    (!is_text).then(|| format!("is of type {found}, want a string"))
}

/// The same for all columns.
pub(super) fn check_compressions(file: &SerializedFileReader<File>) -> Result<(), String> {
    let columns = file.metadata().file_metadata().schema_descr().num_columns();
    (0..columns).try_for_each(|column| check_compression(file, column))
}

/// Whether every row group's column is compressed with something that pure Rust code unpacks.
fn check_compression(file: &SerializedFileReader<File>, column: usize) -> Result<(), String> {
    for group in file.metadata().row_groups() {
        let codec = match group.column(column).compression() {
            Compression::ZSTD(_) => "zstd",
            Compression::LZO => "lzo",
            _ => continue,
        };
        return Err(format!(
            "compressed with {codec}, which can't be read; rewrite it with snappy, gzip, lz4 or brotli, for \
             example in Python: pq.write_table(pq.read_table(\"IN\"), \"OUT\", compression=\"snappy\")"
        ));
    }
    Ok(())
}

//! Rows of JSON Lines and Parquet files as JSON objects, one after the other.
//!
//! Knows no layout. Invariant: a row comes with its place, so that whatever is wrong with it can be told by line number.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row, reader::RowIter};
use serde_json::{Map, Value};

use crate::data::documents::Reached;
use crate::data::jsonl::JsonLines;
use crate::data::parquet::{check_compressions, guarded, opened};
use crate::data::source::Source;
use crate::{Error, Result};

/// A row: its place, such as `line 3`, and its fields.
pub(super) type Record = (String, Map<String, Value>);

/// The rows of one file.
pub(super) enum Records {
    Lines(JsonLines),
    Rows(ParquetRows),
}

impl Records {
    /// Those of `source`.
    ///
    /// # Errors
    /// A file that can't be read, and one that holds text and no rows.
    pub(super) fn open(source: &Source) -> Result<Self> {
        match source {
            Source::Jsonl(path) => Ok(Self::Lines(JsonLines::open(path, "messages", Reached::default())?)),
            Source::Parquet(path) => Ok(Self::Rows(ParquetRows::open(path)?)),
            Source::Text(_) | Source::Stories(_) => Err(Error::Config(format!(
                "{source}: data.format = \"chat\" reads rows (.jsonl, .parquet); for plain text leave data.format out"
            ))),
        }
    }

    /// The next row, or none after the last.
    pub(super) fn next(&mut self) -> Result<Option<Record>> {
        match self {
            Self::Lines(lines) => {
                Ok(lines.next_object()?.map(|(line, object)| (format!("line {line}"), object)))
            }
            Self::Rows(rows) => rows.next(),
        }
    }
}

/// The rows of a Parquet file, nested columns and all.
pub(super) struct ParquetRows {
    path: PathBuf,
    rows: RowIter<'static>,
    number: u64,
}

impl ParquetRows {
    fn open(path: &Path) -> Result<Self> {
        let file: SerializedFileReader<File> = opened(path)?;
        check_compressions(&file).map_err(|problem| Error::file(path, problem))?;
        let rows = guarded(path, || {
            let schema = file.metadata().file_metadata().schema().clone();
            RowIter::from_file_into(Box::new(file)).project(Some(schema))
        })?;
        Ok(Self { path: path.to_owned(), rows, number: 0 })
    }

    fn next(&mut self) -> Result<Option<Record>> {
        self.number += 1;
        let path = self.path.clone();
        let row = guarded(&path, || self.rows.next().transpose())?;
        Ok(row.map(|row| (format!("row {}", self.number), fields(&row))))
    }
}

fn fields(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// A value as JSON has it; of kinds that are neither text nor number there is only that they are there.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::Float(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Str(text) => text.as_str().into(),
        // Old writers left it out that bytes are text.
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Bool(true), Value::from),
        Field::Group(row) => Value::Object(fields(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            map.entries().iter().map(|(key, item)| (key.to_string(), value(item))).collect()
        }
        _ => Value::Bool(true),
    }
}

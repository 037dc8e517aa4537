//! Writes the container, version 3, tensor by tensor with no more than one of them in memory.
//!
//! Knows no model. Invariant: what is finished has every tensor that was announced, in that order, aligned, and nothing else.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::kind::Kind;
use super::reader::{ALIGNMENT, MAGIC};
use super::value::{Array, Metadata, Value, scalars};
use crate::{Error, Result};

const VERSION: u32 = 3;
/// Longest name of a tensor that llama.cpp reads.
const MAX_NAME: usize = 63;

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Its name.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub kind: Kind,
}

/// A GGUF file in the making.
#[derive(Debug)]
pub struct GgufWriter {
    path: PathBuf,
    file: BufWriter<File>,
    /// Tensors that are still to come, the next one last, with their bytes.
    pending: Vec<Pending>,
}

/// Name and bytes of a tensor that is still to come.
type Pending = (String, usize);

impl GgufWriter {
    /// Begins the file `path` with all that stands before the tensors. It is for the caller to see that `path` is in a place that
    /// appears whole or not at all.
    ///
    /// # Errors
    /// A tensor has rows that its type can't hold or a name that llama.cpp can't, a name occurs twice, or the disk is full.
    pub fn create(path: &Path, metadata: &Metadata, tensors: &[Announced]) -> Result<Self> {
        let (header, mut pending) = header(metadata, tensors)?;
        pending.reverse();
        let file = File::create(path).map_err(|e| Error::io("cannot write", path, e))?;
        let mut writer =
            Self { path: path.to_owned(), file: BufWriter::with_capacity(1 << 20, file), pending };
        writer.put(&header)?;
        Ok(writer)
    }

    /// Writes the tensor `name`, which must be the next one that was announced.
    ///
    /// # Errors
    /// It is not, `bytes` has another length than its type makes of its shape, or the disk is full.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match self.pending.pop() {
            Some((next, want)) if next == name && want == bytes.len() => self.put(bytes),
            Some((next, want)) => {
                let problem =
                    format!("the next tensor is {next} of {want} bytes, found {} bytes", bytes.len());
                Err(Error::tensor(name, problem))
            }
            None => Err(Error::tensor(name, "was not announced")),
        }
    }

    /// Ends the file and hands it to the disk.
    ///
    /// # Errors
    /// An announced tensor was not written, or the disk is full.
    pub fn finish(mut self) -> Result<()> {
        if let Some((name, _)) = self.pending.pop() {
            return Err(Error::tensor(name, "was announced and not written"));
        }
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(|e| Error::io("cannot write", &self.path, e))
    }

    /// Writes `bytes` and pads to the alignment.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        let written =
            self.file.write_all(bytes).and_then(|()| self.file.write_all(&[0; ALIGNMENT][..padding]));
        written.map_err(|e| Error::io("cannot write", &self.path, e))
    }
}

/// Bytes of a file with `tensors` and no metadata; none if one can't be written.
pub(crate) fn file_bytes(tensors: &[Announced]) -> Option<u64> {
    let (header, pending) = header(&Metadata::default(), tensors).ok()?;
    let padded = |len: usize| len.next_multiple_of(ALIGNMENT) as u64;
    Some(padded(header.len()) + pending.iter().map(|(_, len)| padded(*len)).sum::<u64>())
}

/// All that stands before the tensors, and the tensors' bytes.
fn header(metadata: &Metadata, tensors: &[Announced]) -> Result<(Vec<u8>, Vec<Pending>)> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.entries().len() as u64).to_le_bytes());
    for (key, value) in metadata.entries() {
        key.put(&mut out);
        out.extend(value.id().to_le_bytes());
        put_value(value, &mut out);
    }
    let mut pending: Vec<Pending> = Vec::new();
    let mut offset = 0;
    for Announced { name, shape, kind } in tensors {
        if name.len() > MAX_NAME {
            return Err(Error::tensor(name, format!("llama.cpp reads names of at most {MAX_NAME} bytes")));
        }
        if pending.iter().any(|(known, _)| known == name) {
            return Err(Error::tensor(name, "is announced twice"));
        }
        name.put(&mut out);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&size| out.extend((size as u64).to_le_bytes()));
        out.extend(kind.id().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        let row = shape.last().copied().unwrap_or(1);
        let bytes = kind.bytes(row, shape.iter().product()).ok_or_else(|| {
            let problem =
                format!("{} wants rows of a multiple of {}, found {row}", kind.name(), kind.block_len());
            Error::tensor(name, problem)
        })?;
        offset += bytes.next_multiple_of(ALIGNMENT);
        pending.push((name.clone(), bytes));
    }
    Ok((out, pending))
}

/// A value that has one spelling in bytes.
trait Primitive {
    fn put(&self, out: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($type:ty),*) => {
        $(impl Primitive for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        })*
    };
}
numbers!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

impl Primitive for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Primitive for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend(self.as_bytes());
    }
}

fn put_value(value: &Value, out: &mut Vec<u8>) {
    macro_rules! put {
        ($($variant:ident $type:ident $id:literal),*) => {
            match value {
                $(Value::$variant(value) => value.put(out),)*
                Value::Array(array) => put_array(array, out),
            }
        };
    }
    scalars!(put);
}

fn put_array(array: &Array, out: &mut Vec<u8>) {
    array.id().put(out);
    (array.len() as u64).put(out);
    macro_rules! put {
        ($($variant:ident $type:ident $id:literal),*) => {
            match array {
                $(Array::$variant(values) => values.iter().for_each(|value| value.put(out)),)*
                Array::Array(arrays) => arrays.iter().for_each(|array| put_array(array, out)),
            }
        };
    }
    scalars!(put);
}

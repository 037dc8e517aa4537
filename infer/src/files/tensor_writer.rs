//! A safetensors file written tensor by tensor, with no more than one of them in memory.
//!
//! Knows no model. Invariant: the file does not depend on the order in which the tensors came: they lie in it by
//! falling alignment, then by name, as the safetensors library lays them out, so that each is aligned to its
//! element and equal tensors give equal files.
//!
//! The header comes first and lists everything, so that the tensors wait in a spool file beside the target and are
//! copied behind the header at the end. What is finished was read back from the disk and has the SHA-256 that each
//! tensor had in memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use qat_quant::kernels::FloatType;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::digest::sha256_hex;
use super::float;
use super::header::{LENGTH_BYTES, MAX_HEADER, METADATA_KEY, TensorInfo};
use super::staged::write_error;
use super::tensors::TensorFiles;
use crate::error::{Error, Result};

/// A safetensors file in the making. Nothing is at its path before [`TensorWriter::finish`].
#[derive(Debug)]
pub struct TensorWriter {
    path: PathBuf,
    spool_path: PathBuf,
    spool: BufWriter<File>,
    spooled: u64,
    library: &'static str,
    tensors: BTreeMap<String, Spooled>,
}

#[derive(Debug)]
struct Spooled {
    info: TensorInfo,
    start: u64,
    len: u64,
    sha256: String,
}

impl TensorWriter {
    /// Begins the file `path`, whose metadata will say that it has the layout of `library`: `pt` or `mlx`.
    ///
    /// # Errors
    /// When the directory can't be written.
    pub fn create(path: &Path, library: &'static str) -> Result<Self> {
        let mut spool_path = path.as_os_str().to_owned();
        spool_path.push(".spool");
        let spool_path = PathBuf::from(spool_path);
        let spool = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&spool_path)
            .map_err(|e| write_error(&spool_path, e))?;
        let spool = BufWriter::with_capacity(1 << 20, spool);
        Ok(Self { path: path.to_owned(), spool_path, spool, spooled: 0, library, tensors: BTreeMap::new() })
    }

    /// Adds the tensor `name`: `bytes` are its elements, little-endian and row-major.
    ///
    /// # Errors
    /// When the name was used, `bytes` has not the length of shape and dtype, or the disk is full.
    pub fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
        let elements = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        let want = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
        if want != bytes.len().checked_mul(8) {
            let problem = format!("{dtype} of shape {shape:?} does not fit the {} bytes given", bytes.len());
            return Err(Error::tensor(name, problem));
        }
        if name == METADATA_KEY || self.tensors.contains_key(name) {
            return Err(Error::tensor(name, format!("is already in {}", self.path.display())));
        }
        self.spool.write_all(bytes).map_err(|e| write_error(&self.spool_path, e))?;
        let info = TensorInfo { dtype, shape: shape.to_vec() };
        let len = bytes.len() as u64;
        self.tensors.insert(
            name.to_owned(),
            Spooled { info, start: self.spooled, len, sha256: sha256_hex(&[bytes]) },
        );
        self.spooled += len;
        Ok(())
    }

    /// Adds the tensor `name` with its values stored as `float`, rounded to nearest even, and gives back the bytes
    /// as stored.
    ///
    /// # Errors
    /// As [`TensorWriter::add`], and when a value is not finite or beyond the range of `float`.
    pub fn add_values(
        &mut self,
        name: &str,
        float: FloatType,
        shape: &[usize],
        values: &[f32],
    ) -> Result<Vec<u8>> {
        let bytes = float::store(float, values).map_err(|problem| Error::tensor(name, problem))?;
        self.add(name, float::dtype(float), shape, &bytes)?;
        Ok(bytes)
    }

    /// Writes the file, reads it back, compares it with what was added, and gives its length in bytes.
    ///
    /// # Errors
    /// When the disk is full, or gives back something else.
    pub fn finish(self) -> Result<u64> {
        let path = self.path.clone();
        self.finish_as(&path)
    }

    /// The same under another name.
    pub(super) fn finish_as(mut self, path: &Path) -> Result<u64> {
        self.path = path.to_owned();
        let mut order: Vec<(&String, &Spooled)> = self.tensors.iter().collect();
        order.sort_by_key(|(_, t)| falling(&t.info));
        let header =
            header(self.library, self.tensors.iter().map(|(name, t)| (name, &t.info, t.len)).collect());
        if header.len() > MAX_HEADER {
            let problem =
                format!("{} tensors need a header longer than {MAX_HEADER} bytes", self.tensors.len());
            return Err(Error::file(&self.path, problem));
        }
        let mut write = || -> io::Result<()> {
            self.spool.flush()?;
            let mut spool = self.spool.get_ref();
            let mut out = File::create(&self.path)?;
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            for (_, tensor) in &order {
                spool.seek(SeekFrom::Start(tensor.start))?;
                let copied = io::copy(&mut spool.take(tensor.len), &mut out)?;
                if copied != tensor.len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            out.sync_all()
        };
        write().map_err(|e| write_error(&self.path, e))?;
        fs::remove_file(&self.spool_path).map_err(|e| Error::io("cannot remove", &self.spool_path, e))?;
        self.check_written()?;
        Ok((LENGTH_BYTES + header.len()) as u64 + self.spooled)
    }

    fn check_written(&self) -> Result<()> {
        let written = TensorFiles::open_file(&self.path)?;
        let differs = |name: &str, tensor: &Spooled| -> Result<bool> {
            let same_info = *written.info(name)? == tensor.info;
            Ok(!same_info || sha256_hex(&[&written.bytes(name)?]) != tensor.sha256)
        };
        let problem = self.tensors.par_iter().find_map_first(|(name, tensor)| match differs(name, tensor) {
            Ok(false) => None,
            Ok(true) => {
                let problem =
                    format!("{name}: reads back differently from what was written; is the disk sound?");
                Some(Error::file(&self.path, problem))
            }
            Err(e) => Some(e),
        });
        problem.map_or(Ok(()), Err)
    }
}

/// Orders tensors by falling alignment.
fn falling(info: &TensorInfo) -> std::cmp::Reverse<usize> {
    std::cmp::Reverse(info.dtype.bitsize())
}

/// The header's JSON for `tensors` in the order of their names, each with its length in bytes; padded with blanks so that the tensors
/// begin at a multiple of 8.
pub(super) fn header(library: &str, mut tensors: Vec<(&String, &TensorInfo, u64)>) -> Vec<u8> {
    tensors.sort_by_key(|(_, info, _)| falling(info));
    let mut entries = Map::new();
    // transformers refuses a file that does not say which library's layout it has.
    entries.insert(METADATA_KEY.to_owned(), json!({"format": library}));
    let mut start = 0;
    for (name, TensorInfo { dtype, shape }, len) in tensors {
        let end = start + len;
        let entry = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [start, end]});
        entries.insert(name.clone(), entry);
        start = end;
    }
    let mut bytes = Value::Object(entries).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(LENGTH_BYTES), b' ');
    bytes
}

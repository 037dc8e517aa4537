//! Reads the container: which bytes of the file are which tensor, and the metadata.
//!
//! Layout, all little-endian: `GGUF`, u32 version, u64 tensors, u64 values; each value: string key, u32 type, content; each tensor: string name,
//! u32 dimensions, u64 sizes (innermost first), u32 type, u64 offset; padding to the alignment; the tensors, each padded to it.
//!
//! The file is taken for hostile. Invariant: a [`Gguf`] that exists has distinct names, and tensors whose ranges lie inside the file, have
//! the length that sizes and type ask for, and follow each other without overlap or gap.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::cursor::Cursor;
use super::kind::Kind;
use super::value::{Metadata, Value};
use crate::files::{Bytes, Mapped};
use crate::{Error, Result};

/// The first bytes of every GGUF file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// Key of the alignment of tensors.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// Alignment where the file names none.
pub(super) const ALIGNMENT: usize = 32;
/// Most values and most tensors.
const MAX_ENTRIES: u64 = 1 << 16;
/// Largest alignment.
const MAX_ALIGNMENT: usize = 1 << 20;
/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;

/// What the file says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Sizes, outermost first, as everywhere but in the file itself.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub kind: Kind,
    /// The bytes of the file that it occupies.
    range: Range<usize>,
}

impl TensorInfo {
    /// How many bytes it takes.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// Where in the file they begin.
    pub fn start(&self) -> usize {
        self.range.start
    }
}

/// A GGUF file whose header was read and checked.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mapped,
    /// Everything but the tensors.
    pub metadata: Metadata,
    tensors: BTreeMap<String, TensorInfo>,
}

/// A tensor as listed, its offset not yet checked against the file.
struct Listed {
    name: String,
    shape: Vec<usize>,
    kind: Kind,
    offset: u64,
}

impl Gguf {
    /// Whether the file at `path` begins as a GGUF file does.
    pub fn is_at(path: &Path) -> bool {
        use std::io::Read as _;
        let mut magic = [0; 4];
        let file = if path.is_file() { std::fs::File::open(path) } else { return false };
        file.and_then(|mut file| file.read_exact(&mut magic)).is_ok_and(|()| magic == MAGIC)
    }

    /// Opens the file at `path` and checks its header. The tensors' content is not looked at.
    ///
    /// # Errors
    /// It is no GGUF file of version 2 or 3, it is truncated, it lies about itself, or it has elements of a type that is not read.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapped::open(path)?;
        let (metadata, tensors) = parse(path, &map).map_err(|problem| Error::file(path, problem))?;
        Ok(Self { path: path.to_owned(), map, metadata, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What is said of the tensor `name`.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The tensor `name`: what is said of it, and its bytes without a copy.
    ///
    /// # Errors
    /// There is none.
    pub fn tensor(&self, name: &str) -> Result<(&TensorInfo, Bytes)> {
        let found = self.get(name).and_then(|info| Some((info, self.map.slice(info.range.clone())?)));
        found.ok_or_else(|| {
            let problem =
                format!("missing from {}, which holds {} tensors", self.path.display(), self.tensors.len());
            Error::tensor(name, problem)
        })
    }
}

fn parse(path: &Path, file: &[u8]) -> Result<(Metadata, BTreeMap<String, TensorInfo>), String> {
    let mut at = Cursor::new(file);
    let (tensors, values) = preamble(&mut at)?;
    let metadata = read_metadata(path, &mut at, values)?;
    let mut listed = Vec::new();
    for _ in 0..tensors {
        listed.push(read_listed(&mut at)?);
    }
    let alignment = alignment(&metadata)?;
    let start = at.at().next_multiple_of(alignment);
    Ok((metadata, place(listed, start, alignment, file.len())?))
}

/// Checks magic and version; how many tensors and values follow.
fn preamble(at: &mut Cursor<'_>) -> Result<(u64, u64), String> {
    let magic = at.u32()?.to_le_bytes();
    if magic != MAGIC {
        return Err(format!("begins with {magic:?}; want \"GGUF\": is it a GGUF file?"));
    }
    match at.u32()? {
        2 | 3 => {}
        1 => return Err("has version 1, of 2023; convert the original model again with llama.cpp".into()),
        swapped if matches!(swapped.swap_bytes(), 1..=3) => {
            return Err("is big-endian; want a little-endian file: convert the original model again".into());
        }
        version => {
            return Err(format!("has version {version}; versions 2 and 3 are read: is there a newer qat?"));
        }
    }
    let (tensors, values) = (at.u64()?, at.u64()?);
    for (count, what) in [(tensors, "tensors"), (values, "values in its metadata")] {
        if count > MAX_ENTRIES {
            return Err(format!("claims {count} {what}; at most {MAX_ENTRIES} are read: is it damaged?"));
        }
    }
    Ok((tensors, values))
}

fn read_metadata(path: &Path, at: &mut Cursor<'_>, count: u64) -> Result<Metadata, String> {
    let mut metadata = Metadata::new(path);
    let mut keys = BTreeSet::new();
    for _ in 0..count {
        let key = at.string()?;
        let value = at.value().map_err(|problem| format!("{key}: {problem}"))?;
        if !keys.insert(key.clone()) {
            return Err(format!("{key}: is there twice; write the file again"));
        }
        metadata.push(key, value);
    }
    Ok(metadata)
}

fn read_listed(at: &mut Cursor<'_>) -> Result<Listed, String> {
    let name = at.string()?;
    let told = |problem: String| format!("{name}: {problem}");
    let dims = at.u32().map_err(told)?;
    if !(1..=MAX_DIMS).contains(&dims) {
        return Err(told(format!("has {dims} dimensions; want 1 to {MAX_DIMS}")));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        let size = at.u64().map_err(told)?;
        match usize::try_from(size) {
            Ok(size @ 1..) => shape.insert(0, size),
            _ => return Err(told(format!("has a size of {size}"))),
        }
    }
    let kind = Kind::of(at.u32().map_err(told)?).map_err(told)?;
    let offset = at.u64().map_err(told)?;
    Ok(Listed { name, shape, kind, offset })
}

fn alignment(metadata: &Metadata) -> Result<usize, String> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() && *n as usize <= MAX_ALIGNMENT => Ok(*n as usize),
        Some(value) => Err(format!(
            "{ALIGNMENT_KEY}: {value:?}; want a U32 that is a power of two up to {MAX_ALIGNMENT}"
        )),
    }
}

/// Gives each tensor its bytes, behind `start`, and checks that they cover the file.
fn place(
    listed: Vec<Listed>,
    start: usize,
    alignment: usize,
    len: usize,
) -> Result<BTreeMap<String, TensorInfo>, String> {
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::new();
    for Listed { name, shape, kind, offset } in listed {
        let range = range(&shape, kind, offset, start).map_err(|problem| format!("{name}: {problem}"))?;
        if range.end > len {
            return Err(format!(
                "{name}: truncated: ends at byte {} of {len}; copy or download the file again",
                range.end
            ));
        }
        ranges.push((range.clone(), name.clone()));
        if tensors.insert(name.clone(), TensorInfo { shape, kind, range }).is_some() {
            return Err(format!("{name}: is there twice; write the file again"));
        }
    }
    ranges.sort_by_key(|(range, _)| (range.start, range.end));
    let mut end = start;
    for (range, name) in ranges {
        if range.start != end {
            let what = if range.start < end { "overlaps the tensor before it" } else { "leaves a gap" };
            return Err(format!(
                "{name}: begins at byte {}, want {end}: it {what}; write the file again",
                range.start
            ));
        }
        end = range
            .end
            .checked_next_multiple_of(alignment)
            .ok_or_else(|| format!("{name}: its end overflows"))?;
    }
    if len > end && !tensors.is_empty() {
        return Err(format!("has {} bytes after its last tensor; copy or download it again", len - end));
    }
    Ok(tensors)
}

fn range(shape: &[usize], kind: Kind, offset: u64, start: usize) -> Result<Range<usize>, String> {
    let overflows = || format!("sizes {shape:?} of {} overflow; write the file again", kind.name());
    let elements = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d)).ok_or_else(overflows)?;
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(kind.block_len()) {
        let (name, block) = (kind.name(), kind.block_len());
        return Err(format!("has rows of {row} elements; {name} wants a multiple of {block}"));
    }
    let bytes = kind.bytes(row, elements).ok_or_else(overflows)?;
    let offset = usize::try_from(offset).map_err(|_| format!("begins at {offset}"))?;
    let begin = start.checked_add(offset).ok_or_else(|| format!("its offset {offset} overflows"))?;
    let end = begin.checked_add(bytes).ok_or_else(overflows)?;
    Ok(begin..end)
}

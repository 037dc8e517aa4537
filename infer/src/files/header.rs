//! The header of a safetensors file: which bytes are which tensor.
//!
//! Layout (all little-endian): `u64` header length n, n bytes of JSON, then the tensors' bytes without gaps.
//! Knows no tensor values. Invariant: a [`Header`] that exists describes ranges that lie inside the file,
//! don't overlap, leave no gap, and have exactly the length that shape and dtype ask for.
//!
//! The file is taken for hostile. It is parsed here and not by the safetensors crate (0.8.0) because that one lets
//! a name occur twice, adds up offsets unchecked, and has messages that name neither the tensor nor what was wanted.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};

/// Longest header that is read, the limit of the format itself.
pub(super) const MAX_HEADER: usize = 100_000_000;
/// Bytes in front of the header that hold its length.
pub(super) const LENGTH_BYTES: usize = 8;
/// Key of the header that is not a tensor but a table of free-form strings.
pub(super) const METADATA_KEY: &str = "__metadata__";

/// Element type and shape of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type, as the file spells it.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

/// A tensor of the file: what it is and which bytes of the whole file it occupies.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub info: TensorInfo,
    pub range: Range<usize>,
}

/// The checked header of a file.
#[derive(Debug)]
pub(super) struct Header(pub BTreeMap<String, Entry>);

impl Header {
    /// Reads and checks the header of `file`, the whole content of the file at `path`.
    pub fn parse(path: &Path, file: &[u8]) -> Result<Self> {
        let json = header_bytes(path, file)?;
        let data_start = LENGTH_BYTES + json.len();
        let RawHeader(raw) = serde_json::from_slice(json).map_err(|e| {
            Error::file(path, format!("the safetensors header can't be read: {e}; write the file again"))
        })?;
        let mut entries = BTreeMap::new();
        for (name, raw) in raw {
            let entry = raw.checked(data_start).map_err(|p| Error::file(path, format!("{name}: {p}")))?;
            entries.insert(name, entry);
        }
        check_cover(path, &entries, data_start, file.len())?;
        Ok(Self(entries))
    }
}

fn header_bytes<'a>(path: &Path, file: &'a [u8]) -> Result<&'a [u8]> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        let problem =
            format!("is {} bytes long, too short for a safetensors file; copy it again", file.len());
        return Err(Error::file(path, problem));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER as u64 {
        let problem =
            format!("claims a header of {length} bytes (at most {MAX_HEADER}); is this a safetensors file?");
        return Err(Error::file(path, problem));
    }
    rest.get(..length as usize).ok_or_else(|| {
        let problem =
            format!("truncated: wants a header of {length} bytes, found {}; copy it again", rest.len());
        Error::file(path, problem)
    })
}

/// Every byte after the header belongs to exactly one tensor.
fn check_cover(path: &Path, entries: &BTreeMap<String, Entry>, start: usize, len: usize) -> Result<()> {
    let mut in_order: Vec<_> = entries.iter().collect();
    in_order.sort_by_key(|(_, e)| (e.range.start, e.range.end));
    let mut end = start;
    for (name, entry) in in_order {
        if entry.range.start != end {
            let what = if entry.range.start < end { "overlaps the tensor before it" } else { "leaves a gap" };
            let problem = format!(
                "{name}: begins at byte {}, want {end}: it {what}; write the file again",
                entry.range.start
            );
            return Err(Error::file(path, problem));
        }
        end = entry.range.end;
    }
    match end.cmp(&len) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => {
            let problem = format!("truncated: wants {end} bytes, found {len}; copy or download it again");
            Err(Error::file(path, problem))
        }
        std::cmp::Ordering::Less => {
            let problem = format!("has {} bytes after its last tensor; copy or download it again", len - end);
            Err(Error::file(path, problem))
        }
    }
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl RawEntry {
    fn checked(self, data_start: usize) -> Result<Entry, String> {
        let Self { dtype, shape, data_offsets: [start, end] } = self;
        let elements = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
        let Some(bits) = bits else {
            return Err(format!("shape {shape:?} of {dtype} overflows; write the file again"));
        };
        if !bits.is_multiple_of(8) {
            return Err(format!(
                "shape {shape:?} of {dtype} does not fill whole bytes; write the file again"
            ));
        }
        if end.checked_sub(start) != Some(bits / 8) {
            return Err(format!(
                "shape {shape:?} of {dtype} wants {} bytes, found offsets {start}..{end}; write the file again",
                bits / 8
            ));
        }
        let range = data_start.checked_add(start).zip(data_start.checked_add(end));
        let Some((start, end)) = range else {
            return Err(format!("offsets {start}..{end} overflow; write the file again"));
        };
        Ok(Entry { info: TensorInfo { dtype, shape }, range: start..end })
    }
}

/// The header's JSON object, in which a name may occur once.
struct RawHeader(BTreeMap<String, RawEntry>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawHeaderVisitor)
    }
}

struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from tensor names to dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let entry = map.next_value()?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(A::Error::custom(format_args!("{name} is listed twice")));
            }
        }
        Ok(RawHeader(entries))
    }
}

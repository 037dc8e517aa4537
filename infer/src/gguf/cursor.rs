//! Walks the header of a GGUF file from the front.
//!
//! Knows the primitive types and no structure. Invariants: nothing is read past the end; no length that the file claims is
//! allocated before so many bytes are known to be there; recursion is bounded.

use super::value::{ARRAY, Array, Value, scalars};

/// Longest header that is read.
const MAX_HEADER: usize = 100_000_000;
/// Longest string.
const MAX_STRING: u64 = 16 << 20;
/// Arrays in arrays in arrays.
const MAX_DEPTH: usize = 4;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Whether the file goes on behind `bytes`.
    cut: bool,
}

/// A value that the cursor reads, and the fewest bytes that one takes.
trait Primitive: Sized {
    const MIN_BYTES: u64;

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, String>;
}

macro_rules! numbers {
    ($($type:ty),*) => {
        $(impl Primitive for $type {
            const MIN_BYTES: u64 = size_of::<$type>() as u64;

            fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
                Ok(Self::from_le_bytes(*cursor.take()?))
            }
        })*
    };
}
numbers!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

impl Primitive for bool {
    const MIN_BYTES: u64 = 1;

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        match u8::read(cursor)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("a boolean is {other}; want 0 or 1")),
        }
    }
}

impl Primitive for String {
    const MIN_BYTES: u64 = 8;

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let len = u64::read(cursor)?;
        if len > MAX_STRING {
            return Err(format!("a string claims {len} bytes; at most {MAX_STRING} are read"));
        }
        let bytes = cursor.bytes(len as usize)?;
        let text = std::str::from_utf8(bytes).map_err(|e| format!("a string is not UTF-8: {e}"))?;
        Ok(text.to_owned())
    }
}

impl<'a> Cursor<'a> {
    /// From the front of `file`.
    pub fn new(file: &'a [u8]) -> Self {
        let bytes = &file[..file.len().min(MAX_HEADER)];
        Self { bytes, at: 0, cut: bytes.len() < file.len() }
    }

    /// How far it has walked.
    pub fn at(&self) -> usize {
        self.at
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        Primitive::read(self)
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        Primitive::read(self)
    }

    pub fn string(&mut self) -> Result<String, String> {
        Primitive::read(self)
    }

    /// A value of the metadata, with its type in front.
    pub fn value(&mut self) -> Result<Value, String> {
        let id = self.u32()?;
        macro_rules! read {
            ($($variant:ident $type:ident $id:literal),*) => {
                match id {
                    $($id => Ok(Value::$variant(Primitive::read(self)?)),)*
                    ARRAY => Ok(Value::Array(self.array(0)?)),
                    _ => Err(format!("a value has the type {id}, which GGUF doesn't have")),
                }
            };
        }
        scalars!(read)
    }

    fn array(&mut self, depth: usize) -> Result<Array, String> {
        if depth == MAX_DEPTH {
            return Err(format!("arrays are nested more than {MAX_DEPTH} deep"));
        }
        let (id, len) = (self.u32()?, self.u64()?);
        macro_rules! read {
            ($($variant:ident $type:ident $id:literal),*) => {
                match id {
                    $($id => Ok(Array::$variant(self.list(len, <$type>::MIN_BYTES, Primitive::read)?)),)*
                    ARRAY => Ok(Array::Array(self.list(len, 12, |cursor| cursor.array(depth + 1))?)),
                    _ => Err(format!("an array has elements of the type {id}, which GGUF doesn't have")),
                }
            };
        }
        scalars!(read)
    }

    fn list<T>(
        &mut self,
        len: u64,
        min_bytes: u64,
        read: impl Fn(&mut Self) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let rest = (self.bytes.len() - self.at) as u64;
        if len > rest / min_bytes {
            return Err(format!(
                "an array claims {len} elements of at least {min_bytes} bytes; {rest} bytes are left"
            ));
        }
        (0..len).map(|_| read(self)).collect()
    }

    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], String> {
        let bytes = self.bytes(N)?;
        bytes.first_chunk().ok_or_else(|| self.ended(N))
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let bytes = rest.get(..len).ok_or_else(|| self.ended(len))?;
        self.at += len;
        Ok(bytes)
    }

    fn ended(&self, wanted: usize) -> String {
        let rest = self.bytes.len() - self.at;
        match self.cut {
            true => format!("the header is longer than {MAX_HEADER} bytes"),
            false => format!(
                "truncated: wants {wanted} bytes at {}, found {rest}; copy or download it again",
                self.at
            ),
        }
    }
}

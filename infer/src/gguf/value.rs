//! The metadata of a GGUF file: named values of a closed set of types, in the order of the file.
//!
//! Knows no key's meaning and no bytes. Invariant: a name occurs once.

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Applies `$with` to the pairs of variant and Rust type that values and arrays have in common, with their numbers in files.
macro_rules! scalars {
    ($with:ident) => {
        $with! {
            U8 u8 0, I8 i8 1, U16 u16 2, I16 i16 3, U32 u32 4, I32 i32 5, F32 f32 6, Bool bool 7, String String 8, U64 u64 10, I64 i64 11,
            F64 f64 12
        }
    };
}
pub(super) use scalars;

/// The number of the type of arrays.
pub(super) const ARRAY: u32 = 9;

macro_rules! values {
    ($($variant:ident $type:ident $id:literal),*) => {
        /// A value of the metadata.
        #[derive(Debug, Clone, PartialEq)]
        #[expect(missing_docs, reason = "each is the type it is called after")]
        pub enum Value {
            $($variant($type),)*
            Array(Array),
        }

        /// Several values of one type.
        #[derive(Debug, Clone, PartialEq)]
        #[expect(missing_docs, reason = "each is the type it is called after")]
        pub enum Array {
            $($variant(Vec<$type>),)*
            Array(Vec<Array>),
        }

        impl Value {
            /// The number of its type in files.
            pub(super) fn id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)*
                    Self::Array(_) => ARRAY,
                }
            }
        }

        impl Array {
            /// The number of the type of its elements in files.
            pub(super) fn id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)*
                    Self::Array(_) => ARRAY,
                }
            }

            /// How many values it has.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(values) => values.len(),)*
                    Self::Array(arrays) => arrays.len(),
                }
            }

            /// Whether it has none.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }
    };
}
scalars!(values);

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

/// Named values, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    /// The file they are from, for messages.
    origin: PathBuf,
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// No values yet; messages about missing ones name `origin`.
    pub fn new(origin: &Path) -> Self {
        Self { origin: origin.to_owned(), entries: Vec::new() }
    }

    /// Adds a value, or replaces the one of that name.
    pub fn set(&mut self, key: impl Into<String>, value: Value) {
        let key = key.into();
        match self.entries.iter_mut().find(|(known, _)| *known == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key, value)),
        }
    }

    /// Adds a value under a name that the caller knows to be new.
    pub(super) fn push(&mut self, key: String, value: Value) {
        self.entries.push((key, value));
    }

    /// All of them, in order.
    pub fn entries(&self) -> &[(String, Value)] {
        &self.entries
    }

    /// The value called `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// The whole number called `key`, whatever integer type holds it; none if there is none.
    ///
    /// # Errors
    /// It is something else, negative or too large.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let found = match self.get(key) {
            None => return Ok(None),
            Some(Value::U8(n)) => Some(usize::from(*n)),
            Some(Value::U16(n)) => Some(usize::from(*n)),
            Some(Value::U32(n)) => usize::try_from(*n).ok(),
            Some(Value::U64(n)) => usize::try_from(*n).ok(),
            Some(Value::I8(n)) => usize::try_from(*n).ok(),
            Some(Value::I16(n)) => usize::try_from(*n).ok(),
            Some(Value::I32(n)) => usize::try_from(*n).ok(),
            Some(Value::I64(n)) => usize::try_from(*n).ok(),
            Some(_) => None,
        };
        found.map(Some).ok_or_else(|| self.wrong(key, "a whole number"))
    }

    /// The number called `key`; none if there is none.
    ///
    /// # Errors
    /// It is no float.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(x)) => Ok(Some(shortest(*x))),
            Some(Value::F64(x)) => Ok(Some(*x)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    /// The text called `key`; none if there is none.
    ///
    /// # Errors
    /// It is no text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// The switch called `key`; none if there is none.
    ///
    /// # Errors
    /// It is no boolean.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "a boolean")),
        }
    }

    /// The list of texts called `key`; none if there is none.
    ///
    /// # Errors
    /// It is something else.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(texts))) => Ok(Some(texts)),
            Some(_) => Err(self.wrong(key, "an array of strings")),
        }
    }

    /// The error of a value that is missing or another than `wanted`.
    pub(super) fn wrong(&self, key: &str, wanted: &str) -> Error {
        let found = match self.get(key) {
            None => "missing".to_owned(),
            Some(Value::Array(array)) => format!("found an array of {}", array.len()),
            Some(value) => format!("found {value:?}"),
        };
        Error::file(&self.origin, format!("{key}: {found}; want {wanted}"))
    }

    /// The file they are from.
    pub(super) fn origin(&self) -> &Path {
        &self.origin
    }
}

/// The f64 with the fewest digits that is the same f32, so that 1e-5 reads as 1e-5.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

//! A GGUF file put together byte by byte, so that it can say anything.

use std::path::PathBuf;

use crate::gguf::Gguf;

/// Bytes in the making.
#[derive(Clone, Default)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    /// Magic, version 3, and the two counts.
    pub fn header(tensors: u64, values: u64) -> Self {
        Self::default().raw(b"GGUF").u32(3).u64(tensors).u64(values)
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn u32(self, n: u32) -> Self {
        self.raw(&n.to_le_bytes())
    }

    pub fn u64(self, n: u64) -> Self {
        self.raw(&n.to_le_bytes())
    }

    pub fn string(self, text: &str) -> Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }

    /// A value of type U32.
    pub fn number(self, key: &str, value: u32) -> Self {
        self.string(key).u32(4).u32(value)
    }

    /// A tensor of the list; `dims` innermost first.
    pub fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let begun = self.string(name).u32(dims.len() as u32);
        dims.iter().fold(begun, |raw, &dim| raw.u64(dim)).u32(kind).u64(offset)
    }

    /// Zeros up to a multiple of 32, and `len` more.
    pub fn data(mut self, len: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + len, 0);
        self
    }

    /// What opening it says.
    pub fn open(&self) -> Result<Gguf, String> {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("model.gguf");
        std::fs::write(&path, &self.0).unwrap();
        Gguf::open(&path).map_err(|error| {
            let message = error.to_string();
            let prefix = format!("{}: ", path.display());
            message
                .strip_prefix(&prefix)
                .unwrap_or_else(|| panic!("{message} doesn't name the file"))
                .to_owned()
        })
    }

    /// That opening it says `wanted`.
    #[track_caller]
    pub fn refused(&self, wanted: &str) {
        match self.open() {
            Ok(_) => panic!("opened; wanted {wanted:?}"),
            Err(found) => assert!(found.contains(wanted), "wanted {wanted:?}, found {found:?}"),
        }
    }
}

//! What a cache was made of: beside it as JSON for people, in each of its files as a digest.

use std::path::Path;

use qat_infer::files::write_file_atomic;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::record::Layout;
use crate::{Error, Result, student::Floats};

const FILE: &str = "teacher.json";

/// Everything that decides what a teacher says about windows of text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Version of the files and of the order of the windows.
    pub version: u32,
    /// SHA-256 of the teacher's shape and weights, in hex.
    pub teacher: String,
    /// Key of the token file, in hex.
    pub tokens: String,
    /// Tokens of a window.
    pub ctx: usize,
    /// Ids of the vocabulary.
    pub vocab: usize,
    /// Tokens kept of each prediction.
    pub top_k: usize,
    /// Temperature of the probabilities.
    pub temperature: f32,
    /// Windows that fit into the training part.
    pub windows: u64,
}

impl Identity {
    /// What a record is.
    pub fn layout(&self) -> Layout {
        Layout { vocab: self.vocab, top_k: self.top_k, temperature: self.temperature }
    }

    fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| Error::Config(format!("teacher.cache: {e}")))
    }

    /// SHA-256 of all of it.
    pub fn digest(&self) -> Result<[u8; 32]> {
        Ok(Sha256::digest(self.to_json()?).into())
    }

    /// Puts it into the folder `dir`, or finds it there.
    ///
    /// # Errors
    /// A folder that is a cache of something else, by the first key that differs.
    pub fn claim(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(write_file_atomic(&path, self.to_json()?.as_bytes())?);
            }
            Err(e) => return Err(Error::io("cannot read", &path, e)),
        };
        let fix = "name another folder in teacher.cache, or delete this one";
        let found: Self = serde_json::from_str(&text).map_err(|e| {
            Error::file(&path, format!("says not what a teacher's cache is made of ({e}); {fix}"))
        })?;
        match self.difference(&found) {
            Some((key, want, found)) => {
                let problem = format!("the cache was made with {key} = {found}, this run has {want}; {fix}");
                Err(Error::file(&path, problem))
            }
            None => Ok(()),
        }
    }

    /// The first key that differs, with both values.
    fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let differ = |key, a: &dyn std::fmt::Display, b: &dyn std::fmt::Display| {
            let (a, b) = (a.to_string(), b.to_string());
            (a != b).then_some((key, a, b))
        };
        differ("version", &self.version, &other.version)
            .or_else(|| differ("teacher", &self.teacher, &other.teacher))
            .or_else(|| differ("tokens", &self.tokens, &other.tokens))
            .or_else(|| differ("ctx", &self.ctx, &other.ctx))
            .or_else(|| differ("vocab", &self.vocab, &other.vocab))
            .or_else(|| differ("top_k", &self.top_k, &other.top_k))
            .or_else(|| differ("temperature", &self.temperature, &other.temperature))
            .or_else(|| differ("windows", &self.windows, &other.windows))
    }
}

/// SHA-256 of a model's shape and weights, in hex: the same whatever files they came from.
pub fn of_model(floats: &Floats) -> String {
    let tensor = |(name, values): (&String, &Vec<f32>)| {
        let mut hash = Sha256::new().chain_update(name);
        for part in values.chunks(1 << 16) {
            hash.update(part.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        }
        hash.finalize()
    };
    let tensors: Vec<_> = floats.tensors.par_iter().map(tensor).collect();
    let mut hash = Sha256::new().chain_update(floats.config.to_json().to_string());
    tensors.iter().for_each(|digest| hash.update(digest));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

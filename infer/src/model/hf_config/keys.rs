//! The keys of a JSON object: found, missing, or of another kind than wanted.
//!
//! Knows no model. Invariant: `null` counts as absent, as in transformers.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// The keys of one JSON object; `null` counts as absent, as in transformers.
pub struct Keys<'a> {
    pub json: &'a Value,
    /// What precedes a key in messages ("" or "rope_scaling.").
    pub prefix: &'static str,
    pub origin: &'a Path,
}

impl<'a> Keys<'a> {
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    pub fn wrong(&self, key: &str, found: &Value, wanted: &str) -> Error {
        Error::file(self.origin, format!("{}{key}: {found} is not supported; want {wanted}", self.prefix))
    }

    pub fn missing(&self, key: &str, wanted: &str) -> Error {
        Error::file(self.origin, format!("{}{key}: missing; want {wanted}", self.prefix))
    }

    pub fn size(&self, key: &str) -> Result<usize> {
        const WANTED: &str = "a whole number";
        let value = self.get(key).ok_or_else(|| self.missing(key, WANTED))?;
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| self.wrong(key, value, WANTED))
    }

    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        self.get(key).map_or(Ok(default), |_| self.size(key))
    }

    pub fn number(&self, key: &str) -> Result<f64> {
        const WANTED: &str = "a number";
        let value = self.get(key).ok_or_else(|| self.missing(key, WANTED))?;
        value.as_f64().ok_or_else(|| self.wrong(key, value, WANTED))
    }

    pub fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        const WANTED: &str = "a list of numbers";
        let value = self.get(key).ok_or_else(|| self.missing(key, WANTED))?;
        let numbers: Option<Vec<f64>> =
            value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers.ok_or_else(|| self.wrong(key, value, WANTED))
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// One id, a list of ids, or none.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        list.iter()
            .map(|v| id(v).ok_or_else(|| self.wrong(key, value, "a token id or a list of token ids")))
            .collect()
    }
}

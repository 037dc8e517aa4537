//! The tokenizer of a model, checked against the model, and its identity.
//!
//! Knows no text. Invariant: no id that the tokenizer gives is outside the model's vocabulary, and no text is cut
//! or padded behind the caller's back.

use std::fmt;
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::digest::sha256_hex;
use super::hf::missing_tokenizer;
use crate::error::{Error, Result};

/// Loads `tokenizer.json` for a model of `vocab_size` ids. Truncation and padding that the file may ask for are
/// switched off: a corpus must arrive whole.
///
/// # Errors
/// When there is no such file, it can't be read, or its highest id is not below `vocab_size`.
pub fn load_tokenizer(path: &Path, vocab_size: usize) -> Result<Tokenizer> {
    if let Some(dir) = path.parent().filter(|dir| dir.is_dir() && !path.exists()) {
        let problem = format!("text can't be read without a tokenizer: missing {}", missing_tokenizer(dir));
        return Err(Error::file(dir, problem));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
    parse_tokenizer(path, &bytes, vocab_size)
}

/// The same for the content `json` of a `tokenizer.json` that came from `path`.
pub(crate) fn parse_tokenizer(path: &Path, json: &[u8], vocab_size: usize) -> Result<Tokenizer> {
    let refused = |e: &dyn fmt::Display| {
        Error::file(path, format!("not a tokenizer.json of the tokenizers library: {e}"))
    };
    // The library takes it for granted that the parts are JSON, strings and all, and panics where one isn't.
    let parts: Value = serde_json::from_slice(json).map_err(|e| refused(&e))?;
    check_templates(&parts["post_processor"]).map_err(|problem| refused(&problem))?;
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| refused(&e))?;
    let highest = tokenizer.get_vocab(true).into_values().max();
    let Some(highest) = highest else {
        return Err(Error::file(path, "has an empty vocabulary; use the tokenizer of the model"));
    };
    if highest as usize >= vocab_size {
        let problem = format!(
            "its highest token id is {highest}, but the model's vocabulary ends at {} (vocab_size {vocab_size}); \
             use the tokenizer of the model",
            vocab_size.saturating_sub(1)
        );
        return Err(Error::file(path, problem));
    }
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|e| Error::file(path, format!("truncation can't be switched off: {e}")))?;
    Ok(tokenizer)
}

/// Every template in the step `processor` names special tokens that it has, and the one text that there is: the library looks them
/// up without asking.
fn check_templates(processor: &Value) -> Result<(), String> {
    let steps = processor["processors"].as_array();
    steps.into_iter().flatten().try_for_each(check_templates)?;
    for (form, texts) in [("single", &["A"][..]), ("pair", &["A", "B"])] {
        for piece in processor[form].as_array().into_iter().flatten() {
            let (token, text) = (&piece["SpecialToken"]["id"], &piece["Sequence"]["id"]);
            if token.as_str().is_some_and(|id| processor["special_tokens"].get(id).is_none()) {
                return Err(format!("its template names the special token {token}, which it lacks"));
            }
            if text.as_str().is_some_and(|id| !texts.contains(&id)) {
                return Err(format!("its template for {form} texts has a text {text}"));
            }
        }
    }
    Ok(())
}

/// SHA-256, in hex, of what the tokenizer does: two files that differ only in white space, or in the truncation and
/// padding that [`load_tokenizer`] switches off, have the same. Teacher, student and token files are compared by it.
///
/// # Errors
/// When the tokenizer can't be written as JSON.
pub fn tokenizer_sha256(tokenizer: &Tokenizer) -> Result<String> {
    let json = tokenizer
        .to_string(false)
        .map_err(|e| Error::Invalid(format!("the tokenizer can't be written as JSON: {e}")))?;
    Ok(sha256_hex(&[json.as_bytes()]))
}

/// Whether two tokenizers have the same tokens under the same ids and cut text alike. Of no account are what they put around a text, how
/// they put text together again, and which tokens they call special: a file of llama.cpp tells that otherwise or not at all.
///
/// # Errors
/// When one can't be written as JSON.
pub fn same_tokens(a: &Tokenizer, b: &Tokenizer) -> Result<bool> {
    Ok(a.get_vocab(true) == b.get_vocab(true) && cutting(a)? == cutting(b)?)
}

/// What decides how text is cut.
fn cutting(tokenizer: &Tokenizer) -> Result<[Value; 4]> {
    let unwritable = |e: String| Error::Invalid(format!("the tokenizer can't be written as JSON: {e}"));
    let json = tokenizer.to_string(false).map_err(|e| unwritable(e.to_string()))?;
    let mut json: Value = serde_json::from_str(&json).map_err(|e| unwritable(e.to_string()))?;
    // Where a token stood in the text is told by offsets, not by ids.
    let mut steps = vec![&mut json["pre_tokenizer"]];
    while let Some(step) = steps.pop() {
        if let Some(object) = step.as_object_mut() {
            object.remove("trim_offsets");
        }
        steps.extend(step.get_mut("pretokenizers").and_then(Value::as_array_mut).into_iter().flatten());
    }
    let model = &mut json["model"];
    let (merges, bytes) = (model["merges"].take(), model["byte_fallback"].take());
    Ok([json["normalizer"].take(), json["pre_tokenizer"].take(), merges, bytes])
}

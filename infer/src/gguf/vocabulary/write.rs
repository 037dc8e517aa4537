//! `tokenizer.json` and the files beside it, as llama.cpp's metadata.
//!
//! Invariants: every id of the model has exactly one text, and no two share one; what is written makes llama.cpp cut text as the
//! tokenizer does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tokenizers::{Model as _, Tokenizer};

use super::special::Special;
use super::{
    ADD_BOS, ADD_EOS, ADD_SPACE, BYTE_LEVEL, MERGES, MODEL, NO_VOCABULARY, PRE, SCORES, SENTENCE_PIECE,
    SPACE, TEMPLATE, TOKENS, TYPES, TokenType, pre, scores,
};
use crate::files::{TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};
use crate::gguf::{Array, Metadata, Value};
use crate::model::{Config, Family};
use crate::{Error, Result};

/// The files that say what a tokenizer does.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Path of `tokenizer.json`, for messages.
    path: PathBuf,
    /// Its content; null where there is none.
    pub(super) tokenizer: Json,
    pub(super) tokenizer_config: Json,
    pub(super) generation_config: Json,
    template: Option<String>,
}

/// A token of the model.
struct Token {
    text: String,
    kind: TokenType,
}

impl Files {
    /// Reads those among `companions`.
    ///
    /// # Errors
    /// One can't be read or is not JSON.
    pub fn read(companions: &[PathBuf]) -> Result<Self> {
        let find = |name: &str| companions.iter().find(|path| path.file_name().is_some_and(|n| n == name));
        let read = |path: &Path| std::fs::read(path).map_err(|e| Error::io("cannot read", path, e));
        let json = |name: &str| match find(name) {
            None => Ok(Json::Null),
            Some(path) => {
                serde_json::from_slice(&read(path)?).map_err(|e| Error::file(path, format!("not JSON: {e}")))
            }
        };
        let template = find("chat_template.jinja")
            .map(|path| String::from_utf8(read(path)?).map_err(|_| Error::file(path, "is not UTF-8")));
        Ok(Self {
            path: find(TOKENIZER_FILE).cloned().unwrap_or_default(),
            tokenizer: json(TOKENIZER_FILE)?,
            tokenizer_config: json(TOKENIZER_CONFIG_FILE)?,
            generation_config: json("generation_config.json")?,
            template: template.transpose()?,
        })
    }

    /// The chat template: in a file of its own, or in `tokenizer_config.json`, alone or as the default of several.
    fn template(&self) -> Option<&str> {
        let listed = &self.tokenizer_config["chat_template"];
        let default = || {
            let several = listed.as_array()?;
            several.iter().find(|one| one["name"] == "default")?["template"].as_str()
        };
        self.template.as_deref().or_else(|| listed.as_str()).or_else(default)
    }

    /// Whether a text gets a token in front (`which` is "bos") or behind ("eos") by itself.
    fn adds(&self, which: &str, token: Option<&str>) -> bool {
        if let Some(said) = self.tokenizer_config[format!("add_{which}_token")].as_bool() {
            return said;
        }
        token.is_some() && self.put_around(which == "bos") == token
    }

    /// The token that the tokenizer itself puts in `front` of a text, or behind it.
    pub(super) fn put_around(&self, front: bool) -> Option<&str> {
        let after = &self.tokenizer["post_processor"];
        let steps = after["processors"].as_array().map_or(std::slice::from_ref(after), Vec::as_slice);
        let single = steps.iter().find_map(|step| step["single"].as_array())?;
        let piece = if front { single.first() } else { single.last() };
        piece?["SpecialToken"]["id"].as_str()
    }
}

/// Writes the tokenizer in `files` into `metadata`, for a model of the shape `config`.
///
/// # Errors
/// It is of a kind that llama.cpp doesn't have, or that it would carry out differently; an id is outside of the model's vocabulary.
pub(crate) fn write(files: &Files, config: &Config, metadata: &mut Metadata) -> Result<()> {
    if files.tokenizer.is_null() {
        metadata.set(MODEL, Value::from(NO_VOCABULARY));
        let arch = metadata.text("general.architecture")?.unwrap_or_default();
        metadata.set(format!("{arch}.vocab_size"), Value::U32(config.vocab_size as u32));
        return Ok(());
    }
    let refused =
        |problem: String| Error::file(&files.path, format!("{problem} (it can't be written for llama.cpp)"));
    let model = &files.tokenizer["model"];
    if model["type"].as_str().unwrap_or("BPE") != "BPE" {
        return Err(refused(format!("its model is {}; want BPE", model["type"])));
    }
    let tokens = tokens(files, config.vocab_size).map_err(refused)?;
    match model["byte_fallback"] == true {
        true => sentence_piece(files, &tokens, metadata).map_err(refused)?,
        false => byte_level(files, config, &tokens, metadata).map_err(refused)?,
    }
    let ids: BTreeMap<&str, u32> = tokens.iter().map(|token| token.text.as_str()).zip(0..).collect();
    let special = Special::of(files, config, |text| ids.get(text).copied());
    for (name, id) in special.named() {
        if id as usize >= tokens.len() {
            return Err(refused(format!("the {name} token is {id}; the model has {} tokens", tokens.len())));
        }
        metadata.set(format!("tokenizer.ggml.{name}_token_id"), Value::U32(id));
    }
    let text = |id: Option<u32>| id.map(|id| tokens[id as usize].text.as_str());
    metadata.set(ADD_BOS, Value::Bool(files.adds("bos", text(special.bos))));
    if files.adds("eos", text(special.eos.first().copied())) {
        metadata.set(ADD_EOS, Value::Bool(true));
    }
    if let Some(template) = files.template() {
        metadata.set(TEMPLATE, Value::from(template));
    }
    Ok(())
}

fn byte_level(
    files: &Files,
    config: &Config,
    tokens: &[Token],
    metadata: &mut Metadata,
) -> Result<(), String> {
    let pre = pre::recognize(&files.tokenizer)?;
    if pre.whole_words != (files.tokenizer["model"]["ignore_merges"] == true) {
        merges_make_every_token(&files.tokenizer, tokens)?;
    }
    let merges = merges(&files.tokenizer["model"])?;
    // Of no effect for these tokenizers; llama.cpp's converter writes it for the architecture llama.
    if let (Family::Llama, Some(prefix)) =
        (config.family, files.tokenizer_config["add_prefix_space"].as_bool())
    {
        metadata.set(ADD_SPACE, Value::Bool(prefix));
    }
    metadata.set(MODEL, Value::from(BYTE_LEVEL));
    metadata.set(PRE, Value::from(pre.name));
    write_texts(tokens, metadata);
    write_types(tokens, metadata);
    // In these tokens no space is a space, so that one can stand between the parts.
    let line =
        |(left, right): &(&str, &str)| format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ"));
    metadata.set(MERGES, Value::Array(Array::String(merges.iter().map(line).collect())));
    Ok(())
}

fn sentence_piece(files: &Files, tokens: &[Token], metadata: &mut Metadata) -> Result<(), String> {
    let prefix = adds_space(&files.tokenizer)?;
    let merges = merges(&files.tokenizer["model"])?;
    let vocab: BTreeMap<&str, u32> = tokens.iter().map(|token| token.text.as_str()).zip(0..).collect();
    let normal = |id: u32| tokens[id as usize].kind == TokenType::Normal;
    let scores = scores::of_merges(&vocab, &merges, normal)
        .map_err(|problem| format!("its merges are not those of SentencePiece, the only ones that llama.cpp has beside byte-level: {problem}"))?;
    metadata.set(ADD_SPACE, Value::Bool(prefix));
    metadata.set(MODEL, Value::from(SENTENCE_PIECE));
    metadata.set(PRE, Value::from("default"));
    write_texts(tokens, metadata);
    let of_id = |id: u32| scores.get(&id).copied().unwrap_or(0.0);
    metadata.set(SCORES, Value::Array(Array::F32((0..tokens.len() as u32).map(of_id).collect())));
    write_types(tokens, metadata);
    Ok(())
}

fn write_texts(tokens: &[Token], metadata: &mut Metadata) {
    metadata
        .set(TOKENS, Value::Array(Array::String(tokens.iter().map(|token| token.text.clone()).collect())));
}

fn write_types(tokens: &[Token], metadata: &mut Metadata) {
    metadata.set(TYPES, Value::Array(Array::I32(tokens.iter().map(|token| token.kind as i32).collect())));
}

/// Refuses a tokenizer for which it matters whether a word that is a token is taken whole or put together by merges.
fn merges_make_every_token(tokenizer: &Json, tokens: &[Token]) -> Result<(), String> {
    let mut tokenizer = tokenizer.clone();
    tokenizer["model"]["ignore_merges"] = Json::Bool(false);
    let tokenizer = Tokenizer::from_bytes(tokenizer.to_string()).map_err(|e| e.to_string())?;
    for token in tokens.iter().filter(|token| token.kind == TokenType::Normal) {
        let made = tokenizer.get_model().tokenize(&token.text).map_err(|e| e.to_string())?;
        if made.len() != 1 {
            let parts: Vec<&str> = made.iter().map(|part| part.value.as_str()).collect();
            return Err(format!(
                "the word {:?} is a token, and the merges make {parts:?} of it: llama.cpp decides otherwise between the two",
                token.text
            ));
        }
    }
    Ok(())
}

/// A merge, in either spelling: "a b" or ["a", "b"].
fn pair(merge: &Json) -> Option<(&str, &str)> {
    match merge {
        Json::String(line) => line.split_once(' '),
        other => Some((other.get(0)?.as_str()?, other.get(1)?.as_str()?)),
    }
}

/// The merges of `model`.
fn merges(model: &Json) -> Result<Vec<(&str, &str)>, String> {
    let listed = model["merges"].as_array().ok_or("its model has no list of merges")?;
    listed.iter().map(|merge| pair(merge).ok_or_else(|| format!("the merge {merge} is no pair"))).collect()
}

/// Whether SentencePiece puts a space in front of a text. Refuses what it doesn't do.
fn adds_space(tokenizer: &Json) -> Result<bool, String> {
    let (normalizer, cutting) = (&tokenizer["normalizer"], &tokenizer["pre_tokenizer"]);
    let steps = match normalizer["type"].as_str() {
        None => Vec::new(),
        Some("Sequence") => {
            normalizer["normalizers"].as_array().map_or(Vec::new(), |list| list.iter().collect())
        }
        Some(_) => vec![normalizer],
    };
    let prepends = |step: &Json| step["type"] == "Prepend" && step["prepend"] == SPACE;
    let replaces = |step: &Json| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE
    };
    // Gemma cuts before spaces, of which there are none left.
    let cuts_nothing = cutting.is_null() || cutting["type"] == "Split" && cutting["pattern"]["String"] == " ";
    match *steps.as_slice() {
        [first, second] if prepends(first) && replaces(second) && cutting.is_null() => Ok(true),
        [step] if replaces(step) && cuts_nothing => Ok(false),
        [] if cutting["type"] == "Metaspace"
            && cutting["replacement"] == SPACE
            && cutting["split"] == false =>
        {
            Ok(cutting["prepend_scheme"] != "never")
        }
        _ => Err(format!(
            "normalizer {normalizer} with pre_tokenizer {cutting}: SentencePiece replaces spaces by {SPACE}, and may put one in front"
        )),
    }
}

/// The token of every id.
fn tokens(files: &Files, vocab_size: usize) -> Result<Vec<Token>, String> {
    let model = &files.tokenizer["model"];
    let vocab = model["vocab"].as_object().ok_or("its model has no vocabulary")?;
    let mut found: BTreeMap<usize, Token> = BTreeMap::new();
    let unknown = model["unk_token"].as_str();
    let bytes = model["byte_fallback"] == true;
    for (text, id) in vocab {
        let kind = match text {
            text if Some(text.as_str()) == unknown => TokenType::Unknown,
            text if bytes && is_byte(text) => TokenType::Byte,
            _ => TokenType::Normal,
        };
        add(&mut found, id, Token { text: text.clone(), kind })?;
    }
    for added in files.tokenizer["added_tokens"].as_array().map_or(&[][..], Vec::as_slice) {
        let text = added["content"].as_str().ok_or("an added token has no content")?;
        if Some(text) == unknown {
            continue;
        }
        let token = match added["special"] == true || looks_special(text) {
            true => Token { text: text.to_owned(), kind: TokenType::Control },
            false => Token { text: text.replace(SPACE, " "), kind: TokenType::UserDefined },
        };
        let id = added["id"].as_u64().and_then(|id| usize::try_from(id).ok());
        if let Some(known) = id.and_then(|id| found.remove(&id)).filter(|known| known.text != text) {
            return Err(format!("{:?} and {text:?} have the same id", known.text));
        }
        add(&mut found, &added["id"], token)?;
    }
    if let Some((highest, _)) = found.last_key_value().filter(|(id, _)| **id >= vocab_size) {
        return Err(format!("its highest id is {highest}; the model has {vocab_size} tokens"));
    }
    let of_id = |id: usize| {
        found.remove(&id).unwrap_or_else(|| Token { text: format!("[PAD{id}]"), kind: TokenType::Unused })
    };
    let tokens: Vec<Token> = (0..vocab_size).map(of_id).collect();
    let mut texts = BTreeSet::new();
    match tokens.iter().find(|token| !texts.insert(token.text.as_str())) {
        Some(token) => Err(format!("{:?} is the text of two tokens", token.text)),
        None => Ok(tokens),
    }
}

fn add(found: &mut BTreeMap<usize, Token>, id: &Json, token: Token) -> Result<(), String> {
    let number = id.as_u64().and_then(|id| usize::try_from(id).ok());
    let number = number.ok_or_else(|| format!("{:?} has the id {id}", token.text))?;
    let text = token.text.clone();
    match found.insert(number, token) {
        Some(other) => Err(format!("{:?} and {text:?} have the same id", other.text)),
        None => Ok(()),
    }
}

/// Whether SentencePiece means a byte by `text`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Whether llama.cpp's converter takes an added token for a control token although it isn't marked as special.
fn looks_special(text: &str) -> bool {
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || text.starts_with("<|") && text.ends_with("|>")
        || text.starts_with("<｜") && text.ends_with("｜>")
        || text.starts_with("<unused") && text.ends_with('>')
}

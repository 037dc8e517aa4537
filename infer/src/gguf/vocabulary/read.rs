//! llama.cpp's metadata as a `tokenizer.json`.
//!
//! Invariant: what is given back cuts text as llama.cpp does, up to normalization to NFC, which the original models have.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::{
    ADD_BOS, ADD_EOS, ADD_SPACE, BYTE_LEVEL, MERGES, MODEL, PRE, SCORES, SENTENCE_PIECE, SPACE, TEMPLATE,
    TOKENS, TYPES, TokenType, pre, scores,
};
use crate::gguf::{Array, Metadata, Value};
use crate::{Error, Result};

/// Longest token: several times what any model has.
const MAX_TOKEN: usize = 1 << 12;

/// The tokens with their types.
struct Tokens<'a> {
    texts: &'a [String],
    types: Vec<TokenType>,
}

/// The `tokenizer.json` that `metadata` describe, for a model of `vocab_size` ids.
///
/// # Errors
/// There is no tokenizer, it is of a kind that is not supported, or it contradicts itself.
pub(crate) fn to_json(metadata: &Metadata, vocab_size: usize) -> Result<Json> {
    let tokens = tokens(metadata, vocab_size)?;
    let parts = match metadata.text(MODEL)? {
        Some(BYTE_LEVEL) => byte_level(metadata, &tokens)?,
        Some(SENTENCE_PIECE) => sentence_piece(metadata, &tokens)?,
        _ => {
            return Err(metadata.wrong(
                MODEL,
                &format!(
                    "{BYTE_LEVEL:?} or {SENTENCE_PIECE:?}; put the model's tokenizer.json beside the file"
                ),
            ));
        }
    };
    let Parts { normalizer, pre_tokenizer, decoder, model, adds_bos } = parts;
    let around = around(metadata, &tokens, adds_bos)?;
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": tokens.added(),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": around,
        "decoder": decoder,
        "model": model,
    }))
}

/// The `tokenizer_config.json` that `metadata` describe.
///
/// # Errors
/// A value of another type than it should have, or an id without a token.
pub(crate) fn settings(metadata: &Metadata) -> Result<Json> {
    let mut settings = Map::new();
    settings.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    let texts = metadata.texts(TOKENS)?.unwrap_or_default();
    for (ours, theirs) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        let token = special(metadata, texts, theirs)?;
        settings.insert(format!("{ours}_token"), json!(token.map(|(_, text)| text)));
    }
    for (ours, theirs) in [("add_bos_token", ADD_BOS), ("add_eos_token", ADD_EOS)] {
        if let Some(flag) = metadata.flag(theirs)? {
            settings.insert(ours.into(), flag.into());
        }
    }
    if let Some(template) = metadata.text(TEMPLATE)? {
        settings.insert("chat_template".into(), template.into());
    }
    Ok(Json::Object(settings))
}

/// Id and text of the token with the task `name`.
fn special<'a>(metadata: &Metadata, texts: &'a [String], name: &str) -> Result<Option<(usize, &'a str)>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = metadata.size(&key)? else { return Ok(None) };
    let text = texts.get(id).ok_or_else(|| metadata.wrong(&key, &format!("an id below {}", texts.len())))?;
    Ok(Some((id, text)))
}

/// What differs between the two kinds.
struct Parts {
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
    model: Json,
    /// Whether llama.cpp puts the first token in front where the file doesn't say.
    adds_bos: bool,
}

fn tokens(metadata: &Metadata, vocab_size: usize) -> Result<Tokens<'_>> {
    let texts = metadata.texts(TOKENS)?.ok_or_else(|| {
        metadata.wrong(TOKENS, "a tokenizer; put the model's tokenizer.json beside the file")
    })?;
    // Work on a token grows faster than its length.
    if let Some(text) = texts.iter().find(|text| text.len() > MAX_TOKEN) {
        let problem = format!("{TOKENS}: a token has {} bytes; at most {MAX_TOKEN} are read", text.len());
        return Err(Error::file(metadata.origin(), problem));
    }
    if texts.len() > vocab_size {
        return Err(metadata.wrong(TOKENS, &format!("at most {vocab_size}, the rows of the embedding")));
    }
    let types = match metadata.get(TYPES) {
        None => vec![TokenType::Normal; texts.len()],
        Some(Value::Array(Array::I32(types))) if types.len() == texts.len() => {
            types.iter().copied().map(TokenType::of).collect()
        }
        Some(_) => {
            return Err(
                metadata.wrong(TYPES, &format!("an array of {} I32, one for each token", texts.len()))
            );
        }
    };
    let mut seen = std::collections::BTreeSet::new();
    match texts.iter().find(|text| !seen.insert(text.as_str())) {
        Some(text) => Err(Error::file(metadata.origin(), format!("{TOKENS}: {text:?} is there twice"))),
        None => Ok(Tokens { texts, types }),
    }
}

impl<'a> Tokens<'a> {
    /// Id, text and type of each.
    fn all(&self) -> impl Iterator<Item = (u32, &'a str, TokenType)> {
        let types = self.types.iter().copied();
        (0..).zip(self.texts).zip(types).map(|((id, text), kind)| (id, text.as_str(), kind))
    }

    /// What the model may say: all but those that fill the vocabulary up.
    fn vocab(&self) -> Map<String, Json> {
        let used = self.all().filter(|(.., kind)| *kind != TokenType::Unused);
        used.map(|(id, text, _)| (text.to_owned(), json!(id))).collect()
    }

    /// Those that are found in a text before it is cut.
    fn added(&self) -> Vec<Json> {
        let added = self.all().filter(|(.., kind)| {
            matches!(kind, TokenType::Control | TokenType::UserDefined | TokenType::Unknown)
        });
        let token = |(id, text, kind): (u32, &str, TokenType)| {
            json!({
                "id": id,
                "content": text,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": kind != TokenType::UserDefined,
            })
        };
        added.map(token).collect()
    }
}

fn byte_level(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Parts> {
    let name = metadata.text(PRE)?.ok_or_else(|| {
        metadata.wrong(PRE, "the name of a pre-tokenizer; put the model's tokenizer.json beside the file")
    })?;
    let pre =
        pre::named(name).map_err(|problem| Error::file(metadata.origin(), format!("{PRE}: {problem}")))?;
    let lines = metadata
        .texts(MERGES)?
        .ok_or_else(|| metadata.wrong(MERGES, "the merges of a byte-level tokenizer"))?;
    let pair = |line: &String| {
        // The first part may begin with a space, but not be one.
        let at = line.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        at.map(|at| json!([&line[..at], &line[at + 1..]]))
            .ok_or_else(|| Error::file(metadata.origin(), format!("{MERGES}: {line:?} is no pair")))
    };
    let merges: Vec<Json> = lines.iter().map(pair).collect::<Result<_>>()?;
    Ok(Parts {
        normalizer: pre.normalizer(),
        pre_tokenizer: pre.pre_tokenizer(),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: bpe(tokens.vocab(), merges, None, pre.whole_words),
        adds_bos: pre.whole_words,
    })
}

fn sentence_piece(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Parts> {
    let prefix = metadata.flag(ADD_SPACE)?.unwrap_or(true);
    let scores = match metadata.get(SCORES) {
        Some(Value::Array(Array::F32(scores))) if scores.len() == tokens.texts.len() => scores,
        _ => {
            return Err(metadata
                .wrong(SCORES, &format!("an array of {} F32, one for each token", tokens.texts.len())));
        }
    };
    let used = tokens.all().filter(|(.., kind)| *kind != TokenType::Unused);
    let vocab: BTreeMap<&str, u32> = used.map(|(id, text, _)| (text, id)).collect();
    let normal = |id: u32| tokens.types[id as usize] == TokenType::Normal;
    let merges = scores::to_merges(&vocab, |id| normal(id).then(|| scores[id as usize]));
    let merges = merges.into_iter().map(|(left, right)| json!([left, right])).collect();
    let unknown = tokens.all().find(|(.., kind)| *kind == TokenType::Unknown).map(|(_, text, _)| text);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let back = json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "});
    let mut decoders = vec![back, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer: match prefix {
            true => {
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]})
            }
            false => replace,
        },
        pre_tokenizer: Json::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: bpe(tokens.vocab(), merges, Some(unknown), false),
        adds_bos: true,
    })
}

/// The model of a `tokenizer.json`; `bytes` says that what is in no token is given in bytes, and which token stands for it else.
fn bpe(vocab: Map<String, Json>, merges: Vec<Json>, bytes: Option<Option<&str>>, whole_words: bool) -> Json {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": bytes.flatten(),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": bytes.is_some(),
        "byte_fallback": bytes.is_some(),
        "ignore_merges": whole_words,
        "vocab": vocab,
        "merges": merges,
    })
}

/// What is put around a text.
fn around(metadata: &Metadata, tokens: &Tokens<'_>, adds_bos: bool) -> Result<Json> {
    let front = if metadata.flag(ADD_BOS)?.unwrap_or(adds_bos) {
        special(metadata, tokens.texts, "bos")?
    } else {
        None
    };
    let back =
        if metadata.flag(ADD_EOS)?.unwrap_or(false) { special(metadata, tokens.texts, "eos")? } else { None };
    if front.is_none() && back.is_none() {
        return Ok(Json::Null);
    }
    let piece = |token: Option<(usize, &str)>, of: u32| {
        token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": of}}))
    };
    let part = |name: &str, of: u32| {
        let text = Some(json!({"Sequence": {"id": name, "type_id": of}}));
        [piece(front, of), text, piece(back, of)].into_iter().flatten().collect::<Vec<Json>>()
    };
    let listed = [front, back].into_iter().flatten();
    let special: Map<String, Json> = listed
        .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    let pair = [part("A", 0), part("B", 1)].concat();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": pair,
        "special_tokens": special,
    }))
}

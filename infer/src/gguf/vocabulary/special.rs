//! The tokens with a task: begin, end, end of a turn, padding, unknown.
//!
//! Knows no bytes. They are looked for where transformers and llama.cpp's converter look: in `tokenizer_config.json`, then `config.json`,
//! then `generation_config.json`; the beginning also in what `tokenizer.json` puts in front of a text.

use serde_json::Value;

use super::write::Files;
use crate::model::Config;

/// The ids of the tokens with a task.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Special {
    pub bos: Option<u32>,
    /// Tokens that end a text, the one for the end of a document or an answer first.
    pub eos: Vec<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
}

impl Special {
    /// What `files` and `config` say; `id_of` finds a token by its text.
    pub fn of(files: &Files, config: &Config, id_of: impl Fn(&str) -> Option<u32>) -> Self {
        let by_text = |kind: &str| text(&files.tokenizer_config[format!("{kind}_token")]).and_then(&id_of);
        let generation = |kind: &str| ids(&files.generation_config[format!("{kind}_token_id")]);
        let first = |kind: &str| generation(kind).first().copied();
        let mut eos: Vec<u32> = by_text("eos").into_iter().collect();
        for id in config.eos_token_ids.iter().copied().chain(generation("eos")) {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
        Self {
            bos: by_text("bos")
                .or(config.bos_token_id)
                .or_else(|| first("bos"))
                .or_else(|| files.put_around(true).and_then(&id_of)),
            eos,
            unk: by_text("unk").or_else(|| files.tokenizer["model"]["unk_token"].as_str().and_then(&id_of)),
            pad: by_text("pad").or_else(|| first("pad")),
        }
    }

    /// Each with the middle of its key in the metadata, in the order of llama.cpp's converter.
    pub fn named(&self) -> Vec<(&'static str, u32)> {
        // llama.cpp has three keys for what ends a text, and stops at any of them.
        let [eos, eot, eom] = [0, 1, 2].map(|at| self.eos.get(at).copied());
        let all = [
            ("bos", self.bos),
            ("eos", eos),
            ("unknown", self.unk),
            ("padding", self.pad),
            ("eot", eot),
            ("eom", eom),
        ];
        all.into_iter().filter_map(|(name, id)| Some((name, id?))).collect()
    }
}

/// The text of a token that is given as itself or as an object.
fn text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    list.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

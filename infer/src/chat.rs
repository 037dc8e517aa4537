//! Chat templates: how a model wants a conversation written as one text.
//!
//! A template is a Jinja program out of a model's files, rendered as transformers renders it: the same variables and functions,
//! blocks trimmed alike. It is taken for hostile: `bounds` limits what it may do, nothing of this machine is within its reach.
//!
//! Knows no tokens. Invariant: rendering ends, in bounded time and memory, in a text or in an error that names file and line.

mod answers;
mod bounds;
mod endings;
pub mod go;
mod python;
mod shape;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use answers::Written;
pub use endings::Endings;

use crate::files::read_json;
use crate::{Error, Result};

/// The template alone, since transformers 4.43.
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Settings of the tokenizer: special tokens, and the template where it has no file.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Longest template that is read; published ones have less than a tenth.
const MAX_SOURCE: usize = 1 << 18;
/// Special tokens that a template may name.
const SPECIAL: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// What somebody said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who: `system`, `user` or `assistant`.
    pub role: String,
    /// What.
    pub content: String,
}

impl Message {
    /// What `role` said.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned() }
    }
}

/// A chat template, with what it needs of the tokenizer.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    origin: PathBuf,
    source: String,
    special: BTreeMap<String, String>,
    now: u64,
}

impl ChatTemplate {
    /// The template of the model in `dir`, if it has one: `chat_template.jinja`, or what `tokenizer_config.json` says.
    ///
    /// # Errors
    /// A file that can't be read, or a template that is no Jinja; names file and line.
    pub fn of(dir: &Path) -> Result<Option<Self>> {
        let (alone, config_path) = (dir.join(TEMPLATE_FILE), dir.join(TOKENIZER_CONFIG));
        let config: Value = if config_path.is_file() { read_json(&config_path)? } else { json!({}) };
        let source = match alone.is_file() {
            true => Some(std::fs::read_to_string(&alone).map_err(|e| Error::io("cannot read", &alone, e))?),
            false => named_default(&config["chat_template"]).map(str::to_owned),
        };
        let origin = if alone.is_file() { alone } else { config_path };
        source.map(|source| Self::new(&origin, source, &config)).transpose()
    }

    /// The template `source`, read from `origin`, for the tokenizer that `config` (tokenizer_config.json) describes.
    ///
    /// # Errors
    /// A template that is too long or no Jinja.
    pub fn new(origin: &Path, source: String, config: &Value) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            let problem =
                format!("the chat template has {} bytes, at most {MAX_SOURCE} are read", source.len());
            return Err(Error::file(origin, problem));
        }
        let special = SPECIAL.into_iter().filter_map(|name| Some((name.to_owned(), token(&config[name])?)));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let template = Self { origin: origin.to_owned(), source, special: special.collect(), now };
        bounds::check(&template.source).map_err(|problem| Error::file(origin, problem))?;
        Ok(template)
    }

    /// The template that `config` (tokenizer_config.json), read from `origin`, has in it, if any.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn in_config(origin: &Path, config: &Value) -> Result<Option<Self>> {
        let source = named_default(&config["chat_template"]).map(str::to_owned);
        source.map(|source| Self::new(origin, source, config)).transpose()
    }

    /// What the template writes after an answer: mostly a token that ends it, and white space.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn after_answer(&self) -> Result<String> {
        const ANSWER: &str = "An answer that is found again.";
        let turn = [Message::new("user", "A question."), Message::new("assistant", ANSWER)];
        let text = self.render(&turn, false)?;
        Ok(text.rsplit_once(ANSWER).map_or(String::new(), |(_, after)| after.to_owned()))
    }

    /// The same template at another time: `seconds` since 1970, for templates that write the date.
    pub fn at(mut self, seconds: u64) -> Self {
        self.now = seconds;
        self
    }

    /// Everything that decides what it writes, but for the time.
    pub fn identity(&self) -> Vec<u8> {
        json!([self.source, self.special]).to_string().into_bytes()
    }

    /// Its source, in Jinja.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as one text; with `add_generation_prompt`, up to where the assistant's next answer begins.
    ///
    /// # Errors
    /// What the template refuses (say, two questions in a row), what it does wrong, and a limit that it exceeds; names file and
    /// line.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        bounds::render(&self.source, &self.context(messages, add_generation_prompt), self.now)
            .map_err(|problem| Error::file(&self.origin, problem))
    }

    /// What the template is given.
    fn context(&self, messages: &[Message], add_generation_prompt: bool) -> Value {
        let mut context = json!({
            "messages": messages,
            "tools": null,
            "documents": null,
            "add_generation_prompt": add_generation_prompt,
        });
        for (name, token) in &self.special {
            context[name] = json!(token);
        }
        context
    }
}

/// The template under `chat_template`: a text, or the one called `default` in a list.
fn named_default(value: &Value) -> Option<&str> {
    let default = |list: &'_ Value| {
        let list = list.as_array()?;
        list.iter().position(|entry| entry["name"] == "default")
    };
    value.as_str().or_else(|| value[default(value)?]["template"].as_str())
}

/// A special token: its text, or an object with the text as `content`.
fn token(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

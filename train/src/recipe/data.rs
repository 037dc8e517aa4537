//! `[data]`, checked; and every place in a recipe that names a model or a text.

use super::{Recipe, plan::fail};
use crate::{Error, Result, data::DEFAULT_FIELD};

/// What is trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct DataPlan {
    /// Files, globs and generated texts to train on.
    pub train: Vec<String>,
    /// The same for validation; empty where the tail of the training tokens is held out.
    pub valid: Vec<String>,
    /// How conversations are written and learned; none where the data is text.
    pub chat: Option<ChatPlan>,
}

/// How conversations become documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPlan {
    /// `model`, `plain`, or the file of a template.
    pub template: String,
    /// Whether all of a conversation is learned, and not the answers alone.
    pub learn_all: bool,
}

impl DataPlan {
    /// What `recipe` asks for.
    pub(super) fn new(recipe: &Recipe) -> Result<Self> {
        let data = &recipe.data;
        Ok(Self { train: data.train.clone(), valid: data.valid.clone(), chat: chat(recipe)? })
    }
}

/// `data.format = "chat"` and what it goes with.
fn chat(recipe: &Recipe) -> Result<Option<ChatPlan>> {
    let data = &recipe.data;
    match data.format.as_deref() {
        None | Some("text") => {
            for (key, value) in [("data.template", &data.template), ("data.learn", &data.learn)] {
                if let Some(value) = value {
                    return fail(key, value, "data.format = \"chat\" beside it");
                }
            }
            return Ok(None);
        }
        Some("chat") => {}
        Some(other) => return fail("data.format", other, "text or chat"),
    }
    let learn_all = match data.learn.as_deref() {
        None | Some("answers") => false,
        Some("all") => true,
        Some(other) => return fail("data.learn", other, "answers or all"),
    };
    let template = data.template.clone().unwrap_or_else(|| "model".to_owned());
    let refused = |key: &str, why: &str| {
        Err(Error::Config(format!("{key}: {why}; leave it out with data.format = \"chat\"")))
    };
    if data.separator.is_some() {
        return refused("data.separator", "a row is a conversation");
    }
    if data.field != DEFAULT_FIELD {
        return refused("data.field", "rows have layouts of their own");
    }
    if data.bos && template != "plain" {
        return refused("data.bos", "the template writes what stands in front");
    }
    let only_text = "it knows nothing of documents apart and of tokens that are not learned";
    if recipe.train.mode == "blocks" {
        return refused("train.mode = \"blocks\"", only_text);
    }
    if recipe.loss.hidden > 0.0 || recipe.loss.relations > 0.0 {
        return refused("loss.hidden, loss.relations", only_text);
    }
    if recipe.loss.on_policy > 0.0 {
        return refused("loss.on_policy", only_text);
    }
    Ok(Some(ChatPlan { template, learn_all }))
}

impl Recipe {
    /// Everything that names a model or a text somewhere, with the key that it stands under.
    pub fn places(&mut self) -> Vec<(&'static str, &mut String)> {
        let mut found = Vec::new();
        found.extend(self.student.from.as_mut().map(|from| ("student.from", from)));
        if let Some(scratch) = &mut self.student.scratch {
            found.push(("student.scratch.config", &mut scratch.config));
            found.push(("student.scratch.tokenizer", &mut scratch.tokenizer));
        }
        found.extend(self.teacher.as_mut().map(|teacher| ("teacher.model", &mut teacher.model)));
        found.extend(self.data.train.iter_mut().map(|entry| ("data.train", entry)));
        found.extend(self.data.valid.iter_mut().map(|entry| ("data.valid", entry)));
        if let Some(eval) = &mut self.eval {
            found.extend(eval.data.iter_mut().map(|entry| ("eval.data", entry)));
            found.extend(eval.against.as_mut().map(|against| ("eval.against", against)));
        }
        found
    }
}

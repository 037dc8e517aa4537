//! `[data]`, checked; and every place in a recipe that names a model or a text.

use super::{Recipe, raw::Data};

/// What is trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct DataPlan {
    /// Files, globs and generated texts to train on.
    pub train: Vec<String>,
    /// The same for validation; empty where the tail of the training tokens is held out.
    pub valid: Vec<String>,
}

impl DataPlan {
    /// What `data` asks for.
    pub(super) fn new(data: &Data) -> Self {
        Self { train: data.train.clone(), valid: data.valid.clone() }
    }
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

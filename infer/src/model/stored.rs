//! How a Hugging Face file holds the tensors of a decoder, where that is not one for one: the table of a tied model under the head's
//! name, several matrices as the rows of one, a norm's distance from 1, the text part among others.
//!
//! Knows no values and no file. Invariant: every tensor of a model is some rows of one tensor of the file.

use std::ops::Range;

use super::names::{HEAD, in_layer};
use super::{Config, Family, Param, Part, Role, params};

/// What precedes the names of the text part in a model that also sees, in transformers before version 5 and since: with the part of our
/// names that it takes the place of.
const WITHIN: [(&str, &str); 2] = [("", "language_model."), ("model.", "model.language_model.")];

/// Some rows of a tensor in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The tensor's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Which of its rows (elements of a vector).
    pub rows: Range<usize>,
    /// What is added to what stands there.
    pub offset: f32,
}

/// A tensor of a file, and the tensors of the model that are its rows, in order.
#[derive(Debug, Clone)]
pub struct FileTensor {
    /// The tensor: its own name, shape and role.
    pub param: Param,
    /// What it consists of.
    pub parts: Vec<Param>,
}

impl Stored {
    /// Where a file that `has` some tensors holds `param`, a tensor of a model of this shape. A file that has none of those that are
    /// looked for is told under the name that it should have.
    pub fn of(param: &Param, config: &Config, has: impl Fn(&str) -> bool) -> Self {
        let offset = if param.role == Role::Norm { config.norm_offset() } else { 0.0 };
        let whole = |name: String| Self {
            name,
            shape: param.shape.clone(),
            rows: 0..param.shape.first().copied().unwrap_or(0),
            offset,
        };
        if has(&param.name) {
            return whole(param.name.clone());
        }
        if param.role == Role::Embedding && config.tie_word_embeddings && has(HEAD) {
            return whole(HEAD.to_owned());
        }
        if config.family == Family::Gemma3 {
            let within = WITHIN.iter().filter_map(|(ours, theirs)| {
                param.name.strip_prefix(ours).map(|rest| format!("{theirs}{rest}"))
            });
            return whole(within.into_iter().find(|name| has(name)).unwrap_or(param.name.clone()));
        }
        fused(param, config).unwrap_or_else(|| whole(param.name.clone()))
    }

    /// Whether it is all of the tensor.
    pub fn is_whole(&self) -> bool {
        self.shape.first().is_none_or(|rows| self.rows == (0..*rows))
    }

    /// Of the elements of the tensor in the file, those of these rows; `element` of them for a row.
    pub fn range(&self, row: usize) -> Range<usize> {
        self.rows.start * row..self.rows.end * row
    }
}

/// Several matrices of a layer in one.
fn fused(param: &Param, config: &Config) -> Option<Stored> {
    let (layer, part) = param.part().filter(|_| config.family == Family::Phi3)?;
    let (q, kv, inner) = (config.q_size(), config.kv_size(), config.intermediate_size);
    let (module, first, all) = match part {
        Part::Q => ("self_attn.qkv_proj", 0, q + 2 * kv),
        Part::K => ("self_attn.qkv_proj", q, q + 2 * kv),
        Part::V => ("self_attn.qkv_proj", q + kv, q + 2 * kv),
        Part::Gate => ("mlp.gate_up_proj", 0, 2 * inner),
        Part::Up => ("mlp.gate_up_proj", inner, 2 * inner),
        _ => return None,
    };
    let kind = param.name.rsplit_once('.').map_or("weight", |(_, kind)| kind);
    let (rows, rest) = param.shape.split_first()?;
    Some(Stored {
        name: in_layer(layer, module, kind),
        shape: std::iter::once(all).chain(rest.iter().copied()).collect(),
        rows: first..first + rows,
        offset: 0.0,
    })
}

/// The tensors that a Hugging Face file of a model has, in the order in which the forward pass meets them.
pub fn file_tensors(config: &Config) -> Vec<FileTensor> {
    let mut all: Vec<FileTensor> = Vec::new();
    for param in params(config) {
        let Stored { name, shape, .. } = Stored::of(&param, config, |_| false);
        match all.last_mut().filter(|last| last.param.name == name) {
            Some(last) => last.parts.push(param),
            None => {
                let whole = Param { name, shape, role: param.role };
                all.push(FileTensor { param: whole, parts: vec![param] });
            }
        }
    }
    all
}

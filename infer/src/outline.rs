//! A model without its weights: what each tensor will be stored as, and what follows from that alone.
//!
//! Knows no values and no device. Invariant: sizes are those that the writers and the runtimes come to, because they are asked.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cpu::KvType;
use crate::files::{Activations, Announced, Bytes, Manifest, Storage, StoredMatrix, entry};
use crate::metal;
use crate::model::{Config, Decoder, Param, Reach, Role, Weights, params};
use crate::{Error, Result, RuntimeMatrix as _};

/// Shapes and storages of a model.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Shapes.
    pub config: Config,
    /// Every tensor in the order of the forward pass, and how it is stored.
    pub tensors: Vec<(Param, Storage)>,
}

/// The tensors of one kind together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Share {
    /// What they are.
    pub what: String,
    /// Numbers in them.
    pub parameters: u64,
    /// Bytes in which these are stored, scales among them.
    pub bytes: u64,
}

impl Outline {
    /// That of a model of this shape whose tensors are stored as `storage` says.
    ///
    /// # Errors
    /// A format that can't hold the rows of a tensor.
    pub fn new(config: Config, storage: impl Fn(&Param) -> Storage) -> Result<Self> {
        let mut tensors = Vec::new();
        for param in params(&config) {
            let storage = storage(&param);
            if let Storage::Packed(format) = storage {
                format.check_row_len(&param.name, param.shape[1])?;
            }
            tensors.push((param, storage));
        }
        Ok(Self { config, tensors })
    }

    /// Numbers of all tensors.
    pub fn parameters(&self) -> u64 {
        self.shares().iter().map(|share| share.parameters).sum()
    }

    /// Stored bits of all tensors, scales included, for each number.
    pub fn bits_per_weight(&self) -> f64 {
        let entries =
            self.tensors.iter().map(|(param, storage)| (param.name.clone(), entry(param, *storage)));
        Manifest::bits_per_weight_of(&entries.collect::<BTreeMap<_, _>>())
    }

    /// What the tensors are for, and what they weigh: embeddings, the modules of layers, norms and biases, a head.
    pub fn shares(&self) -> Vec<Share> {
        let mut shares: Vec<Share> = Vec::new();
        for (param, storage) in &self.tensors {
            let what = kind(param, self.config.tie_word_embeddings);
            let entry = entry(param, *storage);
            let at = shares.iter().position(|share| share.what == what).unwrap_or_else(|| {
                shares.push(Share { what, parameters: 0, bytes: 0 });
                shares.len() - 1
            });
            shares[at].parameters += entry.elements() as u64;
            shares[at].bytes += entry.stored_bytes() as u64;
        }
        shares
    }

    /// Bytes of the file that holds the tensors of the packed model.
    pub fn packed_bytes(&self) -> u64 {
        Announced::packed(&self.tensors).bytes()
    }

    /// Bytes of keys and values of `tokens` in all layers that attend, kept as `kv`; of layers that see a window, what they keep.
    pub fn kv_bytes(&self, kv: KvType, tokens: usize) -> u64 {
        let Config { kv_heads, head_dim, .. } = self.config;
        let in_sight = Reach::new(&self.config, tokens, metal::PASS).kept().unwrap_or(tokens);
        let attends = |layer: &usize| self.config.taps(*layer).is_none();
        let kept = |layer| if self.config.window(layer).is_some() { in_sight } else { tokens };
        let positions: usize = (0..self.config.layers).filter(attends).map(kept).sum();
        (2 * positions * kv_heads * kv.bytes(head_dim)) as u64
    }

    /// The decoder as Apple's GPUs would run it, over weights that are all zero: its buffers and its lists of calls have the sizes of the
    /// real ones. Its zeros take no memory until somebody reads them.
    ///
    /// # Errors
    /// A shape that overflows the memory.
    pub fn hollow(&self, activations: Activations) -> Result<metal::Decoder> {
        let storages = self.tensors.iter().map(|(param, storage)| (param.name.as_str(), *storage)).collect();
        Decoder::build(self.config.clone(), &mut Zeros { storages, activations })
    }
}

/// What `param` is for, in a word or two.
fn kind(param: &Param, tied: bool) -> String {
    match param.role {
        Role::Embedding if tied => "embeddings, which are also the head".to_owned(),
        Role::Embedding => "embeddings".to_owned(),
        Role::Head => "head".to_owned(),
        Role::Norm | Role::Bias => "norms and biases".to_owned(),
        Role::Conv => "convolutions".to_owned(),
        // model.layers.3.self_attn.q_proj.weight
        Role::Projection => {
            param.name.split('.').nth(3).unwrap_or("layers").replace("self_attn", "attention")
        }
    }
}

/// Gives a decoder zeros.
struct Zeros<'a> {
    storages: BTreeMap<&'a str, Storage>,
    activations: Activations,
}

impl Weights for Zeros<'_> {
    type M = metal::Matrix;
    type V = Vec<f32>;
    type Error = Error;

    fn matrix(&mut self, param: &Param) -> Result<metal::Matrix> {
        let missing = || Error::tensor(&param.name, "has no storage");
        let storage = *self.storages.get(param.name.as_str()).ok_or_else(missing)?;
        let bytes = entry(param, storage).stored_bytes();
        let scale = matches!(storage, Storage::Packed(format) if format.group_len().is_none());
        let beside = if scale { 2 } else { 0 };
        let activations = match (param.role, storage) {
            (Role::Projection, Storage::Packed(_)) => self.activations,
            _ => Activations::Float,
        };
        let stored = StoredMatrix {
            storage,
            bytes: Bytes::from(vec![0; bytes - beside]),
            tensor_scale: scale.then_some(1.0),
            activations,
        };
        metal::Matrix::new(&param.name, [param.shape[0], param.shape[1]], stored)
    }

    fn vector(&mut self, param: &Param) -> Result<Vec<f32>> {
        Ok(vec![0.0; param.shape.iter().product()])
    }
}

/// Bytes that a GPU moves to decode the token after `past` others, with keys and values in `kv`.
///
/// # Errors
/// A model or a type of keys and values that the kernels lack.
pub fn decode_bytes(decoder: &metal::Decoder, past: usize, kv: KvType) -> Result<u64> {
    let script = metal::Script::new(decoder, metal::Options::new(past + 1).with_kv(kv))?;
    let pass = metal::Pass::Body { tokens: 1, past, tail: metal::Tail::Argmax };
    Ok(script.list(pass)?.calls().iter().map(|call| call.bytes_read + call.bytes_written).sum())
}

//! The buffers of a model on the GPU as plain data: what is in them and how long they are.
//!
//! Knows no device and no kernels. Invariant: lengths follow from model and options alone, so that what a model will take
//! is known before any of it is asked for.

use std::collections::BTreeMap;

use super::Decoder;
use super::kernels::{MOST_PARTS, MOST_TOP};
use super::list::{BufferId, Span};
use super::matrix::Matrix;
use super::options::Options;
use crate::cpu::KvType;
use crate::files::Bytes;
use crate::model::{Config, Rope};
use crate::plan::{Plan, Program};

/// Bytes of a float, and of a token id.
pub(super) const WORD: u64 = 4;
/// Bytes of a scale of the KV cache.
const SCALE: u64 = 2;
/// Vectors begin at multiples of this, whatever a kernel reads at once.
const VECTOR_ALIGNMENT: u64 = 64;

/// A buffer.
#[derive(Debug, Clone)]
pub struct Buffer {
    /// What it is, for people.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// What is in it at first.
    pub content: Content,
}

/// What a buffer begins with.
#[derive(Debug, Clone)]
pub enum Content {
    /// Weights, which nobody writes: all pages of a mapped file, or bytes in memory.
    Weights(Bytes),
    /// What a session writes there once.
    Constants,
    /// Anything.
    Blank,
}

/// Where the keys and values of a layer are.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerCache {
    /// Positions that fit; later ones go around.
    positions: u64,
    /// `[kv_heads, positions, head_dim]`
    pub keys: BufferId,
    pub values: BufferId,
    /// `[kv_heads, positions]` of keys and of values, where codes have scales.
    pub scales: Option<[BufferId; 2]>,
}

/// Every buffer of a model.
#[derive(Debug)]
pub(super) struct Buffers {
    all: Vec<Buffer>,
    /// The buffer of each file or allocation of weights, by where it begins in memory.
    weights: BTreeMap<usize, BufferId>,
    /// The place of each vector in their buffer, by where it begins in memory.
    vector_offsets: BTreeMap<usize, u64>,
    pub vectors: BufferId,
    /// `[context, 2, rotary_dim / 2]` of each rotation: cosines, then sines.
    pub angles: Vec<BufferId>,
    /// Heads of keys.
    kv_heads: u64,
    /// Keys and values of each layer that attends.
    pub caches: BTreeMap<usize, LayerCache>,
    /// The last products of each layer that convolves, `[taps − 1, hidden]`.
    pub recent: BTreeMap<usize, BufferId>,
    /// Values of the body's program, and of the head's.
    pub body: Vec<BufferId>,
    pub head: Vec<BufferId>,
    /// Inputs of products: normed, and rounded to int8.
    pub prepared: [BufferId; 2],
    /// What the parts of a long past gave.
    pub partials: BufferId,
    /// Tokens of the pass.
    pub ids: BufferId,
    /// Where the pass stands in the text.
    pub step: BufferId,
    /// Ids that `argmax` chose, by position; the last is of the token after a full context.
    pub text: BufferId,
    /// The greatest logits, and their ids.
    pub top: [BufferId; 2],
}

impl Buffers {
    /// The buffers that `plan` of `decoder` works with.
    pub(super) fn new(decoder: &Decoder, plan: &Plan<'_, &Matrix>, options: &Options) -> Self {
        let (config, context) = (&decoder.config, options.context as u64);
        let mut all = Vec::new();
        let mut add = |name: String, bytes: u64, content: Content| {
            all.push(Buffer { name, bytes, content });
            BufferId(all.len() - 1)
        };
        let weights = add_weights(decoder, &mut add);
        let (vector_offsets, vector_bytes) = place_vectors(decoder);
        let vectors = add("norms and biases".into(), vector_bytes, Content::Constants);
        let angles_bytes = context * config.rotary_dim as u64 * WORD;
        let angles = (0..plan.ropes.len())
            .map(|n| add(format!("angles {n}"), angles_bytes, Content::Constants))
            .collect();
        let caches = add_caches(config, options, &mut add);
        let recent = add_recent(config, &mut add);
        let mut blank = |name: &str, elements: u64| add(name.to_owned(), elements * WORD, Content::Blank);
        let (pass, rows) = (options.pass() as u64, options.logit_rows as u64);
        let mut values = |name: &str, program: &Program<'_, &Matrix>, rows: u64| -> Vec<BufferId> {
            let widths = program.widths.iter().enumerate();
            widths.map(|(n, width)| blank(&format!("{name} {n}"), rows * *width as u64)).collect()
        };
        let body = values("activations", &plan.body, pass);
        let head = values("logits", &plan.head, rows);
        let widest = plan.body.widest_input().max(plan.head.widest_input()) as u64;
        let prepared = ["normed inputs", "rounded inputs"].map(|name| blank(name, pass * widest));
        let partials =
            blank("parts of attention", (config.heads * MOST_PARTS * (config.head_dim + 2)) as u64);
        let (ids, step) = (blank("ids", pass), blank("step", 2));
        let text = blank("text", context + 1);
        let top = ["greatest logits", "their ids"].map(|name| blank(name, MOST_TOP as u64));
        Self {
            all,
            weights,
            vector_offsets,
            vectors,
            angles,
            kv_heads: config.kv_heads as u64,
            caches,
            recent,
            body,
            head,
            prepared,
            partials,
            ids,
            step,
            text,
            top,
        }
    }

    /// All of them; a [`BufferId`] is a place in this list.
    pub(super) fn all(&self) -> &[Buffer] {
        &self.all
    }

    /// Where is remembered what is left of `tokens` tokens that were read: keys, values and scales head by head, and what convolutions keep.
    pub(super) fn past(&self, tokens: usize) -> impl Iterator<Item = Span> {
        let cached = self.caches.values().flat_map(|cache| {
            let scales = cache.scales.into_iter().flatten();
            [cache.keys, cache.values].into_iter().chain(scales).map(|buffer| (buffer, cache.positions))
        });
        let of_heads = cached.flat_map(move |(buffer, positions)| {
            let head = self.all[buffer.0].bytes / self.kv_heads;
            let bytes = head / positions * positions.min(tokens as u64);
            (0..self.kv_heads).map(move |at| Span { buffer, offset: at * head, bytes })
        });
        of_heads.chain(self.recent.values().map(|buffer| self.whole(*buffer)))
    }

    /// Bytes of all that.
    pub(super) fn past_bytes(&self, tokens: usize) -> u64 {
        self.past(tokens).map(|span| span.bytes).sum()
    }

    /// The sum of their lengths.
    pub(super) fn bytes(&self) -> u64 {
        self.all.iter().map(|buffer| buffer.bytes).sum()
    }

    /// All of a buffer.
    pub(super) fn whole(&self, buffer: BufferId) -> Span {
        Span { buffer, offset: 0, bytes: self.all[buffer.0].bytes }
    }

    /// The first `elements` of four bytes of a buffer.
    pub(super) fn words(&self, buffer: BufferId, elements: usize) -> Span {
        Span { buffer, offset: 0, bytes: elements as u64 * WORD }
    }

    /// Where the bytes of a matrix are.
    pub(super) fn matrix(&self, matrix: &Matrix) -> Option<Span> {
        let bytes = matrix.stored_bytes();
        let buffer = *self.weights.get(&address(&bytes.whole()))?;
        Some(Span { buffer, offset: bytes.offset() as u64, bytes: bytes.len() as u64 })
    }

    /// Where a norm's weight or a bias of the model is.
    pub(super) fn vector(&self, vector: &[f32]) -> Option<Span> {
        let offset = *self.vector_offsets.get(&(vector.as_ptr() as usize))?;
        Some(Span { buffer: self.vectors, offset, bytes: size_of_val(vector) as u64 })
    }

    /// What the buffers of [constants](Content::Constants) begin with.
    pub(super) fn constants(
        &self,
        decoder: &Decoder,
        ropes: &[Rope],
        context: usize,
    ) -> impl Iterator<Item = (BufferId, Vec<u8>)> {
        let mut bytes = vec![0; self.all[self.vectors.0].bytes as usize];
        for vector in decoder.vectors() {
            if let Some(span) = self.vector(vector) {
                let place = span.offset as usize..(span.offset + span.bytes) as usize;
                bytes[place].copy_from_slice(&to_bytes(vector.iter().copied()));
            }
        }
        let angles = |rope: &Rope| -> Vec<u8> {
            let of = |position| {
                let (cos, sin): (Vec<f32>, Vec<f32>) = rope.angles(position, context).unzip();
                cos.into_iter().chain(sin)
            };
            to_bytes((0..context).flat_map(of))
        };
        let angles: Vec<_> = self.angles.iter().zip(ropes).map(|(id, rope)| (*id, angles(rope))).collect();
        std::iter::once((self.vectors, bytes)).chain(angles)
    }
}

/// As the GPU reads them.
fn to_bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

fn address(bytes: &Bytes) -> usize {
    bytes.as_ptr() as usize
}

/// A buffer for each file, and for each matrix that is in none.
fn add_weights(
    decoder: &Decoder,
    add: &mut impl FnMut(String, u64, Content) -> BufferId,
) -> BTreeMap<usize, BufferId> {
    let mut weights = BTreeMap::new();
    for matrix in decoder.matrices() {
        let whole = matrix.stored_bytes().whole();
        weights.entry(address(&whole)).or_insert_with(|| {
            let name = if whole.is_mapped() { "weights".to_owned() } else { matrix.name().to_owned() };
            add(name, whole.len() as u64, Content::Weights(whole.clone()))
        });
    }
    weights
}

/// Offsets of the vectors, each by where it is in memory, and how long all of them are.
fn place_vectors(decoder: &Decoder) -> (BTreeMap<usize, u64>, u64) {
    let (mut offsets, mut end) = (BTreeMap::new(), 0);
    for vector in decoder.vectors() {
        offsets.insert(vector.as_ptr() as usize, end);
        end = (end + size_of_val(vector.as_slice()) as u64).next_multiple_of(VECTOR_ALIGNMENT);
    }
    (offsets, end)
}

/// What each layer that convolves remembers.
fn add_recent(
    config: &Config,
    add: &mut impl FnMut(String, u64, Content) -> BufferId,
) -> BTreeMap<usize, BufferId> {
    let of_layer = |layer| {
        let elements = (config.taps(layer)? - 1) as u64 * config.hidden_size as u64;
        Some((layer, add(format!("past of layer {layer}"), elements * WORD, Content::Blank)))
    };
    (0..config.layers).filter_map(of_layer).collect()
}

/// Keys and values of each layer that attends.
fn add_caches(
    config: &Config,
    options: &Options,
    add: &mut impl FnMut(String, u64, Content) -> BufferId,
) -> BTreeMap<usize, LayerCache> {
    let (code, has_scales) = match options.kv {
        KvType::Int8 => (1, true),
        _ => (2, false),
    };
    let of_layer = |layer| {
        let positions = options.cached(config, config.window(layer).is_some()) as u64;
        let rows = (config.kv_heads as u64).saturating_mul(positions);
        let bytes = rows.saturating_mul(config.head_dim as u64 * code);
        let mut blank = |what: &str, bytes| add(format!("{what} of layer {layer}"), bytes, Content::Blank);
        let cache = LayerCache {
            positions,
            keys: blank("keys", bytes),
            values: blank("values", bytes),
            scales: has_scales
                .then(|| ["scales of keys", "scales of values"].map(|what| blank(what, rows * SCALE))),
        };
        (layer, cache)
    };
    (0..config.layers).filter(|layer| config.taps(*layer).is_none()).map(of_layer).collect()
}

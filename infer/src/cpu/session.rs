//! One sequence being read by a model: prefill, decoding, and the logits of a whole text in bounded memory.
//!
//! Knows no sampling and no text. Invariant: reading ids in one call, one by one or in any other parts gives the same
//! bits, for every type of KV cache and any number of threads.

use super::Plan;
use super::buffers::Buffers;
use super::engine::Engine;
use super::kv::KvType;
use super::matrix::Matrix;
use crate::model::{Config, Decoder};
use crate::{Error, Result};
use qat_quant::kernels::Isa;

/// Tokens per forward pass: enough to pay for unpacking the weights, few enough that a product's inputs stay in cache.
pub(super) const PASS: usize = 256;
/// Values of logits computed at a time (64 MiB), whatever the vocabulary.
const LOGITS: usize = 1 << 24;

/// A model's tensors as the CPU uses them.
pub type CpuDecoder = Decoder<Matrix, Vec<f32>>;

/// How a model is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOptions {
    /// Longest text, in tokens.
    pub context: usize,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Threads; if none, as many as `RAYON_NUM_THREADS` says, or as this process may use at a time.
    pub threads: Option<usize>,
}

impl RunOptions {
    /// Texts of up to `context` tokens, keys and values in f16, all threads.
    pub fn new(context: usize) -> Self {
        Self { context, kv: KvType::default(), threads: None }
    }

    /// The same with keys and values kept as `kv`.
    pub fn with_kv(self, kv: KvType) -> Self {
        Self { kv, ..self }
    }
}

/// A model and its past.
#[derive(Debug)]
pub struct Session<'m> {
    config: &'m Config,
    plan: Plan<'m>,
    engine: Engine,
    body: Buffers,
    head: Buffers,
}

impl<'m> Session<'m> {
    /// A session for texts of up to `options.context` tokens.
    ///
    /// # Errors
    /// When the model was made for less, the KV cache doesn't fit the memory, the threads can't be had, or `QAT_ISA`
    /// names an instruction set that this processor lacks.
    pub fn new(decoder: &'m CpuDecoder, options: &RunOptions) -> Result<Self> {
        Self::with(Plan::new(decoder)?, &decoder.config, options)
    }

    /// The same with every operation by itself, as the decoder asks for them.
    #[cfg(test)]
    pub(super) fn unfused(decoder: &'m CpuDecoder, options: &RunOptions) -> Result<Self> {
        Self::with(Plan::unfused(decoder)?, &decoder.config, options)
    }

    /// The same with products made by the instructions of `isa`.
    pub fn with_isa(mut self, isa: Isa) -> Self {
        self.engine.set_isa(isa);
        self
    }

    pub(super) fn with(plan: Plan<'m>, config: &'m Config, options: &RunOptions) -> Result<Self> {
        check_context(config, options.context)?;
        // One number for all that is done side by side, which RAYON_NUM_THREADS sets.
        let threads = options.threads.unwrap_or_else(rayon::current_num_threads);
        let engine = Engine::new(config, &plan.ropes, options.context, options.kv, threads)?;
        let body = Buffers::new(&plan.body, PASS.min(options.context));
        let head = Buffers::new(&plan.head, 1);
        Ok(Self { config, plan, engine, body, head })
    }

    /// Tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.plan.vocab
    }

    /// Tokens read so far.
    pub fn position(&self) -> usize {
        self.engine.position()
    }

    /// Begins a new text.
    pub fn reset(&mut self) {
        self.engine.reset();
    }

    /// Forgets all but the first `tokens`, and says whether it could: convolutions and
    /// layers with a window remember only the end of a text.
    pub fn rewind(&mut self, tokens: usize) -> bool {
        self.engine.rewind(tokens)
    }

    /// Names how [`past`](Self::past) lays bytes out.
    pub fn past_layout(&self) -> String {
        format!("cpu, keys and values in {}", self.engine.cache().kv())
    }

    /// All that is remembered, as bytes: tiles of keys and values, and what convolutions keep.
    ///
    /// # Errors
    /// Never.
    pub fn past(&mut self) -> Result<Vec<u8>> {
        Ok(self.engine.past())
    }

    /// Remembers `past` of having read `ids` in the place of what was read.
    ///
    /// # Errors
    /// When there is no room for so many tokens, or the length is not theirs.
    pub fn restore(&mut self, ids: &[u32], past: &[u8]) -> Result<()> {
        self.engine.restore(ids.len(), past)
    }

    /// Reads `ids` and gives the logits `[vocab]` of what follows the last one.
    ///
    /// # Errors
    /// When there are no ids, one is outside the vocabulary, or they don't fit the context; then nothing was read.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<&[f32]> {
        if ids.is_empty() {
            return Err(Error::Invalid("nothing to read: want at least one token".into()));
        }
        self.engine.check(ids, self.config.vocab_size)?;
        let mut last = 0;
        for ids in ids.chunks(PASS) {
            self.engine.read(&self.plan.body, &mut self.body, ids);
            last = ids.len() - 1;
        }
        let width = self.config.hidden_size;
        let hidden = self.body.get(self.plan.body.output, (last + 1) * width);
        Ok(head(&self.plan, &mut self.engine, &mut self.head, &hidden[last * width..], 1))
    }

    /// Reads one token and gives the logits `[vocab]` of the next.
    ///
    /// # Errors
    /// When the id is outside the vocabulary or the context is full.
    pub fn step(&mut self, id: u32) -> Result<&[f32]> {
        self.prefill(&[id])
    }

    /// Reads `ids` and gives the normed hidden states `[ids, hidden]`, from which [`logits`](Self::logits) are made.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or they don't fit the context; then nothing was read.
    pub fn hidden(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.engine.check(ids, self.config.vocab_size)?;
        let mut all = Vec::with_capacity(ids.len() * self.config.hidden_size);
        for ids in ids.chunks(PASS) {
            self.engine.read(&self.plan.body, &mut self.body, ids);
            let len = ids.len() * self.config.hidden_size;
            all.extend_from_slice(self.body.get(self.plan.body.output, len));
        }
        Ok(all)
    }

    /// Logits `[count, vocab]` of the rows of `hidden` `[_, hidden]` from `first` on.
    ///
    /// # Errors
    /// When `hidden` has no such rows.
    pub fn logits(&mut self, hidden: &[f32], first: usize, count: usize) -> Result<&[f32]> {
        let width = self.config.hidden_size;
        let Some(rows) = hidden.get(first * width..(first + count) * width) else {
            let problem =
                format!("rows {first}..{} of {} hidden states", first + count, hidden.len() / width);
            return Err(Error::Invalid(problem));
        };
        Ok(head(&self.plan, &mut self.engine, &mut self.head, rows, count))
    }

    /// Rows of logits that fit the memory set aside for them.
    pub fn logit_rows(&self) -> usize {
        (LOGITS / self.config.vocab_size).max(1)
    }

    /// Bytes of weights that are read to decode a token, as they lie in memory: all matrices and vectors, of the
    /// embedding one row (and all of it where it is the head).
    pub fn weight_bytes(&self) -> u64 {
        (self.plan.body.weight_bytes() + self.plan.head.weight_bytes()) as u64
    }

    /// Bytes of keys and values of `depth` tokens: what a token decoded after them reads.
    pub fn kv_bytes(&self, depth: usize) -> u64 {
        self.engine.cache().seen_bytes(depth)
    }
}

/// Logits `[tokens, vocab]` of hidden states.
fn head<'b>(
    plan: &Plan<'_>,
    engine: &mut Engine,
    buffers: &'b mut Buffers,
    hidden: &[f32],
    tokens: usize,
) -> &'b [f32] {
    let vocab = plan.vocab;
    buffers.fit(&plan.head, tokens);
    if let Some(input) = plan.head.input {
        buffers.get_mut(input, hidden.len()).copy_from_slice(hidden);
    }
    engine.run(&plan.head, buffers, &[], tokens);
    buffers.get(plan.head.output, tokens * vocab)
}

/// Refuses a context that the model was not made for.
///
/// # Errors
/// Names both lengths.
pub fn check_context(config: &Config, context: usize) -> Result<()> {
    let longest = config.max_position_embeddings;
    if context == 0 || context > longest {
        return Err(Error::Invalid(format!(
            "a context of {context} tokens: the model's longest is {longest} (max_position_embeddings); \
             choose 1 to {longest}"
        )));
    }
    Ok(())
}

//! One sequence being read by a model on a device: prefill, decoding, logits of a whole text.
//!
//! Knows no sampling and no text. Invariant: the host reads back what callers ask for and nothing else; when tokens are
//! chosen greedily, it writes nothing between them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::device::Device;
use super::list::{BufferId, Span};
use super::options::Options;
use super::record::{Pass, Script, Tail};
use super::{Decoder, check_working_set};
use crate::model::Reach;
use crate::sequence::check_past;
use crate::{Error, Result};

/// What tells the lists apart that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// Tokens, the parts of their past, and what follows.
    Body(usize, u32, Tail),
    /// Rows.
    Head(usize),
}

/// A model and its past, on a device.
#[derive(Debug)]
pub struct Session<'m, D: Device> {
    script: Script<'m>,
    device: D,
    lists: BTreeMap<Key, D::List>,
    /// Tokens in the cache; the position of the next one.
    position: usize,
    reach: Reach,
    logits: Vec<f32>,
}

impl<'m, D: Device> Session<'m, D> {
    /// A session on `device` for texts of up to `options.context` tokens.
    ///
    /// # Errors
    /// When the options can't be honoured, the model is over the device's limit (with both numbers, and the context that
    /// would fit), or the device fails.
    pub fn new(decoder: &'m Decoder, options: Options, mut device: D) -> Result<Self> {
        let script = Script::new(decoder, options)?;
        if let Some(limit) = device.working_set_limit() {
            check_working_set(decoder, &options, limit)?;
        }
        device.allocate(script.buffers())?;
        for (buffer, bytes) in script.constants() {
            device.write(buffer, 0, &bytes)?;
        }
        let reach = options.reach(&decoder.config);
        Ok(Self { script, device, lists: BTreeMap::new(), position: 0, reach, logits: Vec::new() })
    }

    /// Tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.script.plan.vocab
    }

    /// Tokens read so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Begins a new text.
    pub fn reset(&mut self) {
        self.position = 0;
        self.reach.clear();
    }

    /// Forgets all but the first `tokens`, and says whether it could: convolutions and layers with a window remember only the end of a
    /// text. What the caches hold beyond the position is never looked at.
    pub fn rewind(&mut self, tokens: usize) -> bool {
        let config = &self.script.decoder.config;
        let attends = config.attention_layers() == config.layers;
        let can = tokens == self.position || tokens < self.position && attends && self.reach.reaches(tokens);
        match tokens {
            0 => self.reset(),
            _ if can => self.position = tokens,
            _ => return false,
        }
        true
    }

    /// Names how [`past`](Self::past) lays bytes out.
    pub fn past_layout(&self) -> String {
        format!("metal, keys and values in {}", self.script.options.kv)
    }

    /// All that is remembered, as bytes: of each buffer that holds some of it, the beginning of each head.
    ///
    /// # Errors
    /// When the device fails.
    pub fn past(&mut self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.script.buffers.past_bytes(self.position) as usize];
        let mut rest = &mut bytes[..];
        for Span { buffer, offset, bytes } in self.script.buffers.past(self.position) {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(bytes as usize);
            self.device.read(buffer, offset, part)?;
            rest = others;
        }
        bytes.extend_from_slice(&self.reach.to_bytes());
        Ok(bytes)
    }

    /// Remembers `past` of having read `ids` in the place of what was read.
    ///
    /// # Errors
    /// When there is no room for so many tokens, or the length is not theirs; when the device fails.
    pub fn restore(&mut self, ids: &[u32], past: &[u8]) -> Result<()> {
        let tokens = ids.len();
        let wanted = self.script.buffers.past_bytes(tokens) + self.reach.to_bytes().len() as u64;
        check_past(tokens, self.script.options.context, past.len(), wanted)?;
        let mut rest = past;
        for Span { buffer, offset, bytes } in self.script.buffers.past(tokens) {
            let (part, others) = rest.split_at(bytes as usize);
            self.device.write(buffer, offset, part)?;
            rest = others;
        }
        self.reach.restore(rest);
        self.position = tokens;
        Ok(())
    }

    /// What it asks of the device.
    pub fn script(&self) -> &Script<'m> {
        &self.script
    }

    /// Who carries it out.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Reads `ids` and gives the logits `[vocab]` of what follows the last one.
    ///
    /// # Errors
    /// When there are no ids, one is outside the vocabulary, or they don't fit the context: then nothing was read. When
    /// the device fails.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<&[f32]> {
        self.read(ids, Tail::Logits)?;
        self.read_logits(1)
    }

    /// Reads one token and gives the logits `[vocab]` of the next.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn step(&mut self, id: u32) -> Result<&[f32]> {
        self.prefill(&[id])
    }

    /// Reads `ids` and gives the `k` likeliest ids after the last one with their logits, the likeliest first.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill); when `k` is 0 or more than the kernel gives.
    pub fn top(&mut self, ids: &[u32], k: usize) -> Result<Vec<(u32, f32)>> {
        let most = super::kernels::MOST_TOP.min(self.script.plan.vocab);
        if k == 0 || k > most {
            return Err(Error::Invalid(format!("the {k} likeliest tokens: want 1 to {most}")));
        }
        self.read(ids, Tail::Top(k as u32))?;
        let [values, ids] = self.script.buffers.top;
        let values = self.words(values, 0, k)?.into_iter().map(f32::from_bits);
        Ok(self.words(ids, 0, k)?.into_iter().zip(values).collect())
    }

    /// Reads `ids` and writes up to `most` tokens, each the likeliest; `each` hears of it, and says whether to go on. The
    /// last one is not read.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), with the tokens to write counted in.
    pub fn greedy(
        &mut self,
        ids: &[u32],
        most: usize,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<()> {
        if most == 0 {
            return Ok(());
        }
        self.check(ids, most - 1)?;
        self.read(ids, Tail::Argmax)?;
        for written in 1..=most {
            let id = self.words(self.script.buffers.text, self.position, 1)?[0];
            if each(id).is_break() || written == most {
                break;
            }
            self.run(Pass::Body { tokens: 1, past: self.position, tail: Tail::Argmax })?;
            self.advance(1);
        }
        Ok(())
    }

    /// Reads `ids` and gives the normed hidden states `[ids, hidden]`, from which [`logits`](Self::logits) are made.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn hidden(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.check(ids, 0)?;
        let width = self.script.decoder.config.hidden_size;
        let mut all = Vec::with_capacity(ids.len() * width);
        for ids in ids.chunks(self.script.options.pass()) {
            self.pass(ids, Tail::Nothing)?;
            let words = self.words(self.script.hidden(), 0, ids.len() * width)?;
            all.extend(words.into_iter().map(f32::from_bits));
        }
        Ok(all)
    }

    /// Logits `[count, vocab]` of the rows of `hidden` `[_, hidden]` from `first` on.
    ///
    /// # Errors
    /// When `hidden` has no such rows, or they are more than [`logit_rows`](Self::logit_rows); when the device fails.
    pub fn logits(&mut self, hidden: &[f32], first: usize, count: usize) -> Result<&[f32]> {
        let width = self.script.decoder.config.hidden_size;
        let rows = hidden.get(first * width..(first + count) * width);
        let Some(rows) = rows.filter(|_| (1..=self.logit_rows()).contains(&count)) else {
            return Err(Error::Invalid(format!(
                "rows {first}..{} of {} hidden states, of which at most {} are taken at a time",
                first + count,
                hidden.len() / width,
                self.logit_rows()
            )));
        };
        let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.device.write(self.script.hidden(), 0, &bytes)?;
        self.run(Pass::Head { rows: count })?;
        self.read_logits(count)
    }

    /// Rows of logits that are made at a time.
    pub fn logit_rows(&self) -> usize {
        self.script.options.logit_rows
    }

    /// Refuses ids that can't be read, with `more` tokens to be read after them.
    fn check(&self, ids: &[u32], more: usize) -> Result<()> {
        let vocab = self.script.plan.vocab;
        if ids.is_empty() {
            return Err(Error::Invalid("nothing to read: want at least one token".into()));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Invalid(format!(
                "token id {id} is outside the model's vocabulary of {vocab}; does the tokenizer belong to the model?"
            )));
        }
        let (count, context) = (ids.len().saturating_add(more), self.script.options.context);
        if self.position.saturating_add(count) > context {
            return Err(Error::Invalid(format!(
                "{count} tokens after {} don't fit a context of {context}; make the context longer or the text shorter",
                self.position
            )));
        }
        Ok(())
    }

    /// Takes `ids` into the past; of the last pass `tail` is done.
    fn read(&mut self, ids: &[u32], tail: Tail) -> Result<()> {
        self.check(ids, 0)?;
        let mut passes = ids.chunks(self.script.options.pass()).peekable();
        while let Some(ids) = passes.next() {
            self.pass(ids, if passes.peek().is_some() { Tail::Nothing } else { tail })?;
        }
        Ok(())
    }

    /// One pass over ids that fit.
    fn pass(&mut self, ids: &[u32], tail: Tail) -> Result<()> {
        let words = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
        let step = [self.position as u32, ids.len() as u32];
        self.device.write(self.script.buffers.ids, 0, &words(ids))?;
        self.device.write(self.script.buffers.step, 0, &words(&step))?;
        self.run(Pass::Body { tokens: ids.len(), past: self.position, tail })?;
        self.advance(ids.len());
        Ok(())
    }

    /// So many tokens more were read.
    fn advance(&mut self, tokens: usize) {
        self.position += tokens;
        let kept = self.reach.kept().unwrap_or(self.position);
        self.reach.leave(self.position.saturating_sub(kept));
    }

    /// Runs the list of a pass. Those that will be asked for again are kept.
    fn run(&mut self, pass: Pass) -> Result<()> {
        let (key, is_common) = match pass {
            Pass::Body { tokens, past, tail } => {
                let parts = if tokens == 1 { self.script.parts(past) } else { 1 };
                (Key::Body(tokens, parts, tail), tokens == 1 || tokens == self.script.options.pass())
            }
            Pass::Head { rows } => (Key::Head(rows), rows == self.logit_rows()),
        };
        if let Some(list) = self.lists.get(&key) {
            return self.device.run(list);
        }
        let list = self.device.prepare(&self.script.list(pass)?)?;
        self.device.run(&list)?;
        if is_common {
            self.lists.insert(key, list);
        }
        Ok(())
    }

    fn read_logits(&mut self, rows: usize) -> Result<&[f32]> {
        let words = self.words(self.script.logits(), 0, rows * self.script.plan.vocab)?;
        self.logits.clear();
        self.logits.extend(words.into_iter().map(f32::from_bits));
        Ok(&self.logits)
    }

    /// `count` words of a buffer from the `first` on.
    fn words(&mut self, buffer: BufferId, first: usize, count: usize) -> Result<Vec<u32>> {
        let mut bytes = vec![0; 4 * count];
        self.device.read(buffer, 4 * first as u64, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }
}

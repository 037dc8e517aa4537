//! A text that is read and written in turns.
//!
//! Knows no thread and no C. Invariant: `read` are the tokens that the sequence remembers, in their order; `unread` comes after them.

use std::ops::ControlFlow;
use std::time::Instant;

use qat_infer::generate::{self, Repetition, Sampler, Sampling, TextStream, Writing, return_to};
use qat_infer::{Error, Result, Sequence};

use crate::model::Loaded;

/// Tokens that are read between two looks at whether the answer is still wanted.
const PART: usize = 256;

/// How an answer is written.
#[derive(Debug, Clone)]
pub struct Wish {
    pub prompt: Prompt,
    pub most: usize,
    pub sampling: Sampling,
    pub repetition: Repetition,
    pub stops: Vec<String>,
}

/// What is read before.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// A text that goes on from where the last answer ended.
    More(String),
    /// A whole conversation, as the chat template writes it; what of it was read before isn't read again.
    Whole(String),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum End {
    /// With a stop token or a stop word.
    Stop = 0,
    /// With as many tokens as were asked for, or a full context.
    Length = 1,
    /// It was cancelled, or the callback had enough.
    Cancelled = 2,
}

/// What an answer took.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct Usage {
    /// Tokens that were read for it.
    pub prompt_tokens: u64,
    /// Tokens of the prompt that had been read before.
    pub reused_tokens: u64,
    /// Tokens that were written, without one that ended it.
    pub new_tokens: u64,
    /// Tokens that the session remembers now.
    pub position: u64,
    /// Seconds from the call to the first token.
    pub first_seconds: f64,
    /// Seconds from there to the last one.
    pub rest_seconds: f64,
    /// Why there are no more.
    pub end: End,
}

impl Usage {
    fn nothing() -> Self {
        Self {
            prompt_tokens: 0,
            reused_tokens: 0,
            new_tokens: 0,
            position: 0,
            first_seconds: 0.0,
            rest_seconds: 0.0,
            end: End::Cancelled,
        }
    }
}

/// Whoever hears the answer.
pub trait Listener {
    /// Whether it is still wanted.
    fn is_wanted(&self) -> bool;

    /// Hears the next piece.
    fn hear(&mut self, text: &str) -> ControlFlow<()>;
}

/// A sequence with the tokens it has read.
pub struct Conversation<'a> {
    model: &'a Loaded,
    sequence: &'a mut dyn Sequence,
    context: usize,
    read: Vec<u32>,
    unread: Option<u32>,
}

impl<'a> Conversation<'a> {
    /// At the beginning of a text of at most `context` tokens.
    pub fn new(model: &'a Loaded, sequence: &'a mut dyn Sequence, context: usize) -> Self {
        Self { model, sequence, context, read: Vec::new(), unread: None }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.sequence.reset();
        self.read.clear();
        self.unread = None;
    }

    /// Writes an answer.
    ///
    /// # Errors
    /// When the prompt is empty or doesn't fit the context, or a number of the sampling is out of its range: then the conversation is as
    /// it was. When the device fails: then it is at its beginning.
    pub fn answer(&mut self, wish: &Wish, listener: &mut dyn Listener) -> Result<Usage> {
        let began = Instant::now();
        wish.repetition.check()?;
        Sampler::new(&wish.sampling)?;
        let model = self.model;
        let end_of_text = &model.weights().config().eos_token_ids;
        let (stop_tokens, words) = match (&wish.prompt, &model.chat) {
            (Prompt::Whole(_), Some(chat)) => (&chat.endings.tokens, &*chat.endings.words),
            _ => (end_of_text, &[][..]),
        };
        let text = TextStream::new(&model.tokenizer, &[&wish.stops, words].concat())?;
        let all = self.whole(&wish.prompt)?;
        let ids = return_to(&mut *self.sequence, &mut self.read, &all);
        self.unread = None;
        let reused_tokens = (all.len() - ids.len()) as u64;
        let answer = Answer { text, listener, stop_tokens, stopped: false, new: 0, first: None };
        let written = self.write(wish, ids, answer, began);
        match written {
            Ok(usage) => Ok(Usage { reused_tokens, ..usage }),
            Err(error) => {
                self.reset();
                Err(error)
            }
        }
    }

    /// The tokens that an answer follows: at least one, and fewer than the context has.
    fn whole(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let past = || self.read.iter().copied().chain(self.unread);
        let (text, before) = match prompt {
            Prompt::More(text) => (text, past().collect()),
            Prompt::Whole(text) => (text, Vec::new()),
        };
        // A chat template writes special tokens itself.
        let is_first = matches!(prompt, Prompt::More(_)) && before.is_empty();
        let encoded = self.model.tokenizer.encode(text.as_str(), is_first);
        let encoded = encoded.map_err(|e| Error::Invalid(format!("the prompt: {e}")))?;
        let all = [&before, encoded.get_ids()].concat();
        if all.is_empty() {
            return Err(Error::Invalid(
                "the prompt is empty and nothing came before it: give some text".into(),
            ));
        }
        if all.len() >= self.context {
            return Err(Error::Invalid(format!(
                "{} tokens leave no room for an answer in a context of {}: begin anew, or open the session with more",
                all.len(),
                self.context
            )));
        }
        Ok(all)
    }

    /// Reads `ids`, at least one, and writes what follows.
    fn write(
        &mut self,
        wish: &Wish,
        ids: &[u32],
        mut answer: Answer<'_, '_>,
        began: Instant,
    ) -> Result<Usage> {
        let mut usage = Usage { prompt_tokens: ids.len() as u64, ..Usage::nothing() };
        // The last part is read by whoever writes.
        let last = (ids.len() - 1) / PART * PART;
        for part in ids[..last].chunks(PART) {
            if !answer.listener.is_wanted() {
                usage.position = self.read.len() as u64;
                return Ok(usage);
            }
            self.sequence.prefill(part)?;
            self.read.extend(part);
        }
        let room = self.context - self.read.len() - (ids.len() - last);
        let writing = Writing {
            most: wish.most.min(room),
            stops: &[],
            sampling: wish.sampling,
            repetition: Some(wish.repetition),
            before: &self.read,
        };
        let mut trouble = None;
        let generated = writing.write(&mut *self.sequence, &ids[last..], None, &mut |id| {
            answer.take(id).unwrap_or_else(|error| {
                trouble = Some(error);
                ControlFlow::Break(())
            })
        })?;
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        self.read.extend(&ids[last..]);
        if let Some((unread, before)) = generated.tokens.split_last() {
            self.read.extend(before);
            self.unread = Some(*unread);
        }
        usage.end = match generated.end {
            _ if answer.stopped => End::Stop,
            generate::End::Told => End::Cancelled,
            generate::End::Stop | generate::End::Length => End::Length,
        };
        usage.new_tokens = answer.new;
        usage.first_seconds = answer.first.map_or(0.0, |at| (at - began).as_secs_f64());
        usage.rest_seconds = generated.rest.as_secs_f64();
        usage.position = self.read.len() as u64;
        answer.finish();
        Ok(usage)
    }
}

/// An answer while it is written.
struct Answer<'m, 'l> {
    text: TextStream<'m>,
    listener: &'l mut dyn Listener,
    stop_tokens: &'m [u32],
    stopped: bool,
    new: u64,
    first: Option<Instant>,
}

impl Answer<'_, '_> {
    fn take(&mut self, id: u32) -> Result<ControlFlow<()>> {
        self.first.get_or_insert_with(Instant::now);
        if self.stop_tokens.contains(&id) {
            self.stopped = true;
            return Ok(ControlFlow::Break(()));
        }
        self.new += 1;
        let piece = self.text.push(id)?;
        self.stopped = self.text.is_stopped();
        let told = if piece.is_empty() { ControlFlow::Continue(()) } else { self.listener.hear(&piece) };
        let is_over = told.is_break() || self.stopped || !self.listener.is_wanted();
        Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Gives out what was held back in case a stop word came.
    fn finish(self) {
        let rest = self.text.finish();
        if !rest.is_empty() && self.listener.is_wanted() {
            // Nothing comes after it, whatever is answered.
            let _ = self.listener.hear(&rest);
        }
    }
}

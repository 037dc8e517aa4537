//! A text without end in bounded memory: when the window is full, its first tokens and the later half are read anew.
//!
//! What the model then has before it is a text of its own, at positions from zero on, as it was trained: the first few tokens, on which
//! attention rests (Xiao et al., arXiv 2309.17453), and then the newest ones. Nothing of what was dropped lingers in keys or values.
//! Reading again costs about as much as reading, not writing: half a window for each half window written.
//!
//! Knows no device. Invariant: predictions are those after reading [`kept`](Windowed::kept) from the beginning; on the CPU to the bit.

use std::ops::ControlFlow;

use crate::{Error, Result, Sequence};

/// A sequence of at most `window` tokens that goes on for ever.
pub struct Windowed<'m> {
    inner: Box<dyn Sequence + 'm>,
    window: usize,
    sinks: usize,
    kept: Vec<u32>,
    slides: usize,
}

/// Tokens at the beginning that stay, unless more are wanted.
pub const SINKS: usize = 4;
/// Makes the past of `sequence`, which is `kept`, the longest beginning of `ids` that is remembered, but for their last, and gives the ids that
/// are still to be read.
pub fn return_to<'i>(sequence: &mut dyn Sequence, kept: &mut Vec<u32>, ids: &'i [u32]) -> &'i [u32] {
    let same = kept.iter().zip(ids).take_while(|(a, b)| a == b).count();
    let common = same.min(ids.len().saturating_sub(1));
    if sequence.rewind(common) {
        kept.truncate(common);
    } else {
        sequence.reset();
        kept.clear();
    }
    &ids[kept.len()..]
}

/// Ids that are read at a time, so that a long text slides through the window.
const PART: usize = 256;

impl<'m> Windowed<'m> {
    /// `inner`, which has room for `window` tokens; the first `sinks` of a text always stay.
    ///
    /// # Errors
    /// When the sinks leave no room to move: less than half of the window.
    pub fn new(inner: Box<dyn Sequence + 'm>, window: usize, sinks: usize) -> Result<Self> {
        if window < 8 || sinks > window / 2 {
            return Err(Error::Invalid(format!(
                "a window of {window} tokens of which the first {sinks} stay; want at least 8, and at most half of them to stay"
            )));
        }
        Ok(Self { inner, window, sinks, kept: Vec::new(), slides: 0 })
    }

    /// Lets the first `sinks` tokens stay from now on, or as many as half of the window has.
    pub fn set_sinks(&mut self, sinks: usize) {
        self.sinks = sinks.min(self.window / 2);
    }

    /// The tokens that predictions follow from.
    pub fn kept(&self) -> &[u32] {
        &self.kept
    }

    /// How often tokens were dropped.
    pub fn slides(&self) -> usize {
        self.slides
    }

    /// Makes the past the longest beginning of `ids` that is remembered, but for their last, and gives the ids that are still to be read.
    pub fn return_to<'i>(&mut self, ids: &'i [u32]) -> &'i [u32] {
        return_to(&mut *self.inner, &mut self.kept, ids)
    }

    /// Room for tokens before some have to go.
    fn room(&self) -> usize {
        self.window - self.kept.len()
    }

    /// Drops all of a full window but its first tokens and the newest half; gives what of that is to be read again.
    fn slide(&mut self) -> Vec<u32> {
        let newest = self.kept.len() - (self.window - self.sinks) / 2;
        let again = self.kept[newest..].to_vec();
        self.slides += 1;
        if self.inner.rewind(self.sinks) {
            self.kept.truncate(self.sinks);
            return again;
        }
        let all = [&self.kept[..self.sinks], &again].concat();
        self.reset();
        all
    }

    /// Reads all of `ids` but what fits now, and gives the rest, with what has to be read again before it.
    fn make_way(&mut self, ids: &[u32]) -> Result<Vec<u32>> {
        let mut rest = ids.to_vec();
        while rest.len() > self.room() {
            let part = PART.min(self.room());
            if part == 0 {
                let mut again = self.slide();
                again.append(&mut rest);
                rest = again;
                continue;
            }
            self.inner.hidden(&rest[..part])?;
            self.kept.extend(rest.drain(..part));
        }
        Ok(rest)
    }
}

impl Sequence for Windowed<'_> {
    fn vocab(&self) -> usize {
        self.inner.vocab()
    }

    fn position(&self) -> usize {
        self.kept.len()
    }

    fn reset(&mut self) {
        self.inner.reset();
        self.kept.clear();
    }

    fn rewind(&mut self, tokens: usize) -> bool {
        let can = self.inner.rewind(tokens);
        if can {
            self.kept.truncate(tokens);
        }
        can
    }

    fn prefill(&mut self, ids: &[u32]) -> Result<&[f32]> {
        let rest = self.make_way(ids)?;
        let logits = self.inner.prefill(&rest)?;
        self.kept.extend(rest);
        Ok(logits)
    }

    fn hidden(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        if ids.len() > self.room() {
            return Err(Error::Invalid("hidden states of a text that doesn't fit the window".into()));
        }
        let hidden = self.inner.hidden(ids)?;
        self.kept.extend(ids);
        Ok(hidden)
    }

    fn logits(&mut self, hidden: &[f32], first: usize, count: usize) -> Result<&[f32]> {
        self.inner.logits(hidden, first, count)
    }

    fn logit_rows(&self) -> usize {
        self.inner.logit_rows()
    }

    fn top(&mut self, ids: &[u32], k: usize) -> Result<Vec<(u32, f32)>> {
        let rest = self.make_way(ids)?;
        let top = self.inner.top(&rest, k)?;
        self.kept.extend(rest);
        Ok(top)
    }

    fn greedy(
        &mut self,
        ids: &[u32],
        most: usize,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<()> {
        let (mut next, mut left) = (ids.to_vec(), most);
        while left > 0 {
            let rest = self.make_way(&next)?;
            // The last token that is written isn't read.
            let now = left.min(self.room() - rest.len() + 1);
            let (mut written, mut told) = (Vec::new(), false);
            self.inner.greedy(&rest, now, &mut |id| {
                written.push(id);
                let flow = each(id);
                told = flow.is_break();
                flow
            })?;
            self.kept.extend(rest);
            let last = written.pop();
            self.kept.extend(written);
            let Some(last) = last.filter(|_| !told) else { break };
            (next, left) = (vec![last], left - now);
        }
        Ok(())
    }

    fn past_layout(&self) -> String {
        self.inner.past_layout()
    }

    fn past(&mut self) -> Result<Vec<u8>> {
        self.inner.past()
    }

    fn restore(&mut self, ids: &[u32], past: &[u8]) -> Result<()> {
        self.inner.restore(ids, past)?;
        self.kept = ids.to_vec();
        Ok(())
    }
}

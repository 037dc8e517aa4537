//! How far back the keys and values reach that layers with a window keep.
//!
//! Knows no memory. Invariant: what [`Reach::reaches`] says is there has not been written over.

use super::Config;

/// What is left of the past in layers that see a window.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// Tokens that a token sees in them, its own included; none where no layer sees a window.
    window: Option<usize>,
    /// Positions that they keep; none where they keep all.
    kept: Option<usize>,
    /// The first position that was not written over.
    oldest: usize,
}

impl Reach {
    /// For texts of up to `context` tokens, read in passes of up to `pass`.
    ///
    /// What the first token of a pass sees must not be written over by its last, and after that so much more is kept that a
    /// text may be gone on with from a pass earlier.
    pub fn new(config: &Config, context: usize, pass: usize) -> Self {
        let window = (0..config.layers).find_map(|layer| config.window(layer));
        let kept = window.map(|window| window.saturating_add(2 * pass)).filter(|kept| *kept < context);
        Self { window, kept, oldest: 0 }
    }

    /// Positions that such layers keep; none where they keep all.
    pub fn kept(&self) -> Option<usize> {
        self.kept
    }

    /// The first position that such a layer shows to a token after `depth` others.
    pub fn first(&self, depth: usize) -> usize {
        self.window.map_or(0, |window| (depth + 1).saturating_sub(window))
    }

    /// Everything before `position` is written over.
    pub fn leave(&mut self, position: usize) {
        if self.kept.is_some() {
            self.oldest = self.oldest.max(position);
        }
    }

    /// Whether a text can be gone on with after its first `depth` tokens.
    pub fn reaches(&self, depth: usize) -> bool {
        self.first(depth) >= self.oldest
    }

    /// A new text begins.
    pub fn clear(&mut self) {
        self.oldest = 0;
    }

    /// What is to be remembered beside keys and values.
    pub fn to_bytes(self) -> Vec<u8> {
        self.kept.map_or_else(Vec::new, |_| (self.oldest as u64).to_le_bytes().to_vec())
    }

    /// Remembers [`to_bytes`](Self::to_bytes); of other bytes nothing that could be gone back to.
    pub fn restore(&mut self, bytes: &[u8]) {
        let oldest = bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
        self.oldest = usize::try_from(oldest).unwrap_or(usize::MAX);
    }
}

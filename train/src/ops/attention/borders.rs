//! Where documents begin in windows that hold several, how far back a layer looks, and so what each query sees.
//!
//! Knows no arithmetic. Positions are not counted anew: rotary embeddings see differences of positions alone, and those are within documents.

use std::{ops::Range, sync::Arc};

use candle_core::Result;

use crate::ops::lanes::LANES;

/// For each position of each window the first position that it sees, counted from the window's beginning; `[windows, ctx]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Borders {
    firsts: Arc<[u32]>,
    ctx: usize,
}

impl Borders {
    /// Of windows of `ctx` positions.
    ///
    /// # Errors
    /// Positions that see what comes after them or fewer than those before them, and windows that are not whole.
    pub fn new(firsts: Vec<u32>, ctx: usize) -> Result<Self> {
        let whole = ctx > 0 && !firsts.is_empty() && firsts.len().is_multiple_of(ctx);
        let fits = |window: &[u32]| {
            window.is_sorted() && window.iter().enumerate().all(|(at, first)| *first as usize <= at)
        };
        if !whole || !firsts.chunks(ctx.max(1)).all(fits) {
            candle_core::bail!(
                "borders of {} positions: want windows of {ctx}, each position in a document",
                firsts.len()
            );
        }
        Ok(Self { firsts: firsts.into(), ctx })
    }

    /// Of windows whose positions were counted off: each sees from the first of its own document on.
    pub(crate) fn of_windows(firsts: Vec<u32>, ctx: usize) -> Self {
        debug_assert!(Self::new(firsts.clone(), ctx).is_ok());
        Self { firsts: firsts.into(), ctx }
    }

    /// Of `windows` of `ctx` positions that see the last `seen` of them, their own included, and nothing before what `apart` says.
    pub fn seen(seen: usize, (windows, ctx): (usize, usize), apart: Option<&Self>) -> Self {
        let first = |at: usize| {
            let oldest = (at % ctx + 1).saturating_sub(seen) as u32;
            apart.map_or(oldest, |apart| apart.firsts[at].max(oldest))
        };
        Self::of_windows((0..windows * ctx).map(first).collect(), ctx)
    }

    /// All of them, `[windows · ctx]`.
    pub fn firsts(&self) -> &[u32] {
        &self.firsts
    }

    /// Tokens before each position in its own document; `[windows · ctx]`.
    pub(in crate::ops) fn places(&self) -> Vec<u32> {
        self.firsts
            .chunks(self.ctx)
            .flat_map(|window| (0..).zip(window).map(|(at, first)| at - first))
            .collect()
    }

    /// Refuses to be those of other windows than `b` of `t` positions.
    pub(in crate::ops) fn check(&self, name: &str, b: usize, t: usize) -> Result<()> {
        if self.ctx != t || self.firsts.len() != b * t {
            candle_core::bail!(
                "{name}: want borders of {b} windows of {t}, found {} of {}",
                self.firsts.len() / self.ctx,
                self.ctx
            );
        }
        Ok(())
    }
}

/// What the queries of one window see.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a>(&'a [u32]);

impl<'a> Sight<'a> {
    /// Those of window `window`; without borders everything up to themselves.
    pub(super) fn of(borders: Option<&'a Borders>, window: usize) -> Self {
        Self(borders.map_or(&[], |borders| &borders.firsts[window * borders.ctx..][..borders.ctx]))
    }

    /// A position, a multiple of the lanes of a product, before which queries from `query` on see nothing.
    pub(super) fn from(self, query: usize) -> usize {
        // Padding behind the window sees what its last position sees.
        let first = self.0.get(query).or(self.0.last()).map_or(0, |first| *first as usize);
        first / LANES * LANES
    }

    /// The keys that `query` sees, counted from `from`.
    pub(super) fn range(self, query: usize, from: usize) -> Range<usize> {
        let first = self.0.get(query).or(self.0.last()).map_or(0, |first| *first as usize);
        first - from..query + 1 - from
    }
}

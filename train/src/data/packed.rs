//! Windows that hold whole documents side by side: what in them is learned, and where each begins.
//!
//! Knows no text. Marks stand in the highest bits of the ids of a token file. Invariant: a token is a target only of the one before it in
//! its own document.

use crate::ops::Borders;

/// A token that is learned.
pub(super) const LEARNED: u32 = 1 << 31;
/// The first token of a document.
pub(super) const FIRST: u32 = 1 << 30;
/// The last token of a document that was longer than a window.
pub(super) const CUT: u32 = 1 << 29;
/// A token behind the documents of a window, which fills it.
pub(super) const FILL: u32 = 1 << 28;
/// The id itself.
pub(super) const ID: u32 = FILL - 1;

/// A token of a window, as training takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marked {
    /// Its id.
    pub id: u32,
    /// Whether it is a target that is learned.
    pub learned: bool,
    /// Whether a document begins with it, where documents lie apart.
    pub begins: bool,
    /// Whether it fills a window behind its documents.
    pub fills: bool,
    /// Whether its document was cut off behind it.
    pub cut: bool,
}

impl Marked {
    /// A token of a token file; where ids carry no marks all are learned.
    pub(super) fn of(token: u32, marked: bool) -> Self {
        if !marked {
            return Self { id: token, learned: true, begins: false, fills: false, cut: false };
        }
        let has = |mark: u32| token & mark != 0;
        let learned = has(LEARNED) && !has(FIRST);
        Self { id: token & ID, learned, begins: has(FIRST), fills: has(FILL), cut: has(CUT) }
    }
}

/// What a batch of such windows is besides its ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Where documents begin.
    pub borders: Borders,
    /// Which targets are learned, counted over the whole batch; ascending.
    pub learned: Vec<u32>,
}

/// The same in the making, window by window.
#[derive(Default)]
pub(super) struct Packing {
    firsts: Vec<u32>,
    learned: Vec<u32>,
}

impl Packing {
    /// Adds a window, a token more than its inputs, and takes the marks off its ids.
    pub(super) fn add(&mut self, window: &mut [u32]) {
        let before = self.firsts.len() as u32;
        let mut first = 0;
        for at in 0..window.len() {
            let token = window[at];
            // What fills a window is a document of its own, so that nobody sees it.
            let begins = at == 0 || token & FIRST != 0 || (token & FILL != 0 && window[at - 1] & FILL == 0);
            if begins {
                first = at as u32;
            } else if token & LEARNED != 0 {
                self.learned.push(before + at as u32 - 1);
            }
            if at + 1 < window.len() {
                self.firsts.push(first);
            }
        }
        // Marks are read above, of a token and the one before it.
        window.iter_mut().for_each(|token| *token &= ID);
    }

    /// Of windows with `context` inputs.
    pub(super) fn finish(self, context: usize) -> Packed {
        let Self { firsts, learned } = self;
        Packed { borders: Borders::of_windows(firsts, context), learned }
    }
}

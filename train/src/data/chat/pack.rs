//! Whole documents side by side in windows of one length.
//!
//! Knows no text. Invariants: which document lies in which window depends on their lengths and order alone; no document is in two
//! windows, and only one that is longer than a window is cut.

use crate::data::packed::{CUT, FILL, FIRST};

/// Windows that are filled at a time: enough that a document soon comes that fits what is left.
const OPEN: usize = 64;

/// Windows in the making.
#[derive(Debug)]
pub(super) struct Packer {
    /// Tokens of a window.
    len: usize,
    /// The id that fills what documents leave over.
    fill: u32,
    open: Vec<Vec<u32>>,
}

impl Packer {
    /// Windows of `len` tokens.
    pub(super) fn new(len: usize, fill: u32) -> Self {
        Self { len, fill, open: Vec::new() }
    }

    /// Takes a document, and gives a window that is done, if one is. How many tokens of the document were cut off comes with it.
    pub(super) fn add(&mut self, mut document: Vec<u32>) -> (Option<Vec<u32>>, usize) {
        let over = document.len().saturating_sub(self.len);
        document.truncate(self.len);
        if let Some(first) = document.first_mut() {
            *first |= FIRST;
        }
        if let Some(last) = document.last_mut().filter(|_| over > 0) {
            *last |= CUT;
        }
        // The window that it leaves the least room in; of several the oldest.
        let room = |window: &Vec<u32>| self.len - window.len();
        let fitting = self.open.iter().enumerate().filter(|(_, window)| room(window) >= document.len());
        match fitting.min_by_key(|(at, window)| (room(window), *at)).map(|(at, _)| at) {
            Some(at) => {
                self.open[at].extend(document);
                let full = self.open[at].len() == self.len;
                (full.then(|| self.close(at)), over)
            }
            None => {
                let fullest = self.open.iter().enumerate().min_by_key(|(at, window)| (room(window), *at));
                let done = fullest.map(|(at, _)| at).filter(|_| self.open.len() == OPEN);
                let done = done.map(|at| self.close(at));
                self.open.push(document);
                (done, over)
            }
        }
    }

    /// The windows that are not full.
    pub(super) fn finish(mut self) -> Vec<Vec<u32>> {
        (0..self.open.len()).map(|_| self.close(0)).collect()
    }

    fn close(&mut self, at: usize) -> Vec<u32> {
        let mut window = self.open.remove(at);
        window.resize(self.len, self.fill | FILL);
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::packed::ID;

    /// Windows of 10 tokens over documents of these lengths, each of the id of its number.
    fn packed(lens: &[usize]) -> (Vec<Vec<u32>>, usize) {
        let mut packer = Packer::new(10, 99);
        let (mut windows, mut over) = (Vec::new(), 0);
        for (id, len) in lens.iter().enumerate() {
            let (window, cut) = packer.add(vec![id as u32; *len]);
            windows.extend(window);
            over += cut;
        }
        windows.extend(packer.finish());
        (windows, over)
    }

    #[test]
    fn a_document_goes_where_it_leaves_the_least_room() {
        let (windows, over) = packed(&[6, 7, 3, 4]);
        let ids: Vec<Vec<u32>> = windows.iter().map(|w| w.iter().map(|token| token & ID).collect()).collect();
        assert_eq!(ids, [[1, 1, 1, 1, 1, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 3, 3, 3, 3]]);
        assert_eq!(over, 0);
        assert_eq!(windows[0].iter().filter(|token| **token & FIRST != 0).count(), 2);
    }

    #[test]
    fn one_that_is_too_long_is_cut_and_marked_and_what_is_left_over_is_filled() {
        let (windows, over) = packed(&[13, 4]);
        assert_eq!((windows.len(), over), (2, 3));
        assert_eq!(windows[0][9], CUT);
        assert_eq!(windows[1][4..], [99 | FILL; 6]);
    }

    #[test]
    fn no_document_is_lost_and_windows_are_nearly_full() {
        let lens: Vec<usize> = (0..5000).map(|i| 1 + i * i * 7 % 9).collect();
        let (windows, _) = packed(&lens);
        let tokens = windows.iter().flatten().filter(|token| **token & FILL == 0).count();
        assert_eq!(tokens, lens.iter().sum::<usize>());
        assert!(
            windows.len() * 10 < tokens * 102 / 100 + 640,
            "{} windows of {tokens} tokens",
            windows.len()
        );
    }
}

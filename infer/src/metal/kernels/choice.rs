//! The choice among logits: the greatest, or the few greatest.
//!
//! Knows no sampling. The constants and shapes are those that `argmax.metal` and `top_k.metal` declare.

use qat_quant::kernels::metal::{Constant, Dispatch, Launch, Library};

use super::{STEP, WORD, library, words};

pub(super) const ARGMAX: Library = library!("order"; "argmax");
pub(super) const TOP_K: Library = library!("order"; "top_k");

const ADVANCE: u16 = 0;
/// Threads of the one threadgroup; `LIST` of `top_k.metal`.
const THREADS: u32 = 1024;

/// Most logits that [`TopK`] gives.
pub const MOST_TOP: usize = 64;

/// The greatest logit's id, the first of equal ones; a NaN never wins, and where all are NaN the id is 0.
///
/// | buffer | what |
/// |---|---|
/// | 0 | logits, f32 `[vocab]`, of the last token of the pass |
/// | 1 | [`Dispatch::shape`] |
/// | 2 | ids, u32: the first becomes the id |
/// | 3 | text, u32 `[text]`: the id is written at position `step.position + step.tokens`, if there is such a place |
/// | 4 | step, u32 `[position, tokens]`; with `advance` it becomes `[position + tokens, 1]` |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argmax {
    /// Logits, at least 1.
    pub vocab: u32,
    /// Places of the text.
    pub text: u32,
    /// Whether the step moves on, so that the next pass needs nothing of the host.
    pub advance: bool,
}

/// The `k` greatest logits, greatest first; of equal ones the first is the first, and a NaN comes after all numbers.
///
/// | buffer | what |
/// |---|---|
/// | 0 | logits, f32 `[vocab]` |
/// | 1 | [`Dispatch::shape`] |
/// | 2 | values, f32 `[k]` |
/// | 3 | ids, u32 `[k]` |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopK {
    /// Logits.
    pub vocab: u32,
    /// 1 to [`MOST_TOP`], and no more than there are logits.
    pub k: u32,
}

fn launch(library: &Library, kernel: &'static str, constants: Vec<(u16, Constant)>) -> Launch {
    let threads = [THREADS, 1, 1];
    Launch { library: library.name, kernel, constants, groups: [1, 1, 1], threads, threadgroup_bytes: 0 }
}

impl Argmax {
    /// The kernel, its grid, its shape, and what it moves.
    ///
    /// # Panics
    /// When there are no logits.
    pub fn dispatch(&self) -> Dispatch {
        assert!(self.vocab > 0, "a choice among nothing");
        Dispatch {
            launch: launch(&ARGMAX, "argmax", vec![(ADVANCE, Constant::Bool(self.advance))]),
            shape: words([self.vocab, self.text]),
            bytes_read: WORD * u64::from(self.vocab) + STEP,
            bytes_written: 2 * WORD + if self.advance { STEP } else { 0 },
        }
    }
}

impl TopK {
    /// The kernel, its grid, its shape, and what it moves.
    ///
    /// # Panics
    /// When `k` is out of its range.
    pub fn dispatch(&self) -> Dispatch {
        let Self { vocab, k } = *self;
        assert!(k > 0 && k as usize <= MOST_TOP && k <= vocab, "the {k} greatest of {vocab}");
        Dispatch {
            launch: launch(&TOP_K, "top_k", Vec::new()),
            shape: words([vocab, k]),
            bytes_read: WORD * u64::from(vocab),
            bytes_written: 2 * WORD * u64::from(k),
        }
    }
}

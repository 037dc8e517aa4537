//! Short convolutions, with what they remember from call to call.
//!
//! Knows no projections. The shape is the one that `short_conv.metal` declares.

use qat_quant::kernels::metal::{Dispatch, Launch, Library};

use super::{STEP, WORD, library, words};

pub(super) const SHORT_CONV: Library = library!(; "short_conv");

const THREADS: u32 = 64;

/// `out[t] = c[t] · Σⱼ kernel[j] · (b·u)[t − (taps − 1) + j]` for each channel, where a row of x is `[b, c, u]`; what lies
/// before the first token was left by the call before, or is zero at the beginning of a text.
///
/// | buffer | what |
/// |---|---|
/// | 0 | x, f32 `[tokens, 3 · width]` |
/// | 1 | kernel, f32 `[width, taps]` |
/// | 2 | out, f32 `[tokens, width]` |
/// | 3 | the last products `b·u`, f32 `[taps − 1, width]`, oldest first, in and out |
/// | 4 | the [step](super::Attention#the-step) |
/// | 5 | [`Dispatch::shape`] |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortConv {
    /// Channels, at least 1.
    pub width: u32,
    /// Tokens that an output sees, at least 2.
    pub taps: u32,
    /// Rows of x, at least 1.
    pub tokens: u32,
}

impl ShortConv {
    /// The kernel, its grid, its shape, and what it moves.
    ///
    /// # Panics
    /// When there are no channels, no tokens or no past.
    pub fn dispatch(&self) -> Dispatch {
        let Self { width, taps, tokens } = *self;
        assert!(width > 0 && taps > 1 && tokens > 0, "a convolution of nothing");
        let launch = Launch {
            library: SHORT_CONV.name,
            kernel: "short_conv",
            constants: Vec::new(),
            groups: [width.div_ceil(THREADS), 1, 1],
            threads: [THREADS, 1, 1],
            threadgroup_bytes: 0,
        };
        let row = WORD * u64::from(width);
        let (before, tokens) = (u64::from(taps - 1), u64::from(tokens));
        // At the beginning of a text nothing that is remembered is read.
        let bytes_read = row * (3 * tokens + u64::from(taps)) + STEP / 2;
        let bytes_written = row * (tokens + before);
        Dispatch { launch, shape: words([width, taps, self.tokens]), bytes_read, bytes_written }
    }
}

//! Products of activations with a matrix that stays packed, and with one stored as plain floats.
//!
//! Knows no layers and no tokens' meaning. `product` is the specification, written once over the lanes of a tier;
//! `portable` is the tier that every processor has, `x86` and `neon` hold the others.

mod float;
mod isa;
mod lanes;
pub mod metal;
#[cfg(target_arch = "aarch64")]
mod neon;
mod panels;
mod portable;
mod product;
mod tokens;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use isa::with_lanes;
use lanes::Lanes;
use panels::Panel;
use product::Rows;

pub use float::{FloatRef, FloatType};
pub use isa::Isa;
pub(crate) use isa::portable_is_forced;
pub use panels::Panels;
pub use tokens::{CHUNK, FloatTokens, Int8Tokens, Tokens, float_sums, round_int8};

/// Rows of a panel.
pub const PANEL: usize = 16;

/// Panels computed one after the other before their outputs are handed on.
const AT_ONCE: usize = 4;

/// The outputs of the panels of `w` for each token of `tokens`: `sink(panel, token, outputs)` is called once for each,
/// for a panel in the order of the tokens, for a token in the order of the panels. Outputs past the last row are of no meaning.
///
/// An output depends on nothing but its row and its token. With int8 activations it is the same to the bit on every
/// tier. Several panels at a time are for one token: many tokens would have all panels read for each few of them.
///
/// # Panics
/// When there is no such panel or token, or the activations aren't those of rows of `w.cols()`.
pub fn panels(
    isa: Isa,
    w: &Panels,
    panels: Range<usize>,
    x: Tokens<'_>,
    tokens: Range<usize>,
    sink: &mut dyn FnMut(usize, usize, &[f32; PANEL]),
) {
    let (bits, affine) = (panels::bits(w.format()), w.format().has_bias());
    with_lanes!(isa, l => match (bits, affine) {
        (2, false) => blocks::<_, 2, false>(l, w, panels, x, tokens, sink),
        (4, false) => blocks::<_, 4, false>(l, w, panels, x, tokens, sink),
        (8, false) => blocks::<_, 8, false>(l, w, panels, x, tokens, sink),
        (2, true) => blocks::<_, 2, true>(l, w, panels, x, tokens, sink),
        (3, true) => blocks::<_, 3, true>(l, w, panels, x, tokens, sink),
        (4, true) => blocks::<_, 4, true>(l, w, panels, x, tokens, sink),
        // The only other width; what isn't affine has one of the three above.
        _ => blocks::<_, 8, true>(l, w, panels, x, tokens, sink),
    });
}

/// Asks for the cache line at `address` to be on its way to the second level of the cache. Nothing is read; the address may
/// lie anywhere. Not the first level: what is asked for there takes one of its few places for misses all the way.
#[inline(always)]
#[expect(unsafe_code, reason = "the instruction takes an address as it is")]
pub fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, and it neither faults nor writes.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{0}]", in(reg) address, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// Tokens in blocks of as many as the tier takes at once, then of four and one.
fn blocks<L: Lanes, const BITS: usize, const AFFINE: bool>(
    l: L,
    w: &Panels,
    panels: Range<usize>,
    x: Tokens<'_>,
    tokens: Range<usize>,
    sink: &mut dyn FnMut(usize, usize, &[f32; PANEL]),
) {
    let mut first = tokens.start;
    // The condition is a constant, so that no code is made for blocks that a tier doesn't take.
    macro_rules! of_size {
        ($($t:literal)*) => { $(
            match x {
                Tokens::Int8(x) => if const { $t <= L::INT8_TOKENS } {
                    while tokens.end - first >= $t {
                        let rows = Rows::<_, _, $t>::new(x.codes, x.sums, w.cols(), first);
                        let scales = &x.scales[first..][..$t];
                        each_panel(l, w, panels.clone(), first, sink, #[inline(always)] |panel| {
                            product::int8::<L, BITS, AFFINE, $t>(l, panel, &rows, scales)
                        });
                        first += $t;
                    }
                },
                Tokens::Float(x) => if const { $t <= L::FLOAT_TOKENS } {
                    while tokens.end - first >= $t {
                        let rows = Rows::<_, _, $t>::new(x.values, x.sums, w.cols(), first);
                        each_panel(l, w, panels.clone(), first, sink, #[inline(always)] |panel| {
                            product::float::<L, BITS, AFFINE, $t>(l, panel, &rows)
                        });
                        first += $t;
                    }
                },
            }
        )* };
    }
    of_size!(8 4 1);
}

/// Hands on what `product` makes of each panel for the tokens from `first` on. What is computed one after the other
/// without a call in between keeps memory busy: on Zen 4 the beginning of a panel cost a tenth of the 900 columns of it.
#[inline(always)]
fn each_panel<L: Lanes, const T: usize>(
    l: L,
    w: &Panels,
    panels: Range<usize>,
    first: usize,
    sink: &mut dyn FnMut(usize, usize, &[f32; PANEL]),
    product: impl Fn(Panel<'_>) -> [[f32; PANEL]; T],
) {
    let mut outputs = [[[0.0; PANEL]; T]; AT_ONCE];
    for begin in panels.clone().step_by(AT_ONCE) {
        let part = begin..panels.end.min(begin + AT_ONCE);
        l.vectorize(
            #[inline(always)]
            || {
                for (outputs, index) in outputs.iter_mut().zip(part.clone()) {
                    *outputs = product(w.panel(index));
                }
            },
        );
        for (index, outputs) in part.zip(&outputs) {
            (first..).zip(outputs).for_each(|(token, outputs)| sink(index, token, outputs));
        }
    }
}

/// The outputs of rows `16·index..16·index + 16` of a matrix of floats for each token of `tokens`, as [`panel`] gives
/// them; `x` is `[n, w.cols()]`. Bits depend on neither tokens nor instructions.
///
/// # Panics
/// When there is no such row or token.
pub fn float_panel(
    w: FloatRef<'_>,
    index: usize,
    x: &[f32],
    tokens: Range<usize>,
    sink: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    float::panel(w, index, x, tokens, sink);
}

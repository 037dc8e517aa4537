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

pub use float::{FloatRef, FloatType};
pub use isa::Isa;
pub(crate) use isa::portable_is_forced;
pub use panels::Panels;
pub use tokens::{CHUNK, FloatTokens, Int8Tokens, Tokens, float_sums, round_int8};

/// Rows of a panel.
pub const PANEL: usize = 16;

/// Calls a product on the lanes of a tier with the bits of a code and whether the format has biases.
macro_rules! of_format {
    ($isa:expr, $format:expr, $product:ident($($argument:expr),*)) => {
        with_lanes!($isa, l => match (panels::bits($format), $format.has_bias()) {
            (2, false) => $product::<_, 2, false>(l, $($argument),*),
            (4, false) => $product::<_, 4, false>(l, $($argument),*),
            (8, false) => $product::<_, 8, false>(l, $($argument),*),
            (2, true) => $product::<_, 2, true>(l, $($argument),*),
            (3, true) => $product::<_, 3, true>(l, $($argument),*),
            (4, true) => $product::<_, 4, true>(l, $($argument),*),
            // The only other width; what isn't affine has one of the three above.
            _ => $product::<_, 8, true>(l, $($argument),*),
        })
    };
}

/// The outputs of panel `index` of `w` for each token of `tokens`: `sink(token, outputs)` is called once for each, in
/// order. Outputs past the last row are of no meaning.
///
/// An output depends on nothing but its row and its token. With int8 activations it is the same to the bit on every
/// tier.
///
/// # Panics
/// When there is no such panel or token, or the activations aren't those of rows of `w.cols()`.
pub fn panel(
    isa: Isa,
    w: &Panels,
    index: usize,
    x: Tokens<'_>,
    tokens: Range<usize>,
    sink: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    let panel = w.panel(index);
    of_format!(isa, w.format(), blocks(panel, w.cols(), x, tokens, sink));
}

/// The outputs of neighbouring panels of `w`, from number `first` on, for one token: the bits that [`panel`] gives, one
/// array for each panel.
///
/// What is computed one after the other without a call in between keeps memory busy: on Zen 4 the way into a panel and
/// out of it costs a sixth of the 960 columns of one. Many tokens make up for that by themselves.
///
/// # Panics
/// When there is no such panel, or `x` isn't one row of `w.cols()`.
pub fn panels_of_token(isa: Isa, w: &Panels, first: usize, x: Tokens<'_>, outputs: &mut [[f32; PANEL]]) {
    of_format!(isa, w.format(), token(w, first, x, outputs));
}

/// Tokens in blocks of as many as the tier takes at once, then of four and one.
fn blocks<L: Lanes, const BITS: usize, const AFFINE: bool>(
    l: L,
    panel: Panel<'_>,
    cols: usize,
    x: Tokens<'_>,
    tokens: Range<usize>,
    sink: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    let mut first = tokens.start;
    // The condition is a constant, so that no code is made for blocks that a tier doesn't take.
    macro_rules! of_size {
        ($($t:literal)*) => { $(
            match x {
                Tokens::Int8(x) => if const { $t <= L::INT8_TOKENS } {
                    while tokens.end - first >= $t {
                        let outputs = l.vectorize(#[inline(always)] || {
                            product::int8::<L, BITS, AFFINE, $t>(l, panel, &x, first)
                        });
                        (first..).zip(&outputs).for_each(|(token, outputs)| sink(token, outputs));
                        first += $t;
                    }
                },
                Tokens::Float(x) => if const { $t <= L::FLOAT_TOKENS } {
                    while tokens.end - first >= $t {
                        let outputs = l.vectorize(#[inline(always)] || {
                            product::float::<L, BITS, AFFINE, $t>(l, panel, &x, cols, first)
                        });
                        (first..).zip(&outputs).for_each(|(token, outputs)| sink(token, outputs));
                        first += $t;
                    }
                },
            }
        )* };
    }
    of_size!(8 4 1);
}

/// One token, panel after panel.
fn token<L: Lanes, const BITS: usize, const AFFINE: bool>(
    l: L,
    w: &Panels,
    first: usize,
    x: Tokens<'_>,
    outputs: &mut [[f32; PANEL]],
) {
    match x {
        Tokens::Int8(x) => each_panel(
            l,
            (first..).zip(outputs),
            #[inline(always)]
            |index| product::int8::<L, BITS, AFFINE, 1>(l, w.panel(index), &x, 0),
        ),
        Tokens::Float(x) => each_panel(
            l,
            (first..).zip(outputs),
            #[inline(always)]
            |index| product::float::<L, BITS, AFFINE, 1>(l, w.panel(index), &x, w.cols(), 0),
        ),
    }
}

/// Takes the outputs that `product` gives of panels.
#[inline(always)]
fn each_panel<'o, L: Lanes>(
    l: L,
    panels: impl Iterator<Item = (usize, &'o mut [f32; PANEL])>,
    product: impl Fn(usize) -> [[f32; PANEL]; 1],
) {
    l.vectorize(
        #[inline(always)]
        || {
            for (index, outputs) in panels {
                [*outputs] = product(index);
            }
        },
    );
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

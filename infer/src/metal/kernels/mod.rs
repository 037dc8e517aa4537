//! What a decoder does between its products on Apple's GPUs: norms, attention over the KV cache, sums, and the choice of
//! the next token.
//!
//! This side is plain data and compiled everywhere: the sources (`*.metal`), and what the GPU is to be told to run. It
//! knows no device, no buffers and no model; whoever has a device binds buffers to the places listed at [`RmsNorm`],
//! [`Attention`], [`ShortConv`], [`Elementwise`], [`Argmax`] and [`TopK`], and dispatches the launch. Places that are not listed stay
//! unbound. Where a pass stands in the text is read from a buffer, so that a list of launches is made once.
//!
//! Invariants: a source needs no file beside it. Threadgroups of one dispatch read nothing that another of them writes.

mod attention;
mod choice;
mod elementwise;
mod rms_norm;
mod short_conv;
#[cfg(test)]
mod tests;

use qat_quant::kernels::metal::Library;

pub use attention::{Attention, MOST_PARTS};
pub use choice::{Argmax, MOST_TOP, TopK};
pub use elementwise::Elementwise;
pub use rms_norm::RmsNorm;
pub use short_conv::ShortConv;

/// Every library of this module.
pub const LIBRARIES: [Library; 12] = [
    rms_norm::RMS_NORM,
    attention::TURN,
    attention::DECODE,
    attention::JOIN,
    attention::PREFILL,
    elementwise::SWIGLU,
    elementwise::RELU2,
    elementwise::GEGLU,
    short_conv::SHORT_CONV,
    elementwise::ADD,
    choice::ARGMAX,
    choice::TOP_K,
];

/// The library of the files `$source.metal`, the last of which has the kernels and gives it its name.
macro_rules! library {
    ($($part:literal),* ; $name:literal) => {
        qat_quant::kernels::metal::Library {
            name: $name,
            source: concat!(
                include_str!("prelude.metal"),
                $(include_str!(concat!($part, ".metal")),)*
                include_str!(concat!($name, ".metal"))
            ),
        }
    };
}
use library;

/// Bytes of a float, and of an id.
const WORD: u64 = 4;
/// Bytes of a [`Step`](Attention#the-step).
const STEP: u64 = 8;

/// A struct of 32-bit words as the GPU reads it.
fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

//! What is done to rows before products.
//!
//! Knows no matrix. The constants and the shape are those that `rms_norm.metal` declares.

use qat_quant::kernels::metal::{Constant, Dispatch, Launch, Library};

use super::{WORD, library, words};

pub(super) const RMS_NORM: Library = library!(; "rms_norm");

const NORM: u16 = 0;
const INT8: u16 = 1;
const RESIDUAL: u16 = 2;

/// Threads of a row, at most.
const MOST_THREADS: u32 = 512;
/// Elements that are worth a thread.
const ELEMENTS: u32 = 4;

/// Residual sum, RMS norm and rounding to int8 of each row: in this order, whichever are asked for.
///
/// | buffer | what | where |
/// |---|---|---|
/// | 0 | x, f32 `[rows, width]` | always |
/// | 1 | weight, f32 `[width]` | with a norm |
/// | 2 | out, f32 `[rows, width]`; may be the buffer of x | always |
/// | 3 | [`Dispatch::shape`] | always |
/// | 4 | r, f32 `[rows, width]`: becomes `r + x`, and what follows is done to that | with a residual |
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// Rows, at least 1.
    pub rows: u32,
    /// Elements of a row, at least 1.
    pub width: u32,
    /// `x / sqrt(mean(x²) + eps) · weight` with this `eps`.
    pub norm: Option<f32>,
    /// Rounding as [`qat_quant::int8_tokens`] has it.
    pub int8: bool,
    /// Whether x is added to a residual first.
    pub residual: bool,
}

impl RmsNorm {
    /// The kernel, its grid, its shape, and what it moves.
    ///
    /// # Panics
    /// When there are no rows, or nothing in them.
    pub fn dispatch(&self) -> Dispatch {
        let Self { rows, width, norm, int8, residual } = *self;
        assert!(rows > 0 && width > 0, "a norm of nothing");
        let threads = width.div_ceil(ELEMENTS).next_multiple_of(32).min(MOST_THREADS);
        let launch = Launch {
            library: RMS_NORM.name,
            kernel: "rms_norm",
            constants: vec![
                (NORM, Constant::Bool(norm.is_some())),
                (INT8, Constant::Bool(int8)),
                (RESIDUAL, Constant::Bool(residual)),
            ],
            groups: [rows, 1, 1],
            threads: [threads, 1, 1],
            threadgroup_bytes: 0,
        };
        let bytes = WORD * u64::from(rows) * u64::from(width);
        let both = if residual { 2 * bytes } else { bytes };
        let weight = if norm.is_some() { WORD * u64::from(width) } else { 0 };
        Dispatch {
            launch,
            shape: words([width, norm.unwrap_or(0.0).to_bits()]),
            bytes_read: both + weight,
            bytes_written: both,
        }
    }
}

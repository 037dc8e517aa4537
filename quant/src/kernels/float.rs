//! A matrix stored as plain floats, and its product: for float models, and what a packed one left as it was.
//!
//! An output is a sum of `cols` products in [`LANES`] partial sums: lane l adds the products of columns l, l + 16, … in
//! order (a row that ends within sixteen columns goes on in zeros), and lanes are then added in halves (l + l+8, then
//! l + l+4, …). A product is rounded before it is added (never fused). That fixes the bits: tokens and instructions only
//! decide which outputs are computed together.
//!
//! Knows no files; bytes are little-endian and need no alignment.

use std::ops::Range;

use super::PANEL;
use half::{bf16, f16};

use crate::simd::{reduce, vectorized};
use crate::{Error, ScaleType};

/// Partial sums of an output.
const LANES: usize = 16;

/// Tokens computed together: four times sixteen lanes are half of the AVX2 registers.
const BLOCK: usize = 4;

/// Columns decoded at a time, a multiple of the lanes.
const SPAN: usize = 512;

/// How a float is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE single precision, 4 bytes.
    F32,
    /// IEEE half precision, 2 bytes.
    F16,
    /// The upper half of an f32, 2 bytes.
    BF16,
}

impl FloatType {
    /// Bytes of one float.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// `value` as it reads once it was stored: rounded to nearest even.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::BF16 => bf16::from_f32(value).to_f32(),
        }
    }
}

impl std::str::FromStr for FloatType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            _ => Err(Error::Format(format!("{s:?} is no float type; want f32, f16 or bf16"))),
        }
    }
}

/// A row-major `[rows, cols]` float matrix whose bytes lie elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct FloatRef<'a> {
    dtype: FloatType,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> FloatRef<'a> {
    /// A matrix over `bytes`.
    ///
    /// # Errors
    /// When `cols` is 0 or the bytes have another length than the shape says.
    pub fn new(
        name: &str,
        dtype: FloatType,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, Error> {
        let want = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.bytes()));
        if cols == 0 || want != Some(bytes.len()) {
            let each = dtype.bytes();
            let problem =
                format!("a float [{rows}, {cols}] wants {each} bytes each, found {} bytes", bytes.len());
            return Err(Error::matrix(name, problem));
        }
        Ok(Self { dtype, rows, cols, bytes })
    }

    /// How a float is stored.
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input channels.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Writes row `row` as f32 into `out`, `cols` long; exact for every dtype.
    ///
    /// # Panics
    /// When there is no such row or `out` has another length.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a decoded row");
        vectorized(
            #[inline(always)]
            || self.decode_part(row, 0, out),
        );
    }

    /// Writes the columns of row `row` from `first` on into `out`. Inlined into a vectorized loop.
    #[inline(always)]
    fn decode_part(&self, row: usize, first: usize, out: &mut [f32]) {
        let each = self.dtype.bytes();
        let bytes = &self.bytes[(row * self.cols + first) * each..][..out.len() * each];
        match self.dtype {
            FloatType::F32 => read(bytes, out, f32::from_le_bytes),
            FloatType::F16 => read(
                bytes,
                out,
                #[inline(always)]
                |b| ScaleType::F16.read(b),
            ),
            FloatType::BF16 => read(
                bytes,
                out,
                #[inline(always)]
                |b| ScaleType::BF16.read(b),
            ),
        }
    }
}

#[inline(always)]
fn read<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = value(bytes);
    }
}

/// See [`super::float_panel`].
pub(super) fn panel(
    w: FloatRef<'_>,
    index: usize,
    x: &[f32],
    tokens: Range<usize>,
    sink: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    let first_row = index * PANEL;
    let rows = first_row..w.rows.min(first_row + PANEL);
    let mut first = tokens.start;
    while tokens.end - first >= BLOCK {
        let outputs = block::<BLOCK>(w, rows.clone(), x, first);
        (first..).zip(&outputs).for_each(|(token, outputs)| sink(token, outputs));
        first += BLOCK;
    }
    for token in first..tokens.end {
        let [outputs] = block(w, rows.clone(), x, token);
        sink(token, &outputs);
    }
}

/// Outputs of up to sixteen rows for the tokens `first..first + T`.
fn block<const T: usize>(w: FloatRef<'_>, rows: Range<usize>, x: &[f32], first: usize) -> [[f32; PANEL]; T] {
    let x = std::array::from_fn(|t| &x[(first + t) * w.cols..][..w.cols]);
    vectorized(
        #[inline(always)]
        || products(w, rows, x),
    )
}

/// The same for tokens that are cut out, inlined into a vectorized loop.
#[inline(always)]
fn products<const T: usize>(w: FloatRef<'_>, rows: Range<usize>, x: [&[f32]; T]) -> [[f32; PANEL]; T] {
    let mut outputs = [[0.0; PANEL]; T];
    for (lane, row) in rows.enumerate() {
        let mut sums = [[0f32; LANES]; T];
        let mut decoded = [0.0; SPAN];
        for first in (0..w.cols).step_by(SPAN) {
            let decoded = &mut decoded[..SPAN.min(w.cols - first)];
            w.decode_part(row, first, decoded);
            let part = x.map(
                #[inline(always)]
                |x| &x[first..][..decoded.len()],
            );
            sums = plus_span(sums, decoded, part);
        }
        for (output, sums) in outputs.iter_mut().zip(sums) {
            output[lane] = reduce(
                sums,
                #[inline(always)]
                |a, b| a + b,
            );
        }
    }
    outputs
}

/// Adds the products of some columns to the lanes; but for a row's last columns, they are a multiple of the lanes.
#[inline(always)]
fn plus_span<const T: usize>(mut sums: [[f32; LANES]; T], row: &[f32], x: [&[f32]; T]) -> [[f32; LANES]; T] {
    let (whole, rest) = row.as_chunks::<LANES>();
    let x_whole = x.map(
        #[inline(always)]
        |x| &x.as_chunks::<LANES>().0[..whole.len()],
    );
    for (i, w) in whole.iter().enumerate() {
        for token in 0..T {
            sums[token] = plus_products(sums[token], w, &x_whole[token][i]);
        }
    }
    if !rest.is_empty() {
        let w = padded(rest);
        for token in 0..T {
            sums[token] = plus_products(sums[token], &w, &padded(&x[token][row.len() - rest.len()..]));
        }
    }
    sums
}

/// By value, which keeps the lanes in registers: updated in place, they are not vectorized.
#[inline(always)]
fn plus_products(sums: [f32; LANES], w: &[f32; LANES], x: &[f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(
        #[inline(always)]
        |lane| sums[lane] + w[lane] * x[lane],
    )
}

#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

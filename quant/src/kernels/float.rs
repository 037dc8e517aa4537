//! A matrix stored as plain floats, read row by row by the same product as a packed one.
//!
//! Knows no files; bytes are little-endian and need no alignment.

use super::rowwise::Rows;
use crate::{Error, ScaleType};

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
        crate::simd::vectorized(
            #[inline(always)]
            || Rows::decode_row(self, row, out),
        );
    }
}

impl Rows for FloatRef<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    #[inline(always)]
    fn decode_row(&self, row: usize, out: &mut [f32]) {
        self.decode_part(row, 0, out);
    }

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

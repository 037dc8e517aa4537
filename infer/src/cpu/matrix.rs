//! A matrix as its file stores it: packed blocks or floats, never decoded as a whole.
//!
//! Knows no model. Invariant: what was accepted here has the bytes its format wants and only finite values, so that
//! multiplying by it can't meet a surprise.

use qat_quant::kernels::{self, FloatRef, FloatType};
use qat_quant::{Format, PackedRef};
use rayon::prelude::*;

use crate::files::Bytes;
use crate::{Error, Result};

/// What a matrix's inputs are rounded to before they are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// Nothing: they stay f32.
    Float,
    /// 256 levels with one scale per token.
    Int8Token,
}

/// `[rows, cols]` = `[out, in]`, read in place from `bytes`. Clones share them.
#[derive(Debug, Clone)]
pub struct Matrix {
    name: String,
    rows: usize,
    cols: usize,
    storage: Storage,
    bytes: Bytes,
    activations: Activations,
}

#[derive(Debug, Clone, Copy)]
enum Storage {
    Packed { format: Format, tensor_scale: Option<f32> },
    Float(FloatType),
}

impl Matrix {
    /// A packed matrix that multiplies `activations`.
    ///
    /// # Errors
    /// When `bytes` are not what `format` makes of the shape.
    pub fn packed(
        name: &str,
        format: Format,
        [rows, cols]: [usize; 2],
        bytes: Bytes,
        tensor_scale: Option<f32>,
        activations: Activations,
    ) -> Result<Self> {
        let packed = PackedRef::new(name, format, rows, cols, &bytes, tensor_scale)?;
        packed.validate(name)?;
        let storage = Storage::Packed { format, tensor_scale };
        Ok(Self { name: name.to_owned(), rows, cols, storage, bytes, activations })
    }

    /// A matrix of floats, little-endian.
    ///
    /// # Errors
    /// When `bytes` are not `rows · cols` values of `dtype`, or one of them is NaN or infinite.
    pub fn float(name: &str, dtype: FloatType, [rows, cols]: [usize; 2], bytes: Bytes) -> Result<Self> {
        let float = FloatRef::new(name, dtype, rows, cols, &bytes)?;
        let bad = (0..rows).into_par_iter().find_map_first(|row| {
            let mut values = vec![0.0; cols];
            float.decode_row(row, &mut values);
            let col = values.iter().position(|value| !value.is_finite())?;
            Some((row * cols + col, values[col]))
        });
        if let Some((index, value)) = bad {
            return Err(Error::tensor(name, format!("element {index} is {value}; want finite weights")));
        }
        let activations = Activations::Float;
        Ok(Self { name: name.to_owned(), rows, cols, storage: Storage::Float(dtype), bytes, activations })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What the inputs are rounded to before they are multiplied.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// Bytes of storage.
    pub fn stored_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// `out[n, rows] = x[n, cols] · Wᵀ`, decoding a row at a time.
    ///
    /// # Errors
    /// Never for a matrix that was accepted; the kernels' views check again.
    pub(super) fn matmul(&self, x: &[f32], n: usize, out: &mut [f32]) -> Result<()> {
        match self.storage {
            Storage::Packed { format, tensor_scale } => {
                kernels::matmul(self.packed_ref(format, tensor_scale)?, x, n, out);
            }
            Storage::Float(dtype) => kernels::matmul_float(self.float_ref(dtype)?, x, n, out),
        }
        Ok(())
    }

    /// Writes the rows `ids`, one after the other.
    ///
    /// # Errors
    /// Never for a matrix that was accepted.
    ///
    /// # Panics
    /// When an id is not a row.
    pub(super) fn gather(&self, ids: &[u32], out: &mut [f32]) -> Result<()> {
        let rows = ids.iter().map(|id| *id as usize).zip(out.chunks_exact_mut(self.cols));
        match self.storage {
            Storage::Packed { format, tensor_scale } => {
                let packed = self.packed_ref(format, tensor_scale)?;
                rows.for_each(|(id, row)| packed.decode_row(id, row));
            }
            Storage::Float(dtype) => {
                let float = self.float_ref(dtype)?;
                rows.for_each(|(id, row)| float.decode_row(id, row));
            }
        }
        Ok(())
    }

    fn packed_ref(&self, format: Format, tensor_scale: Option<f32>) -> Result<PackedRef<'_>> {
        Ok(PackedRef::new(&self.name, format, self.rows, self.cols, &self.bytes, tensor_scale)?)
    }

    fn float_ref(&self, dtype: FloatType) -> Result<FloatRef<'_>> {
        Ok(FloatRef::new(&self.name, dtype, self.rows, self.cols, &self.bytes)?)
    }
}

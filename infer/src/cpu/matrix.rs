//! A matrix as its file stores it: packed blocks or floats, never decoded as a whole.
//!
//! Knows no model. Invariant: what was accepted here has the bytes that its format makes of its shape, so that
//! multiplying by it can't meet a surprise. That codes are legal and floats finite is checked where files are opened.

use qat_quant::PackedRef;
use qat_quant::kernels::{self, FloatRef};

use crate::Result;
use crate::files::{Activations, Storage, StoredMatrix};

/// `[rows, cols]` = `[out, in]`, read in place from its bytes. Clones share them.
#[derive(Debug, Clone)]
pub struct Matrix {
    name: String,
    rows: usize,
    cols: usize,
    stored: StoredMatrix,
}

/// The bytes seen through their format.
enum View<'a> {
    Packed(PackedRef<'a>),
    Float(FloatRef<'a>),
}

impl Matrix {
    /// The matrix that `stored` holds.
    ///
    /// # Errors
    /// When its bytes are not what its format makes of the shape.
    pub fn new(name: &str, [rows, cols]: [usize; 2], stored: StoredMatrix) -> Result<Self> {
        let matrix = Self { name: name.to_owned(), rows, cols, stored };
        matrix.view()?;
        Ok(matrix)
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
        self.stored.activations
    }

    /// `out[n, rows] = x[n, cols] · Wᵀ`, decoding a row at a time.
    ///
    /// # Errors
    /// Never for a matrix that was accepted; the view checks again.
    ///
    /// # Panics
    /// When `x` or `out` has another length than that.
    pub fn matmul(&self, x: &[f32], n: usize, out: &mut [f32]) -> Result<()> {
        match self.view()? {
            View::Packed(packed) => kernels::matmul(packed, x, n, out),
            View::Float(float) => kernels::matmul_float(float, x, n, out),
        }
        Ok(())
    }

    /// Writes the rows `ids`, one after the other.
    ///
    /// # Errors
    /// Never for a matrix that was accepted; the view checks again.
    ///
    /// # Panics
    /// When an id is not a row.
    pub fn gather(&self, ids: &[u32], out: &mut [f32]) -> Result<()> {
        let view = self.view()?;
        for (id, row) in ids.iter().zip(out.chunks_exact_mut(self.cols)) {
            match &view {
                View::Packed(packed) => packed.decode_row(*id as usize, row),
                View::Float(float) => float.decode_row(*id as usize, row),
            }
        }
        Ok(())
    }

    fn view(&self) -> Result<View<'_>> {
        let Self { name, rows, cols, stored } = self;
        Ok(match stored.storage {
            Storage::Packed(format) => {
                let scale = stored.tensor_scale;
                View::Packed(PackedRef::new(name, format, *rows, *cols, &stored.bytes, scale)?)
            }
            Storage::Float(float) => View::Float(FloatRef::new(name, float, *rows, *cols, &stored.bytes)?),
        })
    }
}

//! A matrix as the GPU reads it: the blocks of the file, where they lie.
//!
//! Knows no kernels. Invariant: a matrix begins at a multiple of [`ALIGNMENT`] of what it was cut from, so that its buffer
//! can be the mapped file itself; one that a file has elsewhere is copied.

use qat_quant::PackedRef;
use qat_quant::kernels::{FloatRef, metal};

use crate::files::{Activations, Bytes, Storage, StoredMatrix};
use crate::plan::{self, Weight};
use crate::{Result, RuntimeMatrix};

/// What the kernels ask of the place of a matrix, in bytes.
const ALIGNMENT: usize = 4;

/// `[rows, cols]` = `[out, in]`, as stored.
#[derive(Debug, Clone)]
pub struct Matrix {
    name: String,
    rows: usize,
    cols: usize,
    stored: StoredMatrix,
}

impl Matrix {
    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the inputs are rounded to before they are multiplied.
    pub fn activations(&self) -> Activations {
        self.stored.activations
    }

    /// How it lies in memory.
    pub fn storage(&self) -> metal::Storage {
        match self.stored.storage {
            Storage::Packed(format) => metal::Storage::Packed(format),
            Storage::Float(float) => metal::Storage::Float(float),
        }
    }

    /// The scale beside the blocks; 1 where there is none.
    pub(super) fn tensor_scale(&self) -> f32 {
        self.stored.tensor_scale.unwrap_or(1.0)
    }

    /// All rows.
    pub(super) fn stored_bytes(&self) -> &Bytes {
        &self.stored.bytes
    }
}

impl RuntimeMatrix for Matrix {
    fn new(name: &str, [rows, cols]: [usize; 2], mut stored: StoredMatrix) -> Result<Self> {
        match stored.storage {
            Storage::Packed(format) => {
                PackedRef::new(name, format, rows, cols, &stored.bytes, stored.tensor_scale)?;
            }
            Storage::Float(float) => {
                FloatRef::new(name, float, rows, cols, &stored.bytes)?;
            }
        }
        if !stored.bytes.offset().is_multiple_of(ALIGNMENT) {
            let aligned = Bytes::from(stored.bytes.to_vec());
            stored.bytes.release();
            stored.bytes = aligned;
        }
        Ok(Self { name: name.to_owned(), rows, cols, stored })
    }

    fn set_activations(&mut self, activations: Activations) {
        if matches!(self.stored.storage, Storage::Packed(_)) {
            self.stored.activations = activations;
        }
    }
}

impl plan::Matrix for Matrix {
    type View<'m> = &'m Self;

    fn view(&self) -> Result<&Self> {
        Ok(self)
    }
}

impl Weight for &Matrix {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn bytes(&self) -> usize {
        self.stored.bytes.len()
    }
}

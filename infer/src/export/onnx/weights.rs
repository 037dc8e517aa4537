//! The tensors of a model on their way into the data file.
//!
//! Knows the layout of each and no operation. Invariant: a tensor that was handed out lies in the file.

use qat_quant::kernels::FloatType;

use super::data::{DataWriter, Extent};
use super::grid::{Grid, Part};
use crate::export::Source;
use crate::files::{Activations, store_floats};
use crate::model::{Param, Weights};
use crate::{Error, Result};

/// A matrix in the data file, `[rows, cols]`.
#[derive(Debug)]
pub(super) struct Matrix {
    /// Hugging Face's name.
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub held: Held,
    /// What its inputs were rounded to in training.
    pub activations: Activations,
}

/// How a matrix is held.
#[derive(Debug)]
pub(super) enum Held {
    /// By codes.
    Codes { block: usize, scales: Extent, codes: Codes },
    /// By the graph's floats.
    Floats(Extent),
}

/// Codes of 4 bits.
#[derive(Debug)]
pub(super) enum Codes {
    /// All there is.
    Whole(Extent),
    /// The halves of 8 bits; the zero points of the low one differ from the operators' default.
    Halves { high: Extent, low: Extent, zeros: Extent },
}

/// A vector in the data file, of the graph's floats.
#[derive(Debug)]
pub(super) struct Vector {
    /// Hugging Face's name.
    pub name: String,
    pub len: usize,
    pub at: Extent,
}

/// Takes tensors from a packed model and writes them down.
pub(super) struct Writer<'a> {
    pub source: &'a Source,
    pub data: &'a mut DataWriter,
    /// The graph's floats.
    pub float: FloatType,
}

impl Writer<'_> {
    /// Appends `values` as the graph's floats.
    pub fn floats(&mut self, name: &str, values: &[f32]) -> Result<Extent> {
        let bytes = store_floats(self.float, values).map_err(|problem| Error::tensor(name, problem))?;
        self.data.add(&bytes)
    }
}

impl Weights for Writer<'_> {
    type M = Matrix;
    type V = Vector;
    type Error = Error;

    fn matrix(&mut self, param: &Param) -> Result<Matrix> {
        let tensor = self.source.tensor(param)?;
        let (name, [rows, cols]) = (param.name.clone(), [param.shape[0], param.shape[1]]);
        let held = match tensor.packed()? {
            Some(packed) => {
                // What `holds` said of this format.
                let grid = Grid::of(packed.format(), cols).ok_or_else(|| {
                    Error::tensor(&name, format!("onnx has no grid for {}", packed.format()))
                })?;
                let scales = self.floats(&name, &grid.scales(packed))?;
                let codes = match grid.halves {
                    false => Codes::Whole(self.data.add(&Part::Whole.of(packed))?),
                    true => Codes::Halves {
                        high: self.data.add(&Part::High.of(packed))?,
                        low: self.data.add(&Part::Low.of(packed))?,
                        zeros: self.data.add(&vec![0; rows * (cols / grid.block).div_ceil(2)])?,
                    },
                };
                Held::Codes { block: grid.block, scales, codes }
            }
            None => Held::Floats(self.floats(&name, &tensor.values()?)?),
        };
        Ok(Matrix { name, rows, cols, held, activations: tensor.activations })
    }

    fn vector(&mut self, param: &Param) -> Result<Vector> {
        let values = self.source.tensor(param)?.values()?;
        let at = self.floats(&param.name, &values)?;
        Ok(Vector { name: param.name.clone(), len: values.len(), at })
    }
}

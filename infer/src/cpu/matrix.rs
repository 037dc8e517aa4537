//! A matrix as the executor multiplies by it: packed blocks in the kernels' panels, or floats as their file has them.
//!
//! Knows no model. Invariant: what was accepted here has the bytes that its format makes of its shape, so that
//! multiplying by it can't meet a surprise. That codes are legal and floats finite is checked where files are opened.

use std::ops::Range;
use std::sync::Arc;

use qat_quant::PackedRef;
use qat_quant::kernels::FloatRef;

use super::inputs::Inputs;
use crate::files::{Activations, Storage, StoredMatrix};
use crate::plan::{self, Matrix as _, Weight};
use crate::{Result, RuntimeMatrix};
use qat_quant::kernels::{Isa, PANEL, Panels, float_panel, panel, panels_of_token};

/// `[rows, cols]` = `[out, in]`. Clones share the weights.
#[derive(Debug, Clone)]
pub struct Matrix {
    name: String,
    rows: usize,
    cols: usize,
    activations: Activations,
    weights: Arc<Weights>,
}

#[derive(Debug)]
enum Weights {
    Packed(Panels),
    Float(StoredMatrix),
}

/// A matrix seen through its format.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'m> {
    weights: Elements<'m>,
    activations: Activations,
}

#[derive(Debug, Clone, Copy)]
enum Elements<'m> {
    Packed(&'m Panels),
    Float(FloatRef<'m>),
}

impl Matrix {
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

    /// Bytes of the weights in memory, all of which a product reads.
    pub fn bytes(&self) -> usize {
        match &*self.weights {
            Weights::Packed(panels) => panels.bytes(),
            Weights::Float(stored) => stored.bytes.len(),
        }
    }

    /// `out[n, rows] = x[n, cols] · Wᵀ` on this thread, with the inputs rounded as the matrix wants them.
    ///
    /// # Errors
    /// When this processor lacks the instruction set that was asked for.
    ///
    /// # Panics
    /// When `x` or `out` has another length than that.
    pub fn matmul(&self, x: &[f32], n: usize, out: &mut [f32]) -> Result<()> {
        assert_eq!((x.len(), out.len()), (n * self.cols, n * self.rows), "{n} rows of {}", self.name);
        let (view, isa) = (self.view()?, Isa::active()?);
        let mut inputs = Inputs::default();
        inputs.fit(n, self.cols);
        let pool = super::Pool::new(1)?;
        inputs.prepare(&pool, x, self.cols, None, view.needs());
        for index in 0..view.panels() {
            view.panel(isa, index, &inputs, x, 0..n, &mut |token, values| {
                let row = &mut out[token * self.rows..(token + 1) * self.rows];
                let part = &mut row[index * PANEL..((index + 1) * PANEL).min(self.rows)];
                part.copy_from_slice(&values[..part.len()]);
            });
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
        self.view()?.gather(ids, out);
        Ok(())
    }
}

impl RuntimeMatrix for Matrix {
    /// A packed matrix is copied into panels, and its mapped pages are let go of; a float one stays where it is.
    fn new(name: &str, [rows, cols]: [usize; 2], stored: StoredMatrix) -> Result<Self> {
        let activations = stored.activations;
        let weights = match stored.storage {
            Storage::Packed(format) => {
                let packed = PackedRef::new(name, format, rows, cols, &stored.bytes, stored.tensor_scale)?;
                let panels = Panels::new(packed);
                stored.bytes.release();
                Weights::Packed(panels)
            }
            Storage::Float(float) => {
                FloatRef::new(name, float, rows, cols, &stored.bytes)?;
                Weights::Float(stored)
            }
        };
        Ok(Self { name: name.to_owned(), rows, cols, activations, weights: Arc::new(weights) })
    }

    fn set_activations(&mut self, activations: Activations) {
        if matches!(*self.weights, Weights::Packed(_)) {
            self.activations = activations;
        }
    }
}

impl plan::Matrix for Matrix {
    type View<'m> = View<'m>;

    fn view(&self) -> Result<View<'_>> {
        let weights = match &*self.weights {
            Weights::Packed(panels) => Elements::Packed(panels),
            Weights::Float(StoredMatrix { storage: Storage::Float(float), bytes, .. }) => {
                Elements::Float(FloatRef::new(&self.name, *float, self.rows, self.cols, bytes)?)
            }
            Weights::Float(StoredMatrix { storage: Storage::Packed(format), .. }) => {
                return Err(crate::Error::tensor(&self.name, format!("wants floats, found {format}")));
            }
        };
        Ok(View { weights, activations: self.activations })
    }
}

/// What has to be made of the inputs before a product.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// 8-bit codes, their sums and scales.
    pub int8: bool,
    /// What the 8-bit codes stand for, as floats.
    pub rounded: bool,
    /// Sums of the floats.
    pub sums: bool,
}

impl std::ops::BitOr for Needs {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            int8: self.int8 || other.int8,
            rounded: self.rounded || other.rounded,
            sums: self.sums || other.sums,
        }
    }
}

impl Weight for View<'_> {
    fn rows(&self) -> usize {
        match self.weights {
            Elements::Packed(panels) => panels.rows(),
            Elements::Float(float) => float.rows(),
        }
    }

    fn cols(&self) -> usize {
        match self.weights {
            Elements::Packed(panels) => panels.cols(),
            Elements::Float(float) => float.cols(),
        }
    }

    fn bytes(&self) -> usize {
        match self.weights {
            Elements::Packed(panels) => panels.bytes(),
            Elements::Float(float) => float.rows() * float.cols() * float.dtype().bytes(),
        }
    }
}

impl View<'_> {
    /// Groups of [`PANEL`] outputs.
    pub(super) fn panels(&self) -> usize {
        self.rows().div_ceil(PANEL)
    }

    /// What it makes of its inputs.
    pub(super) fn needs(&self) -> Needs {
        match (self.weights, self.activations) {
            (Elements::Packed(_), Activations::Int8Token) => Needs { int8: true, ..Needs::default() },
            (Elements::Packed(_), Activations::Float) => Needs { sums: true, ..Needs::default() },
            (Elements::Float(_), Activations::Int8Token) => {
                Needs { int8: true, rounded: true, ..Needs::default() }
            }
            (Elements::Float(_), Activations::Float) => Needs::default(),
        }
    }

    /// Writes the rows `ids`, one after the other.
    pub(super) fn gather(&self, ids: &[u32], out: &mut [f32]) {
        for (id, row) in ids.iter().zip(out.chunks_exact_mut(self.cols())) {
            match self.weights {
                Elements::Packed(panels) => panels.decode_row(*id as usize, row),
                Elements::Float(float) => float.decode_row(*id as usize, row),
            }
        }
    }

    /// Outputs of panel `index` for some tokens, from inputs that were prepared from `x` for what it
    /// [needs](Self::needs); `sink` gets each token's.
    pub(super) fn panel(
        &self,
        isa: Isa,
        index: usize,
        inputs: &Inputs,
        x: &[f32],
        tokens: Range<usize>,
        sink: &mut dyn FnMut(usize, &[f32; PANEL]),
    ) {
        match (self.weights, self.activations) {
            (Elements::Packed(w), Activations::Int8Token) => {
                panel(isa, w, index, inputs.int8(), tokens, sink)
            }
            (Elements::Packed(w), Activations::Float) => panel(isa, w, index, inputs.float(x), tokens, sink),
            (Elements::Float(w), Activations::Int8Token) => {
                float_panel(w, index, inputs.rounded(), tokens, sink);
            }
            (Elements::Float(w), Activations::Float) => float_panel(w, index, inputs.values(x), tokens, sink),
        }
    }

    /// Outputs of neighbouring panels, from number `first` on, for one token; from the same inputs, the same bits.
    pub(super) fn panels_of_token(
        &self,
        isa: Isa,
        first: usize,
        inputs: &Inputs,
        x: &[f32],
        outputs: &mut [[f32; PANEL]],
    ) {
        match (self.weights, self.activations) {
            (Elements::Packed(w), Activations::Int8Token) => {
                panels_of_token(isa, w, first, inputs.int8(), outputs);
            }
            (Elements::Packed(w), Activations::Float) => {
                panels_of_token(isa, w, first, inputs.float(x), outputs);
            }
            (Elements::Float(_), _) => {
                for (index, outputs) in (first..).zip(outputs) {
                    self.panel(isa, index, inputs, x, 0..1, &mut |_, sums| *outputs = *sums);
                }
            }
        }
    }
}

//! What training did to each matrix: how far the packed values lie from the weights that they stand for, which codes are no longer those
//! of rounding the start, and how weights, codes and scales are spread, before and after.
//!
//! Knows no files but those that a [`Shipment`] was read from, and draws nothing. Numbers don't depend on the number of threads.

use std::path::Path;

use candle_core::Tensor;
use qat_infer::{
    FloatModel,
    model::{Param, params},
};
use qat_quant::{Format, PackedRef, ScaleRule, Scales};
use rayon::prelude::*;
use serde::Serialize;

use super::{Shipment, Shipped};
use crate::{Error, Result, trainer::student_dir};

/// Rows that are looked at at once: a matrix is never there whole in more copies than it has to be.
const BAND: usize = 128;
/// Weights are counted from −4 to 4, in units of the root mean square of the matrix that training started from.
const WEIGHTS: (f64, f64, usize) = (-4.0, 4.0, 80);
/// Scales are counted by the binary logarithm of their size, eight bins an octave; f16 holds none below 2⁻²⁴.
const SCALES: (f64, f64, usize) = (-24.0, 8.0, 256);

/// Counts in equal bins; what lies outside counts in the outermost one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Histogram {
    /// Left edge of the first bin.
    pub from: f64,
    /// Right edge of the last one.
    pub to: f64,
    /// Values in each.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// An empty one of `bins` from `from` to `to`.
    pub fn new((from, to, bins): (f64, f64, usize)) -> Self {
        Self { from, to, counts: vec![0; bins] }
    }

    fn add(&mut self, value: f64) {
        let bins = self.counts.len();
        let place = (value - self.from) / (self.to - self.from) * bins as f64;
        // A float becomes an index by saturation: what is below the first bin, and what is no number, is in it.
        self.counts[(place as usize).min(bins - 1)] += 1;
    }

    fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
    }
}

/// One quantized matrix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Tensor name.
    pub name: String,
    /// Its layer; none outside of the layers.
    pub layer: Option<usize>,
    /// Its module, within the layer if it is in one.
    pub module: String,
    /// Its format.
    pub format: String,
    /// Its weights.
    pub weights: usize,
    /// ‖Q(w₀) − w₀‖ / ‖w₀‖: what rounding the start w₀ would have cost without training.
    pub rounding_start: Option<f64>,
    /// ‖Q(w) − w‖ / ‖w‖ for the trained weights w before they are rounded; none where codes were trained without them.
    pub rounding: Option<f64>,
    /// ‖Q(w) − w₀‖ / ‖w₀‖: how far what ships lies from the start.
    pub from_start: Option<f64>,
    /// Share of the weights whose code isn't that of rounding the start.
    pub flipped: Option<f64>,
}

/// How the matrices of one format are spread, before training and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FormatSpread {
    /// The format.
    pub format: String,
    /// The code of the first count.
    pub lowest: i32,
    /// How often each code stands for a weight of the start.
    pub codes_start: Vec<u64>,
    /// The same of what ships.
    pub codes: Vec<u64>,
    /// log₂ of the sizes of scales, of the start.
    pub scales_start: Histogram,
    /// The same of what ships.
    pub scales: Histogram,
}

/// How the weights of a module are spread over all layers, in units of the start's root mean square.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModuleSpread {
    /// The module.
    pub module: String,
    /// Weights of the start.
    pub start: Histogram,
    /// Trained weights before they are rounded.
    pub latent: Histogram,
    /// What ships.
    pub packed: Histogram,
}

/// What training did to a model.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct Changes {
    /// Steps that it took.
    pub step: u64,
    /// Every quantized matrix, in the order of the forward pass.
    pub matrices: Vec<Change>,
    /// By format.
    pub formats: Vec<FormatSpread>,
    /// By module.
    pub modules: Vec<ModuleSpread>,
}

impl Shipment {
    /// What training did to the matrices of this run, read from the folder `run`; without what the start is needed for where that was not kept.
    ///
    /// # Errors
    /// A start that can't be read or has other shapes; a weight that is not finite.
    pub fn changes(&self, run: &Path) -> Result<Changes> {
        let place = student_dir(run);
        let model = FloatModel::open(&place).ok();
        let mut changes = Changes { step: self.source["step"].as_u64().unwrap_or(0), ..Changes::default() };
        for param in params(&self.student.config) {
            let Shipped::Packed(packed) = self.student.ship(&param)? else { continue };
            let start = model.as_ref().map(|model| model.values(&param)).transpose()?;
            if let Some(start) = start.as_ref().filter(|s| s.len() != packed.rows * packed.cols) {
                let problem = format!("{}: want {:?}, found {} values", param.name, param.shape, start.len());
                return Err(Error::file(&place, problem));
            }
            let latent = self.student.kept().iter().find(|v| v.name == param.name).map(|v| v.var.as_tensor());
            let matrix = Matrix::new(packed.as_ref(), start.as_deref(), latent, self.student.rule())?;
            changes.add(&param, &matrix, matrix.look()?);
            // Else the pages of the start come on top of what training took.
            model.iter().for_each(FloatModel::release);
        }
        Ok(changes)
    }
}

impl Changes {
    fn add(&mut self, param: &Param, matrix: &Matrix, seen: Seen) {
        let (layer, module) = match param.part() {
            // What stands behind `model.layers.N.`.
            Some((layer, _)) => (Some(layer), param.module().splitn(4, '.').last().unwrap_or_default()),
            None => (None, param.module()),
        };
        let format = matrix.packed.format();
        let has_start = matrix.start.is_some();
        let ratio = |part: f64, whole: f64| if whole > 0.0 { (part / whole).sqrt() } else { 0.0 };
        self.matrices.push(Change {
            name: param.name.clone(),
            layer,
            module: module.to_owned(),
            format: format.to_string(),
            weights: matrix.weights(),
            rounding_start: has_start.then(|| ratio(seen.sums.rounding_start, seen.sums.start)),
            rounding: matrix.latent.map(|_| ratio(seen.sums.rounding, seen.sums.latent)),
            from_start: has_start.then(|| ratio(seen.sums.from_start, seen.sums.start)),
            flipped: has_start.then(|| seen.sums.flipped as f64 / matrix.weights().max(1) as f64),
        });
        match self.formats.iter_mut().find(|spread| spread.format == format.to_string()) {
            Some(spread) => spread.merge(&seen.format),
            None => self.formats.push(seen.format),
        }
        match self.modules.iter_mut().find(|spread| spread.module == module) {
            Some(spread) => spread.merge(&seen.module),
            None => self.modules.push(ModuleSpread { module: module.to_owned(), ..seen.module }),
        }
    }
}

impl FormatSpread {
    fn new(format: Format) -> Self {
        let (lowest, highest) = format.levels();
        let none = vec![0; (highest - lowest + 1) as usize];
        let scales = Histogram::new(SCALES);
        Self {
            format: format.to_string(),
            lowest,
            codes_start: none.clone(),
            codes: none,
            scales_start: scales.clone(),
            scales,
        }
    }

    fn merge(&mut self, other: &Self) {
        for (counts, more) in [(&mut self.codes_start, &other.codes_start), (&mut self.codes, &other.codes)] {
            counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        }
        self.scales_start.merge(&other.scales_start);
        self.scales.merge(&other.scales);
    }
}

impl ModuleSpread {
    fn new() -> Self {
        let empty = Histogram::new(WEIGHTS);
        Self { module: String::new(), start: empty.clone(), latent: empty.clone(), packed: empty }
    }

    fn merge(&mut self, other: &Self) {
        self.start.merge(&other.start);
        self.latent.merge(&other.latent);
        self.packed.merge(&other.packed);
    }
}

/// Sums over weights.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    start: f64,
    latent: f64,
    rounding_start: f64,
    rounding: f64,
    from_start: f64,
    flipped: u64,
}

/// What was seen of some rows.
struct Seen {
    sums: Sums,
    format: FormatSpread,
    module: ModuleSpread,
}

impl Seen {
    fn merge(mut self, other: &Self) -> Self {
        let (sums, more) = (&mut self.sums, &other.sums);
        sums.start += more.start;
        sums.latent += more.latent;
        sums.rounding_start += more.rounding_start;
        sums.rounding += more.rounding;
        sums.from_start += more.from_start;
        sums.flipped += more.flipped;
        self.format.merge(&other.format);
        self.module.merge(&other.module);
        self
    }
}

/// A packed matrix with what it was before.
struct Matrix<'a> {
    packed: PackedRef<'a>,
    start: Option<&'a [f32]>,
    latent: Option<&'a Tensor>,
    rule: ScaleRule,
    /// Of a format with one scale for the tensor: that of the start.
    tensor_start: Option<Scales>,
    /// What weights are counted in.
    unit: f64,
}

impl<'a> Matrix<'a> {
    fn new(
        packed: PackedRef<'a>,
        start: Option<&'a [f32]>,
        latent: Option<&'a Tensor>,
        rule: ScaleRule,
    ) -> Result<Self> {
        let (format, rows, cols) = (packed.format(), packed.rows(), packed.cols());
        let tensor_start = start
            .filter(|_| format.group_len().is_none())
            .map(|w| Scales::choose(format, rule, w, rows, cols));
        let squares = |w: &[f32]| w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
        // Bands in their order: the sum is the same on any number of threads.
        let square: f64 = match (start, latent) {
            (Some(start), _) => start.par_chunks(BAND * cols).map(squares).collect::<Vec<_>>().iter().sum(),
            (None, Some(latent)) => f64::from(latent.sqr()?.sum_all()?.to_scalar::<f32>()?),
            (None, None) => squares(&packed.decode()),
        };
        let unit = (square / (rows * cols).max(1) as f64).sqrt().max(f64::MIN_POSITIVE);
        Ok(Self { packed, start, latent, rule, tensor_start, unit })
    }

    fn weights(&self) -> usize {
        self.packed.rows() * self.packed.cols()
    }

    fn look(&self) -> Result<Seen> {
        let bands = self.packed.rows().div_ceil(BAND);
        let seen = (0..bands).into_par_iter().map(|band| self.band(band)).collect::<Result<Vec<_>>>()?;
        let format = FormatSpread::new(self.packed.format());
        let nothing = Seen { sums: Sums::default(), format, module: ModuleSpread::new() };
        let mut all = seen.iter().fold(nothing, Seen::merge);
        let sizes = |scales: &Scales, into: &mut Histogram| {
            scales.scale.iter().for_each(|s| into.add(f64::from(s.abs()).log2()));
        };
        sizes(&self.packed.scales(), &mut all.format.scales);
        if let Some(scales) = &self.tensor_start {
            sizes(scales, &mut all.format.scales_start);
        }
        Ok(all)
    }

    /// Rows `BAND * band` to the next band.
    fn band(&self, band: usize) -> Result<Seen> {
        let (format, cols) = (self.packed.format(), self.packed.cols());
        let first = band * BAND;
        let rows = BAND.min(self.packed.rows() - first);
        let mut seen =
            Seen { sums: Sums::default(), format: FormatSpread::new(format), module: ModuleSpread::new() };
        let (mut codes, mut values) = (vec![0i16; rows * cols], vec![0.0f32; rows * cols]);
        for row in 0..rows {
            self.packed.codes_row(first + row, &mut codes[row * cols..][..cols]);
            self.packed.decode_row(first + row, &mut values[row * cols..][..cols]);
        }
        let lowest = seen.format.lowest;
        codes.iter().for_each(|&code| seen.format.codes[(i32::from(code) - lowest) as usize] += 1);
        values.iter().for_each(|&value| seen.module.packed.add(f64::from(value) / self.unit));
        if let Some(latent) = self.latent {
            let latent: Vec<f32> = latent.narrow(0, first, rows)?.flatten_all()?.to_vec1()?;
            for (&w, &value) in latent.iter().zip(&values) {
                seen.sums.latent += f64::from(w).powi(2);
                seen.sums.rounding += (f64::from(value) - f64::from(w)).powi(2);
                seen.module.latent.add(f64::from(w) / self.unit);
            }
        }
        if let Some(start) = self.start {
            self.beside_start(&start[first * cols..][..rows * cols], &codes, &values, &mut seen);
        }
        Ok(seen)
    }

    /// The rows beside those that training started from, `start`.
    fn beside_start(&self, start: &[f32], codes: &[i16], values: &[f32], seen: &mut Seen) {
        let (format, cols) = (self.packed.format(), self.packed.cols());
        let rows = start.len() / cols;
        let scales = match &self.tensor_start {
            Some(scales) => scales.clone(),
            None => {
                let scales = Scales::choose(format, self.rule, start, rows, cols);
                scales.scale.iter().for_each(|s| seen.format.scales_start.add(f64::from(s.abs()).log2()));
                scales
            }
        };
        let (mut codes_start, mut values_start) = (vec![0.0f32; start.len()], vec![0.0f32; start.len()]);
        qat_quant::codes(format, start, rows, cols, &scales, &mut codes_start);
        qat_quant::fake_quant(format, start, rows, cols, &scales, &mut values_start);
        let lowest = seen.format.lowest;
        for (at, &w) in start.iter().enumerate() {
            let w = f64::from(w);
            seen.sums.start += w.powi(2);
            seen.sums.rounding_start += (f64::from(values_start[at]) - w).powi(2);
            seen.sums.from_start += (f64::from(values[at]) - w).powi(2);
            seen.module.start.add(w / self.unit);
            let code = codes_start[at] as i32;
            seen.sums.flipped += u64::from(code != i32::from(codes[at]));
            seen.format.codes_start[(code - lowest) as usize] += 1;
        }
    }
}

#[cfg(test)]
mod tests;

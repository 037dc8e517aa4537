//! Fake quantization on an Apple GPU: weights never leave it, unless their scales are chosen by a search.
//!
//! Knows no codec but by numbers: the kernels do the arithmetic of `qat_quant::fake_quant`, its scale rules and its gradients,
//! and tests hold them to those, to the bit. Two differences stand in the nature of the machine: numbers below 2⁻¹²⁶ are zero,
//! and a weight that is no number may spoil its whole group instead of itself.

use candle_core::{Device, Result, Tensor};
use qat_quant::{Format, ScaleRule, ScaleType, Scales};

use super::{FakeQuant, Gradient, NAME, Turns, lsq_factor};
use crate::ops::gpu::{Backward, Bind, Grid, Library, SUM, Typed, Work, attach, library, typed, word};

const QUANTIZE: Typed = typed!("fake_quant", "../gpu/common.metal", "fake_quant.metal");
const SCALES: Library = library!("scales", "../gpu/common.metal", "scales.metal");

/// Weights of a threadgroup of `tensor_partials`: CHUNK in scales.metal.
const CHUNK: usize = 4096;

/// Weights of a simdgroup of `learned` where groups are longer: SPAN in fake_quant.metal.
const SPAN: usize = 256;

/// As [`super::fake_quant`], with `w` `[rows, cols]` contiguous and the format checked.
pub(super) fn chosen(w: &Tensor, spec: &FakeQuant) -> Result<Tensor> {
    let stored = Stored::choose(w, spec)?;
    let value = stored.quantize(w, spec)?;
    attach(value, &[w], GpuQuantizer { spec: *spec, stored, turns: None })
}

/// As [`super::fake_quant_learned`], with operands contiguous and their shapes checked.
pub(super) fn learned(
    w: &Tensor,
    scale: &Tensor,
    bias: Option<&Tensor>,
    turns: Option<&Turns>,
    spec: &FakeQuant,
) -> Result<Tensor> {
    let stored = Stored::learned(spec.format, scale, bias)?;
    let value = stored.quantize(w, spec)?;
    let operands: Vec<&Tensor> = [w, scale].into_iter().chain(bias).collect();
    attach(value, &operands, GpuQuantizer { spec: *spec, stored, turns: turns.cloned() })
}

/// As [`Turns::follow`].
pub(super) fn follow(
    format: Format,
    w: &Tensor,
    scale: &Tensor,
    bias: Option<&Tensor>,
    turns: &Turns,
) -> Result<()> {
    let stored = Stored::learned(format, scale, bias)?;
    let (w, state) = (w.detach(), turns.state.detach());
    let (operands, [_, scale, bias], last) = stored.operands(&w, Some(&state));
    let Bind::Input(last) = last else { candle_core::bail!("{NAME}: no place for what is remembered") };
    let kernel = if stored.bias.is_some() { "follow_bias" } else { "follow" };
    let (lo, hi) = format.levels();
    let group = format.group_len().unwrap_or(w.elem_count());
    let [lo, hi] = [lo as f32, hi as f32].map(f32::to_bits);
    let shape = [word(w.elem_count())?, word(group)?, lo, hi, 0, 0, 0, 0, 0, 0, turns.after];
    let binds = [Bind::InOut(0), scale, bias, Bind::InOut(last)];
    let mut work = Work::default();
    work.add(QUANTIZE.f32, kernel, Grid::Each(w.elem_count()), binds, &shape)?;
    let [] = work.run(NAME, &operands)?;
    Ok(())
}

/// Learned scales or biases as they will be stored.
fn rounded(format: Format, values: &Tensor) -> Result<Tensor> {
    let n = values.elem_count();
    let mut work = Work::default();
    let out = work.output(n);
    let binds = [Bind::Input(0), Bind::Output(out)];
    work.add(SCALES, "round_scales", Grid::Each(n), binds, &scale_shape(format, 0, n)?)?;
    let [out] = work.run(NAME, &[&values.detach()])?;
    Ok(out)
}

/// Scales and biases as they are stored, one for each group.
struct Stored {
    scale: Tensor,
    bias: Option<Tensor>,
}

impl Stored {
    fn learned(format: Format, scale: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let bias = bias.map(|bias| rounded(format, bias)).transpose()?;
        Ok(Self { scale: rounded(format, scale)?, bias })
    }

    fn choose(w: &Tensor, spec: &FakeQuant) -> Result<Self> {
        let (rows, cols) = w.dims2()?;
        let (format, w) = (spec.format, w.detach());
        if spec.rule != ScaleRule::Absmax {
            // A search, on the CPU: only weights go there, and only scales come back.
            let values = w.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>()?;
            let Scales { scale, bias } = Scales::choose(format, spec.rule, &values, rows, cols);
            let bias = if bias.is_empty() { None } else { Some(Tensor::new(bias, w.device())?) };
            return Ok(Self { scale: Tensor::new(scale, w.device())?, bias });
        }
        match format.group_len() {
            Some(group) => Self::choose_by_group(format, group, &w),
            None => Self::choose_for_tensor(format, &w),
        }
    }

    fn choose_by_group(format: Format, group: usize, w: &Tensor) -> Result<Self> {
        let groups = w.elem_count() / group;
        let mut work = Work::default();
        let scale = work.output(groups);
        let (kernel, bias) = match format.has_bias() {
            true => ("choose_scales_bias", Bind::Output(work.output(groups))),
            false => ("choose_scales", Bind::Nothing),
        };
        let binds = [Bind::Input(0), Bind::Output(scale), bias];
        work.add(SCALES, kernel, Grid::Simdgroups(groups), binds, &scale_shape(format, group, groups)?)?;
        let mut made = work.run_all(NAME, &[w])?.into_iter();
        match (made.next(), made.next()) {
            (Some(scale), bias) => Ok(Self { scale, bias }),
            (None, _) => candle_core::bail!("{NAME}: scales were not made"),
        }
    }

    fn choose_for_tensor(format: Format, w: &Tensor) -> Result<Self> {
        let weights = w.elem_count();
        let chunks = weights.div_ceil(CHUNK);
        let mut shape = scale_shape(format, weights, 1)?;
        let partial_fields = 3;
        [shape[5], shape[6]] = [word(chunks)?, usize::BITS - chunks.leading_zeros()];
        let mut work = Work::default();
        let (partials, scale) = (work.output((chunks, partial_fields)), work.output(1));
        let grid = Grid::Rows { rows: chunks, width: CHUNK };
        work.add(SCALES, "tensor_partials", grid, [Bind::Input(0), Bind::Output(partials)], &shape)?;
        let grid = Grid::Rows { rows: 1, width: chunks };
        work.add(SCALES, "tensor_scale", grid, [Bind::Made(partials), Bind::Output(scale)], &shape)?;
        let [_, scale] = work.run(NAME, &[w])?;
        Ok(Self { scale, bias: None })
    }

    /// The operands of a kernel and their places, with the weights first and then scales, biases and `grad`.
    fn operands<'a>(&'a self, w: &'a Tensor, grad: Option<&'a Tensor>) -> (Vec<&'a Tensor>, [Bind; 3], Bind) {
        let operands: Vec<&Tensor> = [w, &self.scale].into_iter().chain(&self.bias).chain(grad).collect();
        let bias = if self.bias.is_some() { Bind::Input(2) } else { Bind::Nothing };
        let last = Bind::Input(operands.len() - 1);
        (operands, [Bind::Input(0), Bind::Input(1), bias], last)
    }

    fn quantize(&self, w: &Tensor, spec: &FakeQuant) -> Result<Tensor> {
        let w = w.detach();
        let (operands, [weights, scale, bias], _) = self.operands(&w, None);
        let kernel = match (spec.gradient == Gradient::Codes, self.bias.is_some()) {
            (true, true) => "values_bias",
            (true, false) => "values",
            (false, true) => "quantize_bias",
            (false, false) => "quantize",
        };
        let mut work = Work::default();
        let value = work.output_in(spec.dtype, w.shape());
        let binds = [weights, scale, bias, Bind::Output(value)];
        let library = QUANTIZE.of(spec.dtype)?;
        work.add(library, kernel, Grid::Each(w.elem_count()), binds, &quantize_shape(&w, spec)?)?;
        let [value] = work.run(NAME, &operands)?;
        Ok(value)
    }
}

/// `Shape` of scales.metal.
fn scale_shape(format: Format, group: usize, groups: usize) -> Result<[u32; 7]> {
    let rule = match format {
        Format::Int4G32 => 0,
        Format::Int8G32 => 1,
        Format::TernaryG64 | Format::TernaryG256 | Format::TernaryTensor => 2,
        // Its own kernel.
        Format::Affine(_) => 3,
    };
    let bf16 = format.scale_type() == ScaleType::BF16;
    let steps = (format.levels().1 as f32).to_bits();
    Ok([word(group)?, word(groups)?, u32::from(bf16), rule, steps, 0, 0])
}

/// `Shape` of fake_quant.metal.
fn quantize_shape(w: &Tensor, spec: &FakeQuant) -> Result<[u32; 11]> {
    let (rows, cols) = w.dims2()?;
    let (lo, hi) = spec.format.levels();
    let margin = if spec.format.is_ternary() { 0.5f32 } else { 0.0 };
    let group = spec.format.group_len().unwrap_or(w.elem_count());
    let floats = [lo as f32, hi as f32, spec.lambda, margin, lsq_factor(spec.format, rows, cols)];
    let [lo, hi, lambda, margin, gamma] = floats.map(f32::to_bits);
    let ([key0, key1], threshold) = spec.noise.map_or(([0; 2], 0), |noise| (noise.key, noise.threshold));
    Ok([word(w.elem_count())?, word(group)?, lo, hi, lambda, margin, gamma, key0, key1, threshold, 0])
}

struct GpuQuantizer {
    spec: FakeQuant,
    stored: Stored,
    /// Which weights are held, where some may be.
    turns: Option<Turns>,
}

impl Backward for GpuQuantizer {
    const NAME: &'static str = NAME;

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        match self.spec.gradient {
            Gradient::Ste => Ok(vec![Some(grad.to_dtype(inputs[0].dtype())?)]),
            Gradient::ClippedSte => Ok(vec![Some(self.clipped(inputs[0], grad)?)]),
            Gradient::Lsq | Gradient::Codes => self.learned(inputs[0], grad),
        }
    }
}

impl GpuQuantizer {
    fn clipped(&self, w: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let library = QUANTIZE.of(grad.dtype())?;
        let (operands, [weights, scale, bias], grad) = self.stored.operands(w, Some(grad));
        let kernel = if self.stored.bias.is_some() { "clipped_bias" } else { "clipped" };
        let mut work = Work::default();
        let dw = work.output(w.shape());
        let binds = [weights, scale, bias, grad, Bind::Output(dw)];
        work.add(library, kernel, Grid::Each(w.elem_count()), binds, &quantize_shape(w, &self.spec)?)?;
        let [dw] = work.run(NAME, &operands)?;
        Ok(dw)
    }

    /// dw if weights are trained, ds·γ and, for formats with biases, db·γ.
    fn learned(&self, w: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let library = QUANTIZE.of(grad.dtype())?;
        let (mut operands, [weights, scale, bias], grad) = self.stored.operands(w, Some(grad));
        let turns = if self.turns.is_some() { Bind::Input(operands.len()) } else { Bind::Nothing };
        operands.extend(self.turns.as_ref().map(|turns| &turns.state));
        let spans = w.elem_count().div_ceil(self.spec.format.group_len().unwrap_or(SPAN));
        let frozen = self.spec.gradient == Gradient::Codes;
        let with_bias = self.stored.bias.is_some();
        let kernel = match (frozen, with_bias) {
            (true, true) => "of_codes_bias",
            (true, false) => "of_codes",
            (false, true) => "learned_bias",
            (false, false) => "learned",
        };
        let mut work = Work::default();
        let dw = if frozen { Bind::Nothing } else { Bind::Output(work.output(w.shape())) };
        let ds = work.output(spans);
        let db = if with_bias { Bind::Output(work.output(spans)) } else { Bind::Nothing };
        let binds = [weights, scale, bias, grad, dw, Bind::Output(ds), db, turns];
        let mut shape = quantize_shape(w, &self.spec)?;
        shape[10] = self.turns.as_ref().map_or(0, |turns| turns.after);
        work.add(library, kernel, Grid::Simdgroups(spans), binds, &shape)?;
        let of_tensor = self.spec.format.group_len().is_none();
        if of_tensor {
            // One scale for the tensor: what its spans add is added up.
            let shape = [word(spans)?, 1, 1f32.to_bits()];
            let binds = [Bind::Made(ds), Bind::Output(work.output(1))];
            work.add(SUM.f32, "sum_all", Grid::Rows { rows: 1, width: spans }, binds, &shape)?;
        }
        let mut made = work.run_all(NAME, &operands)?;
        if of_tensor {
            made.remove(made.len() - 2);
        }
        let dw = frozen.then_some(None);
        Ok(dw.into_iter().chain(made.into_iter().map(Some)).collect())
    }
}

#[cfg(test)]
mod tests;

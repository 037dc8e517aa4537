//! Fake quantization of weights: the value that ships, with a gradient.
//!
//! Knows no codec: values, scales and gradients are `qat_quant`'s. The forward value is `qat_quant::fake_quant`, hence
//! `decode(encode(w))`, to the bit; the only second expression for it are the kernels of `on_gpu`, which are held to it.
//! Backward is straight through (arXiv 1308.3432), clipped, LSQ (arXiv 1902.08153), or that of frozen codes, as
//! `qat_quant::gradient` defines them.

mod noise;
mod on_gpu;
mod turns;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Tensor,
};
use qat_quant::{Format, ScaleRule, Scales, gradient};

use super::gpu::{Path, path};
use super::{Floats, blend, floats, floats_out, tape};
pub use noise::Noise;
pub use turns::{MOST_TURNS, Turns};

const NAME: &str = "fake_quant";

/// How the gradient passes the quantizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradient {
    /// dw = g.
    Ste,
    /// dw = g where w lies inside the grid, else 0.
    ClippedSte,
    /// As [`Gradient::ClippedSte`], and the scales (and biases) are trained too.
    Lsq,
    /// In the place of weights stand codes, which stay as they are: nothing is rounded, and the scales (and biases) alone are trained.
    Codes,
}

impl Gradient {
    /// Whether scales are variables, and not chosen from the weights.
    pub fn learns_scales(self) -> bool {
        matches!(self, Self::Lsq | Self::Codes)
    }
}

/// What happens to one weight matrix on its way into the forward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FakeQuant {
    /// The grid that ships.
    pub format: Format,
    /// How gradients come back.
    pub gradient: Gradient,
    /// How scales are chosen from the weights in each forward pass; where they are learned it isn't used.
    pub rule: ScaleRule,
    /// Warm-up from float (0) to quantized (1): the value is w + λ·(ŵ − w), and exactly ŵ at 1. The gradient is that
    /// of the chosen estimator at any λ. [`Gradient::Codes`] doesn't use it.
    pub lambda: f32,
    /// Which weights are rounded, where not all of them are; the others pass, and so does their gradient.
    pub noise: Option<Noise>,
    /// Type of the value: f32, or on a GPU bf16, to which what was rounded in f32 is rounded once more. The gradient that comes back may be
    /// either; those of weights and grids are f32.
    pub dtype: DType,
}

/// Fake-quantizes `w` `[rows, cols]` with scales chosen from `w` by `spec.rule`.
///
/// # Errors
/// `cols` that the format can't hold, a gradient that learns scales (see [`fake_quant_learned`]), dtypes other than f32.
pub fn fake_quant(w: &Tensor, spec: &FakeQuant) -> Result<Tensor> {
    if spec.gradient.learns_scales() {
        candle_core::bail!("{NAME}: learned scales are operands: call fake_quant_learned");
    }
    let (rows, cols) = held_by(spec.format, w)?;
    let w = w.contiguous()?;
    match path(w.device()) {
        Path::Cpu => on_cpu_in(spec.dtype)?,
        Path::Kernels => return on_gpu::chosen(&w, spec),
    }
    let scales = Scales::choose(spec.format, spec.rule, &Floats::of(NAME, &w)?, rows, cols);
    tape::apply1(&w, Quantizer { spec: *spec, scales, turns: None })
}

/// Fake-quantizes `w` `[rows, cols]` with learned `scale` `[groups]` and, for formats that have one, `bias`
/// `[groups]`, in row-major group order. With [`Gradient::Codes`], `w` are the codes, which receive no gradient.
///
/// Scales and biases are rounded to their storage type in the forward pass, which their gradients ignore (straight
/// through). Those gradients carry LSQ's γ = 1/√(group·Qp), with Qp the highest code.
///
/// # Errors
/// `cols` that the format can't hold, scales or biases of another length, a bias too many or too few, a gradient that
/// learns no scales, dtypes other than f32.
pub fn fake_quant_learned(
    w: &Tensor,
    scale: &Tensor,
    bias: Option<&Tensor>,
    spec: &FakeQuant,
) -> Result<Tensor> {
    fake_quant_held(w, scale, bias, None, spec)
}

/// As [`fake_quant_learned`], where some weights are held at their codes: those get no gradient, and teach scale and bias as codes do.
///
/// # Errors
/// As [`fake_quant_learned`].
pub fn fake_quant_held(
    w: &Tensor,
    scale: &Tensor,
    bias: Option<&Tensor>,
    turns: Option<&Turns>,
    spec: &FakeQuant,
) -> Result<Tensor> {
    if !spec.gradient.learns_scales() {
        candle_core::bail!(
            "{NAME}: {:?} chooses its scales from the weights: call fake_quant",
            spec.gradient
        );
    }
    let (rows, cols) = held_by(spec.format, w)?;
    let groups = spec.format.groups(rows, cols);
    let biases = bias.map(|b| b.dims());
    let want = spec.format.has_bias().then_some([groups]);
    if scale.dims() != [groups] || biases != want.as_ref().map(|w| w.as_slice()) {
        candle_core::bail!(
            "{NAME}: {} of [{rows}, {cols}]: want scale [{groups}] and bias {want:?}, found {:?} and {biases:?}",
            spec.format,
            scale.dims()
        );
    }
    let (w, scale) = (w.contiguous()?, scale.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    if path(w.device()) == Path::Kernels {
        return on_gpu::learned(&w, &scale, bias.as_ref(), turns, spec);
    }
    on_cpu_in(spec.dtype)?;
    let turns = turns.cloned();
    match bias {
        None => {
            let scales = Scales::rounded(spec.format, &Floats::of(NAME, &scale)?, &[]);
            tape::apply2(&w, &scale, Quantizer { spec: *spec, scales, turns })
        }
        Some(bias) => {
            let scales = Scales::rounded(spec.format, &Floats::of(NAME, &scale)?, &Floats::of(NAME, &bias)?);
            tape::apply3(&w, &scale, &bias, Quantizer { spec: *spec, scales, turns })
        }
    }
}

fn on_cpu_in(dtype: DType) -> Result<()> {
    if dtype != DType::F32 {
        candle_core::bail!("{NAME}: want f32 on the CPU, found {dtype:?}");
    }
    Ok(())
}

/// The shape of `w`, if `format` can hold it.
fn held_by(format: Format, w: &Tensor) -> Result<(usize, usize)> {
    let (rows, cols) = w.dims2()?;
    format.check_row_len("weight", cols).map_err(candle_core::Error::wrap)?;
    Ok((rows, cols))
}

/// With one operand scales come from the weights, with two and three they (and the biases) are operands: then
/// `scales` are those operands, rounded as they will be stored.
struct Quantizer {
    spec: FakeQuant,
    scales: Scales,
    /// Which weights are held, where some may be.
    turns: Option<Turns>,
}

impl Quantizer {
    fn forward(&self, w: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, cols) = layout.shape().dims2()?;
        let w = floats(NAME, w, layout)?;
        let mut out = vec![0f32; w.len()];
        if self.spec.gradient == Gradient::Codes {
            qat_quant::values(self.spec.format, w, rows, cols, &self.scales, &mut out);
        } else {
            qat_quant::fake_quant(self.spec.format, w, rows, cols, &self.scales, &mut out);
            blend(w, &mut out, self.spec.lambda);
            self.spare(w, &mut out);
        }
        floats_out(out, (rows, cols))
    }

    /// Puts `x` in the place of what was made of weights that are not rounded.
    fn spare(&self, x: &[f32], out: &mut [f32]) {
        if let Some(noise) = self.spec.noise {
            noise.spare(x, out);
        }
    }

    /// dw if weights are trained, ds·γ and, for formats with biases, db·γ.
    fn backward_learned(&self, w: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (rows, cols) = w.dims2()?;
        let format = self.spec.format;
        let grad = grad.contiguous()?;
        let (w, grad) = (Floats::of(NAME, w)?, Floats::of(NAME, &grad)?);
        let (dw, sums) = if self.spec.gradient == Gradient::Codes {
            (None, gradient::of_codes(format, &w, rows, cols, &grad))
        } else {
            let mut dw = vec![0f32; rows * cols];
            let masked = self.spec.noise.map(|noise| noise.masked(&grad));
            let mut free = masked.or_else(|| self.turns.is_some().then(|| grad.to_vec()));
            let held = match (&self.turns, &mut free) {
                (Some(turns), Some(free)) => turns.parted(format, free, &grad)?,
                _ => None,
            };
            let of_rounded = free.as_deref().unwrap_or(&grad);
            let mut sums = gradient::learned(format, &w, rows, cols, &self.scales, of_rounded, &mut dw);
            self.spare(&grad, &mut dw);
            if let (Some(held), Some(turns)) = (held, &self.turns) {
                let more = gradient::of_codes(format, &held.codes, rows, cols, &held.slopes);
                let pairs = [(&mut sums.scale, more.scale), (&mut sums.bias, more.bias)];
                pairs.into_iter().for_each(|(sum, more)| sum.iter_mut().zip(more).for_each(|(a, b)| *a += b));
                turns.still(&mut dw)?;
            }
            (Some(Tensor::from_vec(dw, (rows, cols), &Device::Cpu)?), sums)
        };
        let gamma = lsq_factor(format, rows, cols);
        let vector = |sums: Vec<f32>| -> Result<Option<Tensor>> {
            let scaled: Vec<f32> = sums.iter().map(|v| v * gamma).collect();
            Tensor::from_vec(scaled, sums.len(), &Device::Cpu).map(Some)
        };
        let db = if format.has_bias() { vector(sums.bias)? } else { None };
        Ok([dw, vector(sums.scale)?, db])
    }
}

/// γ = 1/√(group·Qp): brings the gradient of a scale to the size of the gradient of a weight (LSQ, section 2.2).
fn lsq_factor(format: Format, rows: usize, cols: usize) -> f32 {
    let group = format.group_len().unwrap_or(rows * cols);
    let (_, highest) = format.levels();
    ((group as f64 * f64::from(highest)).powf(-0.5)) as f32
}

impl CustomOp1 for Quantizer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(w, lw)
    }

    fn bwd(&self, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if self.spec.gradient == Gradient::Ste {
            return Ok(Some(grad.clone()));
        }
        let (rows, cols) = w.dims2()?;
        let grad = grad.contiguous()?;
        let mut dw = vec![0f32; rows * cols];
        let (w, grad) = (Floats::of(NAME, w)?, Floats::of(NAME, &grad)?);
        gradient::clipped(self.spec.format, &w, rows, cols, &self.scales, &grad, &mut dw);
        self.spare(&grad, &mut dw);
        Tensor::from_vec(dw, (rows, cols), &Device::Cpu).map(Some)
    }
}

impl CustomOp2 for Quantizer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        w: &CpuStorage,
        lw: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(w, lw)
    }

    fn bwd(
        &self,
        w: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dw, ds, _] = self.backward_learned(w, grad)?;
        Ok((dw, ds))
    }
}

impl CustomOp3 for Quantizer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        w: &CpuStorage,
        lw: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(w, lw)
    }

    fn bwd(
        &self,
        w: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dw, ds, db] = self.backward_learned(w, grad)?;
        Ok((dw, ds, db))
    }
}

#[cfg(test)]
mod tests;

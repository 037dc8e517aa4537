//! Fake quantization of weights: the value that ships, with a gradient.
//!
//! Knows no codec: values, scales and gradients are `qat_quant`'s. The forward value is `qat_quant::fake_quant`, hence
//! `decode(encode(w))`, to the bit; there is no second expression for it, on any device. Backward is straight through
//! (arXiv 1308.3432), clipped, or LSQ (arXiv 1902.08153) as `qat_quant::gradient` defines them.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor};
use qat_quant::{Format, ScaleRule, Scales, gradient};

use super::{Floats, blend, floats, floats_out};

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
}

/// What happens to one weight matrix on its way into the forward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FakeQuant {
    /// The grid that ships.
    pub format: Format,
    /// How gradients come back.
    pub gradient: Gradient,
    /// How scales are chosen from the weights in each forward pass; [`Gradient::Lsq`] doesn't use it.
    pub rule: ScaleRule,
    /// Warm-up from float (0) to quantized (1): the value is w + λ·(ŵ − w), and exactly ŵ at 1. The gradient is that
    /// of the chosen estimator at any λ.
    pub lambda: f32,
}

/// Fake-quantizes `w` `[rows, cols]` with scales chosen from `w` by `spec.rule`.
///
/// # Errors
/// `cols` that the format can't hold, [`Gradient::Lsq`] (see [`fake_quant_learned`]), dtypes other than f32.
pub fn fake_quant(w: &Tensor, spec: &FakeQuant) -> Result<Tensor> {
    if spec.gradient == Gradient::Lsq {
        candle_core::bail!("{NAME}: learned scales are operands: call fake_quant_learned");
    }
    if !w.device().is_cpu() {
        return fake_quant(&w.to_device(&Device::Cpu)?, spec)?.to_device(w.device());
    }
    let (rows, cols) = held_by(spec.format, w)?;
    let w = w.contiguous()?;
    let scales = Scales::choose(spec.format, spec.rule, &Floats::of(NAME, &w)?, rows, cols);
    w.apply_op1(Quantizer { spec: *spec, scales })
}

/// Fake-quantizes `w` `[rows, cols]` with learned `scale` `[groups]` and, for formats that have one, `bias`
/// `[groups]`, in row-major group order.
///
/// Scales and biases are rounded to their storage type in the forward pass, which their gradients ignore (straight
/// through). Those gradients carry LSQ's γ = 1/√(group·Qp), with Qp the highest code.
///
/// # Errors
/// `cols` that the format can't hold, scales or biases of another length, a bias too many or too few, a gradient
/// other than [`Gradient::Lsq`], dtypes other than f32.
pub fn fake_quant_learned(
    w: &Tensor,
    scale: &Tensor,
    bias: Option<&Tensor>,
    spec: &FakeQuant,
) -> Result<Tensor> {
    if spec.gradient != Gradient::Lsq {
        candle_core::bail!(
            "{NAME}: {:?} chooses its scales from the weights: call fake_quant",
            spec.gradient
        );
    }
    if !w.device().is_cpu() {
        let (cpu, home) = (Device::Cpu, w.device());
        let bias = bias.map(|b| b.to_device(&cpu)).transpose()?;
        let quantized =
            fake_quant_learned(&w.to_device(&cpu)?, &scale.to_device(&cpu)?, bias.as_ref(), spec)?;
        return quantized.to_device(home);
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
    match bias {
        None => {
            let scales = Scales::rounded(spec.format, &Floats::of(NAME, &scale)?, &[]);
            w.apply_op2(&scale, Quantizer { spec: *spec, scales })
        }
        Some(bias) => {
            let bias = bias.contiguous()?;
            let scales = Scales::rounded(spec.format, &Floats::of(NAME, &scale)?, &Floats::of(NAME, &bias)?);
            w.apply_op3(&scale, &bias, Quantizer { spec: *spec, scales })
        }
    }
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
}

impl Quantizer {
    fn forward(&self, w: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, cols) = layout.shape().dims2()?;
        let w = floats(NAME, w, layout)?;
        let mut out = vec![0f32; w.len()];
        qat_quant::fake_quant(self.spec.format, w, rows, cols, &self.scales, &mut out);
        blend(w, &mut out, self.spec.lambda);
        floats_out(out, (rows, cols))
    }

    /// dw, ds·γ and, for formats with biases, db·γ.
    fn backward_learned(&self, w: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let (rows, cols) = w.dims2()?;
        let format = self.spec.format;
        let grad = grad.contiguous()?;
        let mut dw = vec![0f32; rows * cols];
        let (w, grad) = (Floats::of(NAME, w)?, Floats::of(NAME, &grad)?);
        let sums = gradient::learned(format, &w, rows, cols, &self.scales, &grad, &mut dw);
        let gamma = lsq_factor(format, rows, cols);
        let vector = |sums: Vec<f32>| -> Result<Tensor> {
            let scaled: Vec<f32> = sums.iter().map(|v| v * gamma).collect();
            Tensor::from_vec(scaled, sums.len(), &Device::Cpu)
        };
        let db = if format.has_bias() { Some(vector(sums.bias)?) } else { None };
        Ok((Tensor::from_vec(dw, (rows, cols), &Device::Cpu)?, vector(sums.scale)?, db))
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
        let (dw, ds, _) = self.backward_learned(w, grad)?;
        Ok((Some(dw), Some(ds)))
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
        let (dw, ds, db) = self.backward_learned(w, grad)?;
        Ok((Some(dw), Some(ds), db))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_close, bits, flat, uniform};
    use candle_core::Var;

    const ROWS: usize = 3;
    const COLS: usize = 256;
    const RULES: [ScaleRule; 2] = [ScaleRule::Absmax, ScaleRule::Mse];

    fn spec(format: Format, gradient: Gradient, lambda: f32) -> FakeQuant {
        FakeQuant { format, gradient, rule: ScaleRule::Absmax, lambda }
    }

    /// A matrix, and scales and biases for it that leave some weights outside the grid and are not yet rounded.
    fn learned(format: Format) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let w = uniform(20, 1.0, &[ROWS, COLS])?;
        let chosen = Scales::choose(format, ScaleRule::Absmax, &Floats::of("test", &w)?, ROWS, COLS);
        let scale: Vec<f32> = chosen.scale.iter().map(|s| s * 0.777).collect();
        let bias: Vec<f32> = chosen.bias.iter().map(|b| b * 0.777).collect();
        let groups = scale.len();
        let bias = if bias.is_empty() { None } else { Some(Tensor::from_vec(bias, groups, &Device::Cpu)?) };
        Ok((w, Tensor::from_vec(scale, groups, &Device::Cpu)?, bias))
    }

    /// `qat_quant::fake_quant` of `w` on the stored grid of these scales, in the accuracy of the codec itself.
    fn stored_value(format: Format, w: &Tensor, scales: &Scales) -> Result<Vec<f32>> {
        let mut want = vec![0f32; ROWS * COLS];
        qat_quant::fake_quant(format, &Floats::of("test", w)?, ROWS, COLS, scales, &mut want);
        Ok(want)
    }

    #[test]
    fn the_value_is_the_codecs_to_the_bit_in_every_format() -> Result<()> {
        let w = uniform(20, 1.0, &[ROWS, COLS])?;
        for format in Format::all() {
            for (gradient, rule) in [(Gradient::Ste, RULES[0]), (Gradient::ClippedSte, RULES[1])] {
                let scales = Scales::choose(format, rule, &Floats::of("test", &w)?, ROWS, COLS);
                let want: Vec<u32> =
                    stored_value(format, &w, &scales)?.into_iter().map(f32::to_bits).collect();
                let found = fake_quant(&w, &FakeQuant { rule, ..spec(format, gradient, 1.0) })?;
                assert_eq!(bits(&found)?, want, "{format} {rule}");
                let strided = fake_quant(
                    &w.t()?.contiguous()?.t()?,
                    &FakeQuant { rule, ..spec(format, gradient, 1.0) },
                )?;
                assert_eq!(bits(&strided)?, want, "{format} {rule}, transposed in memory");
            }
        }
        Ok(())
    }

    #[test]
    fn the_learned_value_lies_on_the_stored_grid_in_every_format() -> Result<()> {
        for format in Format::all() {
            let (w, scale, bias) = learned(format)?;
            let biases = bias.as_ref().map(|b| b.to_vec1::<f32>()).transpose()?.unwrap_or_default();
            let stored = Scales::rounded(format, &scale.to_vec1::<f32>()?, &biases);
            assert_ne!(stored.scale, scale.to_vec1::<f32>()?, "the test needs scales that rounding changes");
            let want: Vec<u32> = stored_value(format, &w, &stored)?.into_iter().map(f32::to_bits).collect();
            let found = fake_quant_learned(&w, &scale, bias.as_ref(), &spec(format, Gradient::Lsq, 1.0))?;
            assert_eq!(bits(&found)?, want, "{format}");
        }
        Ok(())
    }

    #[test]
    fn warm_up_goes_from_the_weight_to_the_quantized_value_in_a_straight_line() -> Result<()> {
        let w = uniform(20, 1.0, &[ROWS, COLS])?;
        let at = |lambda| fake_quant(&w, &spec(Format::TernaryG64, Gradient::Ste, lambda));
        assert_eq!(bits(&at(0.0)?)?, bits(&w)?);
        let middle = ((&w + at(1.0)?)? / 2.0)?;
        // Three roundings of 6e-8.
        assert_close("half way", &at(0.5)?, &flat(&middle)?, 2e-7)
    }

    #[test]
    fn straight_through_returns_the_gradient_to_the_bit_at_any_lambda() -> Result<()> {
        let w = Var::from_tensor(&uniform(20, 1.0, &[ROWS, COLS])?)?;
        let g = uniform(21, 1.0, &[ROWS, COLS])?;
        for format in Format::all() {
            for lambda in [0.25, 1.0] {
                let grads =
                    fake_quant(&w, &spec(format, Gradient::Ste, lambda))?.mul(&g)?.sum_all()?.backward()?;
                let Some(dw) = grads.get(&w) else { panic!("no gradient") };
                assert_eq!(bits(dw)?, bits(&g)?, "{format}");
            }
        }
        Ok(())
    }

    #[test]
    fn clipping_blocks_exactly_the_gradients_of_weights_outside_the_grid() -> Result<()> {
        let w = Var::from_tensor(&uniform(20, 1.0, &[ROWS, COLS])?)?;
        let g = uniform(21, 1.0, &[ROWS, COLS])?;
        let values = w.flatten_all()?.to_vec1::<f32>()?;
        for format in Format::all() {
            let scales = Scales::choose(format, ScaleRule::Absmax, &values, ROWS, COLS);
            let (lo, hi) = format.levels();
            let margin = if format.is_ternary() { 0.5 } else { 0.0 };
            let group = format.group_len().unwrap_or(ROWS * COLS);
            let want: Vec<u32> = values
                .iter()
                .zip(g.flatten_all()?.to_vec1::<f32>()?)
                .enumerate()
                .map(|(i, (w, g))| {
                    let bias = scales.bias.get(i / group).copied().unwrap_or(0.0);
                    let u = (w - bias) / scales.scale[i / group];
                    let inside = u >= lo as f32 - margin && u <= hi as f32 + margin;
                    if inside { g.to_bits() } else { 0f32.to_bits() }
                })
                .collect();
            let grads =
                fake_quant(&w, &spec(format, Gradient::ClippedSte, 1.0))?.mul(&g)?.sum_all()?.backward()?;
            let Some(dw) = grads.get(&w) else { panic!("no gradient") };
            assert_eq!(bits(dw)?, want, "{format}");
            if format.is_ternary() {
                assert!(want.contains(&0), "{format}: the test needs weights outside the grid");
            }
        }
        Ok(())
    }

    #[test]
    fn learned_gradients_are_those_of_the_definition_in_every_format() -> Result<()> {
        let g = uniform(21, 1.0, &[ROWS, COLS])?;
        for format in Format::all() {
            let (w, scale, bias) = learned(format)?;
            let (w, scale) = (Var::from_tensor(&w)?, Var::from_tensor(&scale)?);
            let bias = bias.map(|b| Var::from_tensor(&b)).transpose()?;
            let quantized = fake_quant_learned(
                &w,
                &scale,
                bias.as_ref().map(|b| b.as_tensor()),
                &spec(format, Gradient::Lsq, 1.0),
            )?;
            let grads = quantized.mul(&g)?.sum_all()?.backward()?;
            let want = defined_gradients(format, &w, &scale, bias.as_ref(), &g)?;
            // Sums of up to 768 terms in lanes: 50 sequential roundings of 6e-8 bound 3e-6, of (w−b)/s another 1e-6.
            for (what, var, want) in
                [("dw", Some(&w), &want.0), ("ds", Some(&scale), &want.1), ("db", bias.as_ref(), &want.2)]
            {
                let Some(var) = var else { continue };
                let Some(found) = grads.get(var) else { panic!("{format}: no {what}") };
                assert_close(&format!("{format} {what}"), found, want, 4e-6)?;
            }
        }
        Ok(())
    }

    /// dw, ds and db as finite differences of a piecewise linear function in f64: the quantizer with its codes frozen
    /// outside the grid and its rounding error frozen inside, which is what "straight through" means.
    fn defined_gradients(
        format: Format,
        w: &Tensor,
        scale: &Tensor,
        bias: Option<&Var>,
        g: &Tensor,
    ) -> Result<(Vec<f64>, Vec<f64>, Vec<f64>)> {
        let biases = bias.map(|b| b.to_vec1::<f32>()).transpose()?.unwrap_or_default();
        let stored = Scales::rounded(format, &scale.to_vec1::<f32>()?, &biases);
        let (lo, hi) = (f64::from(format.levels().0), f64::from(format.levels().1));
        let group = format.group_len().unwrap_or(ROWS * COLS);
        let gamma = 1.0 / (group as f64 * hi).sqrt();
        let (mut dw, mut ds, mut db) =
            (Vec::new(), vec![0.0; stored.scale.len()], vec![0.0; stored.bias.len()]);
        for (i, (w, g)) in flat(w)?.into_iter().zip(flat(g)?).enumerate() {
            let (s, b) = (
                f64::from(stored.scale[i / group]),
                stored.bias.get(i / group).map_or(0.0, |&b| f64::from(b)),
            );
            let u = (w - b) / s;
            let error = u.round_ties_even() - u;
            // Straight through, ŵ moves like this when w, s and b move:
            let value = |w: f64, s: f64, b: f64| {
                if u < lo {
                    s * lo + b
                } else if u > hi {
                    s * hi + b
                } else {
                    s * ((w - b) / s + error) + b
                }
            };
            // ŵ is linear in s and b, and a step of 2⁻²⁰ is exact: the differences have only f64's rounding.
            let h = 2f64.powi(-20);
            let difference = |up: f64, down: f64| g * (up - down) / (2.0 * h);
            let passes = format.is_ternary() && u.abs() <= 1.5;
            dw.push(if passes { g } else { difference(value(w + h, s, b), value(w - h, s, b)) });
            ds[i / group] += gamma * difference(value(w, s + h, b), value(w, s - h, b));
            if let Some(db) = db.get_mut(i / group) {
                *db += gamma * difference(value(w, s, b + h), value(w, s, b - h));
            }
        }
        Ok((dw, ds, db))
    }

    #[test]
    fn nan_weights_are_seen_in_the_value_unless_their_scale_is_zero_and_never_panic() -> Result<()> {
        let mut values = uniform(20, 1.0, &[ROWS * COLS])?.to_vec1::<f32>()?;
        values[5] = f32::NAN;
        values[300] = f32::INFINITY;
        let w = Tensor::from_vec(values, (ROWS, COLS), &Device::Cpu)?;
        for format in Format::all() {
            for rule in RULES {
                let value = fake_quant(&w, &FakeQuant { rule, ..spec(format, Gradient::Ste, 1.0) })?;
                let scales = Scales::choose(format, rule, &Floats::of("test", &w)?, ROWS, COLS);
                let seen = scales.scale[0] != 0.0;
                assert!(seen || rule == ScaleRule::Mse, "{format}: absmax hides a NaN weight");
                assert_eq!(value.sum_all()?.to_scalar::<f32>()?.is_nan(), seen, "{format} {rule}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_row_that_the_format_cannot_hold_is_refused_with_formats_that_can() -> Result<()> {
        let w = uniform(20, 1.0, &[4, 96])?;
        let message = fake_quant(&w, &spec(Format::TernaryG64, Gradient::Ste, 1.0)).unwrap_err().to_string();
        assert!(message.contains("96") && message.contains("int4-g32"), "{message}");
        Ok(())
    }

    #[test]
    fn learned_scales_of_the_wrong_length_or_kind_are_refused() -> Result<()> {
        let (w, scale, _) = learned(Format::Int4G32)?;
        let lsq = spec(Format::Int4G32, Gradient::Lsq, 1.0);
        let short = scale.narrow(0, 0, 5)?;
        let message = fake_quant_learned(&w, &short, None, &lsq).unwrap_err().to_string();
        assert!(message.contains("want scale [24] and bias None, found [5] and None"), "{message}");
        let message = fake_quant_learned(&w, &scale, Some(&scale), &lsq).unwrap_err().to_string();
        assert!(message.contains("bias None"), "{message}");
        let message = fake_quant(&w, &lsq).unwrap_err().to_string();
        assert!(message.contains("fake_quant_learned"), "{message}");
        Ok(())
    }
}

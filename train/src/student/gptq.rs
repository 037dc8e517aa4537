//! GPTQ over a whole model: one pass of calibration text, in which each matrix is rounded the moment its inputs are there.
//!
//! Knows no arithmetic of rounding (`qat_quant::gptq` has it) and no files. Since the pass goes on with what was rounded, each matrix
//! meets the inputs that it will have in the model that ships.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use qat_infer::{
    files::Activations,
    model::{AttentionShape, Decoder, Exec, Gate, Linear, Param, Role, Rope, Sight, Weights},
};
use qat_quant::{Feedback, Format, Rounded, Scales};

use super::Floats;
use crate::{
    Error, Result,
    exec::{Matrix, RopeTable, TrainExec},
    ops,
    recipe::Quantization,
};

/// Share of the moments' mean that is added to each of them: the paper's.
const DAMPING: f64 = 0.01;

/// Text on which the inputs of each matrix are measured.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// Windows of token ids, all of one length.
    pub windows: Vec<Vec<u32>>,
    /// Windows that pass through the model at a time.
    pub batch: usize,
}

/// Rounds every quantized matrix of `floats` whose inputs the `calibration` shows: all but the embedding table.
///
/// # Errors
/// Inputs that are not finite; the device is out of memory.
pub fn round(
    floats: &Floats,
    quantization: &Quantization,
    calibration: &Calibration,
    device: &Device,
) -> Result<BTreeMap<String, Rounded>> {
    let ctx = calibration.windows.first().map_or(0, Vec::len);
    let decoder = Decoder::build(floats.config.clone(), &mut Targets { floats, quantization, device })?;
    let rope = RopeTable::new(&decoder.ropes, ctx, device)?;
    let mut pass =
        Pass { quantization, batch: calibration.batch, ctx, rope: &rope, rounded: BTreeMap::new() };
    let ids: Vec<u32> = calibration.windows.iter().flatten().copied().collect();
    let hidden = decoder.forward(&mut pass, &ids)?;
    if let Some(head) = &decoder.head {
        // Rounded, but not multiplied with: logits of all tokens are many.
        pass.round(&hidden, &[head])?;
    }
    Ok(pass.rounded)
}

/// A matrix that is to be rounded.
struct Target {
    param: Param,
    format: Option<Format>,
    int8_inputs: bool,
    /// Its float values; those of the embedding table are on their grid already.
    weight: Tensor,
}

/// Gives a decoder the matrices that are to be rounded.
struct Targets<'a> {
    floats: &'a Floats,
    quantization: &'a Quantization,
    device: &'a Device,
}

impl Weights for Targets<'_> {
    type M = Target;
    type V = Tensor;
    type Error = Error;

    fn matrix(&mut self, param: &Param) -> Result<Target> {
        let format = self.quantization.rules.choose(param);
        let mut values = self.floats.values(&param.name)?.to_vec();
        if let (Some(format), Role::Embedding) = (format, param.role) {
            let (rows, cols, w) = (param.shape[0], param.shape[1], values.clone());
            let scales = Scales::choose(format, self.quantization.rule(), &w, rows, cols);
            qat_quant::fake_quant(format, &w, rows, cols, &scales, &mut values);
        }
        let int8 = param.role == Role::Projection && self.quantization.activations == Activations::Int8Token;
        Ok(Target {
            format,
            int8_inputs: int8 && format.is_some(),
            weight: Tensor::from_vec(values, param.shape.as_slice(), self.device)?,
            param: param.clone(),
        })
    }

    fn vector(&mut self, param: &Param) -> Result<Tensor> {
        Ok(Tensor::from_slice(self.floats.values(&param.name)?, param.shape.as_slice(), self.device)?)
    }
}

/// The pass: activations are those of all windows, some windows a tensor.
struct Pass<'a> {
    quantization: &'a Quantization,
    batch: usize,
    ctx: usize,
    rope: &'a RopeTable,
    rounded: BTreeMap<String, Rounded>,
}

impl<'a> Pass<'a> {
    /// An executor for the windows in `x`.
    fn exec(&self, x: &Tensor) -> Result<TrainExec<'a>> {
        Ok(TrainExec::new(x.dim(0)? / self.ctx, self.ctx, self.rope))
    }

    fn each(
        &self,
        x: Vec<Tensor>,
        f: impl Fn(&mut TrainExec, Tensor) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        x.into_iter().map(|x| f(&mut self.exec(&x)?, x)).collect()
    }

    /// Rounds those of `linears`, which all have the inputs `x`, that are to be; returns them as they multiply from now on.
    fn round(
        &mut self,
        x: &[Tensor],
        linears: &[&Linear<Target, Tensor>],
    ) -> Result<Vec<Linear<Matrix, Tensor>>> {
        let first = linears.iter().map(|l| &l.weight).find(|t| t.format.is_some());
        let feedback = first.map(|target| feedback(x, target)).transpose()?;
        let mut ready = Vec::new();
        for linear in linears {
            let target = &linear.weight;
            let weight = match (target.format, &feedback) {
                (Some(format), Some(feedback)) => self.round_one(target, format, feedback)?,
                _ => target.weight.clone(),
            };
            let weight = Matrix { int8_inputs: target.int8_inputs.then_some(1.0), ..Matrix::of(weight) };
            ready.push(Linear { weight, bias: linear.bias.clone() });
        }
        Ok(ready)
    }

    fn round_one(&mut self, target: &Target, format: Format, feedback: &Feedback) -> Result<Tensor> {
        let (rows, cols) = target.weight.dims2()?;
        let w: Vec<f32> = target.weight.flatten_all()?.to_vec1()?;
        let rounded = qat_quant::gptq(format, self.quantization.rule(), &w, rows, cols, feedback);
        let values = Tensor::from_slice(&rounded.values, (rows, cols), target.weight.device())?;
        self.rounded.insert(target.param.name.clone(), rounded);
        Ok(values)
    }
}

/// Second moments of the inputs `x` as `target` sees them. Sums over some windows are f32, their sum is f64.
fn feedback(x: &[Tensor], target: &Target) -> Result<Feedback> {
    let cols = target.param.shape[1];
    let mut moments = vec![0f64; cols * cols];
    for x in x {
        let x = if target.int8_inputs { ops::quantize_activations(x, 1.0)? } else { x.clone() };
        let part: Vec<f32> = x.t()?.matmul(&x)?.flatten_all()?.to_vec1()?;
        moments.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(part));
    }
    Ok(Feedback::new(&target.param.name, moments, cols, DAMPING)?)
}

impl Exec for Pass<'_> {
    type T = Vec<Tensor>;
    type M = Target;
    type V = Tensor;
    type Error = Error;

    fn embed(&mut self, table: &Target, ids: &[u32], scale: f32) -> Result<Vec<Tensor>> {
        let parts = ids.chunks(self.batch * self.ctx);
        parts.map(|ids| Ok(ops::embedding(&table.weight, ids, scale)?)).collect()
    }

    fn rms_norm(&mut self, x: &Vec<Tensor>, weight: &Tensor, eps: f32) -> Result<Vec<Tensor>> {
        x.iter().map(|x| self.exec(x)?.rms_norm(x, weight, eps)).collect()
    }

    fn linears<const N: usize>(
        &mut self,
        x: &Vec<Tensor>,
        linears: [&Linear<Target, Tensor>; N],
    ) -> Result<[Vec<Tensor>; N]> {
        let ready = self.round(x, &linears)?;
        let ready: [&Linear<Matrix, Tensor>; N] = std::array::from_fn(|i| &ready[i]);
        let mut outputs = [const { Vec::new() }; N];
        for x in x {
            let made = self.exec(x)?.linears(x, ready)?;
            outputs.iter_mut().zip(made).for_each(|(all, made)| all.push(made));
        }
        Ok(outputs)
    }

    fn unembed(&mut self, _: &Vec<Tensor>, _: &Target) -> Result<Vec<Tensor>> {
        Err(Error::Config("calibration wants no logits".into()))
    }

    fn head_norm(&mut self, x: Vec<Tensor>, weight: &Tensor, heads: usize, eps: f32) -> Result<Vec<Tensor>> {
        self.each(x, |exec, x| exec.head_norm(x, weight, heads, eps))
    }

    fn rope(&mut self, x: Vec<Tensor>, heads: usize, rope: &Rope) -> Result<Vec<Tensor>> {
        self.each(x, |exec, x| exec.rope(x, heads, rope))
    }

    fn attention(
        &mut self,
        layer: usize,
        q: Vec<Tensor>,
        k: Vec<Tensor>,
        v: Vec<Tensor>,
        shape: &AttentionShape,
        sight: Sight,
    ) -> Result<Vec<Tensor>> {
        let parts = q.into_iter().zip(k).zip(v);
        parts.map(|((q, k), v)| self.exec(&q)?.attention(layer, q, k, v, shape, sight)).collect()
    }

    fn short_conv(&mut self, layer: usize, x: Vec<Tensor>, kernel: &Tensor) -> Result<Vec<Tensor>> {
        self.each(x, |exec, x| exec.short_conv(layer, x, kernel))
    }

    fn gate(&mut self, by: Gate, gate: Vec<Tensor>, up: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let parts = gate.into_iter().zip(up);
        parts.map(|(gate, up)| self.exec(&gate)?.gate(by, gate, up)).collect()
    }

    fn add(&mut self, a: Vec<Tensor>, b: Vec<Tensor>) -> Result<Vec<Tensor>> {
        a.into_iter().zip(b).map(|(a, b)| Ok((a + b)?)).collect()
    }
}

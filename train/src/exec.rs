//! The decoder carried out with autograd: activations are candle tensors, matrices are (fake-quantized) latent weights.
//!
//! Knows no loss and no optimizer. Activations travel as `[batch · ctx, width]`, sequence by sequence; every window
//! starts at position 0 and attends to itself only, where it holds several documents each of them to itself.

mod recompute;

use candle_core::{DType, Device, Tensor};
use qat_infer::{
    cpu::KvType,
    model::{AttentionShape, Exec, Gate, Linear, Rope, Ropes, Sight},
};

pub use recompute::forward_in_layers;

use crate::{
    Error, Result,
    loss::Features,
    ops::{self, Borders},
    precision::Precision,
};

/// A matrix as the forward pass sees it.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Values, `[out, in]`: on the grid where the matrix is quantized.
    pub weight: Tensor,
    /// Share (λ) of the int8 rounding of its inputs, where its inputs are quantized per token.
    pub int8_inputs: Option<f32>,
    /// How the keys or values that it makes are kept, where they are rounded.
    pub cache: Option<Cache>,
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cache {
    /// The cache's type.
    pub kv: KvType,
    /// Share (λ) of its rounding.
    pub lambda: f32,
}

impl Matrix {
    /// One whose inputs and outputs are not rounded.
    pub fn of(weight: Tensor) -> Self {
        Self { weight, int8_inputs: None, cache: None }
    }
}

/// Cosines and sines of the first `ctx` positions, of every rotation of a model, made once.
#[derive(Debug, Clone)]
pub struct RopeTable {
    angles: Vec<(Rope, [Tensor; 2])>,
    device: Device,
}

impl RopeTable {
    /// Angles of positions `0..ctx` in texts of `ctx` tokens: two `[ctx, pairs]` tables for each rotation.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(ropes: &Ropes, ctx: usize, device: &Device) -> Result<Self> {
        let of_rope = |rope: &Rope| -> Result<(Rope, [Tensor; 2])> {
            let (frequencies, factor) = (rope.frequencies(ctx), rope.factor());
            let angles = (0..ctx).flat_map(|t| frequencies.iter().map(move |f| t as f32 * f));
            let (cos, sin): (Vec<f32>, Vec<f32>) =
                angles.map(|a| (a.cos() * factor, a.sin() * factor)).unzip();
            let tensor = |values| Tensor::from_vec(values, (ctx, rope.pairs()), device);
            Ok((rope.clone(), [tensor(cos)?, tensor(sin)?]))
        };
        Ok(Self { angles: ropes.all().map(of_rope).collect::<Result<_>>()?, device: device.clone() })
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn of(&self, rope: &Rope) -> Result<&[Tensor; 2]> {
        let found = self.angles.iter().find(|(known, _)| known == rope);
        let found =
            found.ok_or_else(|| Error::Config("a rotation that the model was not made with".into()))?;
        Ok(&found.1)
    }
}

/// Executes a decoder over a batch of windows of equal length.
#[derive(Debug)]
pub struct TrainExec<'a> {
    batch: usize,
    ctx: usize,
    rope: &'a RopeTable,
    /// What activations become behind the embedding; what follows goes by what it is given.
    dtype: DType,
    tap: Option<Tap>,
    /// As the matrices of the layer at hand say.
    cache: Option<Cache>,
    /// Where documents begin, in windows that hold several.
    borders: Option<Borders>,
}

/// Where a forward pass is listened to, and what was heard.
#[derive(Debug, Default)]
struct Tap {
    layer: usize,
    attention: Option<[Tensor; 3]>,
    hidden: Option<Tensor>,
}

impl<'a> TrainExec<'a> {
    /// An executor for `batch` windows of `ctx` tokens each.
    pub fn new(batch: usize, ctx: usize, rope: &'a RopeTable) -> Self {
        Self { batch, ctx, rope, dtype: DType::F32, tap: None, cache: None, borders: None }
    }

    /// The same, computing in `precision`.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { dtype: precision.dtype(), ..self }
    }

    /// The same, on windows that hold several documents.
    pub fn with_borders(self, borders: Option<Borders>) -> Self {
        Self { borders, ..self }
    }

    /// The same, remembering what the next forward pass leaves behind layer `layer`.
    pub fn with_tap(self, layer: usize) -> Self {
        Self { tap: Some(Tap { layer, ..Tap::default() }), ..self }
    }

    /// What the forward pass left behind the layer of [`Self::with_tap`]; none where the decoder has no such layer.
    pub fn features(self) -> Option<Features> {
        let tap = self.tap?;
        Some(Features { hidden: tap.hidden?, attention: tap.attention? })
    }

    fn by_head(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let width = x.dim(1)?;
        Ok(ops::reshape(x, (self.batch, self.ctx, heads, width / heads))?)
    }
}

impl Exec for TrainExec<'_> {
    type T = Tensor;
    type M = Matrix;
    type V = Tensor;
    type Error = Error;

    fn embed(&mut self, table: &Matrix, ids: &[u32], scale: f32) -> Result<Tensor> {
        Ok(ops::cast(&ops::embedding(&table.weight, ids, scale)?, self.dtype)?)
    }

    fn rms_norm(&mut self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        Ok(ops::rms_norm(x, weight, eps)?)
    }

    fn linears<const N: usize>(
        &mut self,
        x: &Tensor,
        linears: [&Linear<Matrix, Tensor>; N],
    ) -> Result<[Tensor; N]> {
        self.cache = linears.iter().find_map(|l| l.weight.cache);
        // Matrices with the same input share its rounding, as the runtime rounds it once.
        let lambda = linears.iter().find_map(|l| l.weight.int8_inputs);
        let rounded = lambda.map(|lambda| ops::quantize_activations(x, lambda)).transpose()?;
        let one = |linear: &Linear<Matrix, Tensor>| -> Result<Tensor> {
            let input = match (&rounded, linear.weight.int8_inputs) {
                (Some(rounded), Some(_)) => rounded,
                _ => x,
            };
            let y = product(input, &linear.weight)?;
            Ok(match &linear.bias {
                Some(bias) => ops::add_bias(&y, bias)?,
                None => y,
            })
        };
        let outputs = linears.into_iter().map(one).collect::<Result<Vec<_>>>()?;
        outputs.try_into().map_err(|_| Error::Config("as many outputs as matrices".into()))
    }

    fn unembed(&mut self, x: &Tensor, table: &Matrix) -> Result<Tensor> {
        product(x, table)
    }

    fn head_norm(&mut self, x: Tensor, weight: &Tensor, heads: usize, eps: f32) -> Result<Tensor> {
        Ok(ops::reshape(&ops::rms_norm(&self.by_head(&x, heads)?, weight, eps)?, x.shape())?)
    }

    fn rope(&mut self, x: Tensor, heads: usize, rope: &Rope) -> Result<Tensor> {
        let [cos, sin] = self.rope.of(rope)?;
        let turned = ops::rope(&self.by_head(&x, heads)?, cos, sin)?;
        Ok(ops::reshape(&turned, x.shape())?)
    }

    fn attention(
        &mut self,
        layer: usize,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shape: &AttentionShape,
        sight: Sight,
    ) -> Result<Tensor> {
        if let Some(tap) = self.tap.as_mut().filter(|tap| tap.layer == layer) {
            tap.attention = Some([q.clone(), k.clone(), v.clone()]);
        }
        let q = self.by_head(&q, shape.heads)?;
        let mut k = self.by_head(&k, shape.kv_heads)?;
        let mut v = self.by_head(&v, shape.kv_heads)?;
        if let Some(Cache { kv, lambda }) = self.cache {
            k = ops::quantize_kv(&k, kv, lambda)?;
            v = ops::quantize_kv(&v, kv, lambda)?;
        }
        let borders = match sight.window.filter(|window| *window < self.ctx) {
            None => self.borders.clone(),
            Some(window) => Some(ops::Borders::seen(window, (self.batch, self.ctx), self.borders.as_ref())),
        };
        let mixed = ops::attention_apart(&q, &k, &v, sight.scale, borders.as_ref())?;
        Ok(ops::reshape(&mixed, (self.batch * self.ctx, shape.heads * shape.head_dim))?)
    }

    fn short_conv(&mut self, _: usize, x: Tensor, kernel: &Tensor) -> Result<Tensor> {
        Ok(ops::short_conv_apart(&x, kernel, self.ctx, self.borders.as_ref())?)
    }

    fn gate(&mut self, by: Gate, gate: Tensor, up: Tensor) -> Result<Tensor> {
        Ok(match by {
            Gate::Silu => ops::swiglu(&gate, &up)?,
            Gate::Relu2 => ops::relu2(&gate, &up)?,
            Gate::GeluTanh => ops::geglu(&gate, &up)?,
        })
    }

    fn add(&mut self, a: Tensor, b: Tensor) -> Result<Tensor> {
        Ok(ops::add(&a, &b)?)
    }

    fn behind_layer(&mut self, layer: usize, x: &Tensor) {
        if let Some(tap) = self.tap.as_mut().filter(|tap| tap.layer == layer) {
            tap.hidden = Some(x.clone());
        }
    }
}

/// `x` times the transpose of `matrix`, in the type of `x`.
fn product(x: &Tensor, matrix: &Matrix) -> Result<Tensor> {
    Ok(ops::linear(x, &ops::cast(&matrix.weight, x.dtype())?)?)
}

#[cfg(test)]
mod tests;

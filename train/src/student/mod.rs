//! The student: latent f32 variables, the formats they will ship in, and the decoder over their fake-quantized values.
//!
//! Knows no loss and no data. Invariant: the values that [`Student::decoder`] trains with at λ = 1 are, to the bit, the
//! values that [`Student::ship`] gives, because both are `decode(encode(latent))` of one codec with one choice of scales.

mod floats;
mod freezing;
pub mod gptq;
pub mod prune;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use qat_infer::{
    files::Activations,
    model::{Config, Decoder, Layer, Param, Role, Weights, params},
};
use qat_quant::{Format, Packed, Rounded, ScaleRule, Scales};

pub use floats::{Floats, random_values, read_config};

use crate::{
    Error, Result,
    exec::{Cache, Matrix},
    ops::{self, FakeQuant, Gradient, Noise},
    precision::Precision,
    recipe::{Learn, Quantization},
};

/// What a variable is, and so with which learning rate it moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A matrix inside a layer.
    Weight,
    /// The table of embeddings, or an output head of its own.
    Table,
    /// A norm's weight, a bias vector, or the taps of a short convolution.
    Norm,
    /// Learned scales of a matrix, `[groups]`.
    Scale,
    /// Learned biases of an affine grid, `[groups]`.
    GridBias,
}

/// A tensor that a student keeps, trained or not.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Tensor name; scales, biases and codes of a grid carry the matrix's name with `_scale`, `_bias` and `_codes` behind it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its value.
    pub var: Var,
}

/// How the student is rounded in one forward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// Share of the rounding that is blended in.
    pub lambda: f32,
    /// Where not all weights are rounded: which of them are.
    pub noise: Option<Draw>,
    /// What products are computed in: rounded matrices are made in this type at once.
    pub precision: Precision,
}

impl Moment {
    /// Rounded as it ships.
    pub fn full() -> Self {
        Self { lambda: 1.0, noise: None, precision: Precision::F32 }
    }
}

/// A share of the weights, drawn anew in each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Seed of the run.
    pub seed: u64,
    /// The step.
    pub step: usize,
    /// Above 0 and below 1.
    pub share: f64,
}

/// A tensor as it ships.
#[derive(Debug)]
pub enum Shipped {
    /// On its grid.
    Packed(Packed),
    /// As f32.
    Float(Vec<f32>),
}

/// Latent weights with their quantizers.
#[derive(Debug)]
pub struct Student {
    /// Shapes.
    pub config: Config,
    quantization: Quantization,
    /// What is trained comes first.
    variables: Vec<Variable>,
    trained: usize,
    index: BTreeMap<String, usize>,
}

impl Student {
    /// A student that starts from `floats`.
    ///
    /// # Errors
    /// A format that can't hold a tensor, rules that match nothing, or an untied-head rule on a tied model.
    pub fn new(floats: &Floats, quantization: Quantization, device: &Device) -> Result<Self> {
        let list = params(&floats.config);
        quantization.rules.check(&list)?;
        let mut student = Self {
            config: floats.config.clone(),
            quantization,
            variables: Vec::new(),
            trained: 0,
            index: BTreeMap::new(),
        };
        for param in &list {
            student.add_trained(param, floats.values(&param.name)?, device)?;
        }
        student.trained = student.variables.len();
        for param in &list {
            student.add_kept(param, floats.values(&param.name)?, device)?;
            student.add_turns(param, device)?;
        }
        student.check_turns()?;
        Ok(student)
    }

    /// Adds what is trained of `param`.
    fn add_trained(&mut self, param: &Param, values: &[f32], device: &Device) -> Result<()> {
        if self.quantization.learn == Learn::All {
            self.push_values(param, values, device)?;
        }
        let Some(format) = self.format(param).filter(|_| self.quantization.gradient.learns_scales()) else {
            return Ok(());
        };
        let start = Scales::choose(format, self.quantization.rule(), values, param.shape[0], param.shape[1]);
        let groups = start.scale.len();
        self.push(scale_name(param), Kind::Scale, Tensor::from_vec(start.scale, groups, device)?)?;
        if format.has_bias() && !self.quantization.even {
            self.push(bias_name(param), Kind::GridBias, Tensor::from_vec(start.bias, groups, device)?)?;
        }
        Ok(())
    }

    /// Adds what stays of `param` where scales alone are trained: the codes of a quantized matrix, and everything else as it is.
    fn add_kept(&mut self, param: &Param, values: &[f32], device: &Device) -> Result<()> {
        if self.quantization.learn == Learn::All {
            return Ok(());
        }
        let Some(format) = self.format(param) else { return self.push_values(param, values, device) };
        let codes = codes(format, values, param, &self.grid(param, format)?);
        self.push(codes_name(param), Kind::Weight, Tensor::from_vec(codes, param.shape.as_slice(), device)?)
    }

    fn push_values(&mut self, param: &Param, values: &[f32], device: &Device) -> Result<()> {
        let kind = match param.role {
            Role::Projection => Kind::Weight,
            Role::Embedding | Role::Head => Kind::Table,
            Role::Norm | Role::Bias | Role::Conv => Kind::Norm,
        };
        self.push(param.name.clone(), kind, Tensor::from_slice(values, param.shape.as_slice(), device)?)
    }

    fn push(&mut self, name: String, kind: Kind, value: Tensor) -> Result<()> {
        self.index.insert(name.clone(), self.variables.len());
        self.variables.push(Variable { name, kind, var: Var::from_tensor(&value)? });
        Ok(())
    }

    /// The rule of grids that are chosen from the weights alone.
    pub fn rule(&self) -> ScaleRule {
        self.quantization.rule()
    }

    /// The format in which `param` ships; none: float.
    pub fn format(&self, param: &Param) -> Option<Format> {
        self.quantization.rules.choose(param)
    }

    /// Activation quantization at the input of `param`'s matrix.
    pub fn activations(&self, param: &Param) -> Activations {
        match (param.role, self.format(param)) {
            (Role::Projection, Some(_)) => self.quantization.activations,
            _ => Activations::Float,
        }
    }

    /// Every variable that is trained, in a fixed order.
    pub fn variables(&self) -> &[Variable] {
        &self.variables[..self.trained]
    }

    /// Everything that a checkpoint keeps: the trained variables, then those that stay as they start.
    pub fn kept(&self) -> &[Variable] {
        &self.variables
    }

    /// Takes matrices that were rounded otherwise than by their rule as the start: their grids, and weights that round to them (see
    /// [`Rounded::latent`]) or, where scales alone are trained, their codes.
    ///
    /// # Errors
    /// A student without learned scales; the device is out of memory.
    pub fn start_from(&self, rounded: &BTreeMap<String, Rounded>) -> Result<()> {
        for param in params(&self.config) {
            let (Some(rounded), Some(format)) = (rounded.get(&param.name), self.format(&param)) else {
                continue;
            };
            let (name, values) = match self.quantization.learn {
                Learn::All => {
                    let w = host(self.var(&param.name)?)?;
                    (param.name.clone(), rounded.latent(format, &w, param.shape[0], param.shape[1]))
                }
                Learn::Scales => {
                    (codes_name(&param), codes(format, &rounded.values, &param, &rounded.scales))
                }
            };
            let var = self.var(&name)?;
            var.set(&Tensor::from_vec(values, param.shape.as_slice(), var.device())?)?;
            self.set_grid(&param, &rounded.scales)?;
        }
        Ok(())
    }

    fn var(&self, name: &str) -> Result<&Var> {
        let index = self.index.get(name).ok_or_else(|| Error::Config(format!("{name}: no such variable")))?;
        Ok(&self.variables[*index].var)
    }

    /// Chooses the learned grids anew, by their rule, from the weights as they are now.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn choose_grids(&self) -> Result<()> {
        for param in params(&self.config) {
            let Some(format) = self.format(&param) else { continue };
            let w = host(self.var(&param.name)?)?;
            let scales = Scales::choose(format, self.quantization.rule(), &w, param.shape[0], param.shape[1]);
            self.set_grid(&param, &scales)?;
        }
        Ok(())
    }

    /// Sets those parts of the grid of `param` that are learned.
    fn set_grid(&self, param: &Param, scales: &Scales) -> Result<()> {
        for (name, values) in [(scale_name(param), &scales.scale), (bias_name(param), &scales.bias)] {
            if self.index.contains_key(&name) {
                let var = self.var(&name)?;
                var.set(&Tensor::from_slice(values, values.len(), var.device())?)?;
            }
        }
        Ok(())
    }

    /// The codes of `param`'s weights: the nearest, but for those that are held.
    fn codes_of(&self, param: &Param, format: Format, values: &[f32], grid: &Scales) -> Result<Vec<f32>> {
        let mut codes = codes(format, values, param, grid);
        self.turns(param)?.map(|turns| turns.put_codes(format, &mut codes)).transpose()?;
        Ok(codes)
    }

    /// The codes of all quantized matrices, one after the other, each less the lowest of its format.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn codes(&self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        for param in params(&self.config) {
            let Some(format) = self.format(&param) else { continue };
            let codes = match self.quantization.learn {
                Learn::Scales => host(self.var(&codes_name(&param))?)?,
                Learn::All => {
                    let values = host(self.var(&param.name)?)?;
                    self.codes_of(&param, format, &values, &self.grid_of(&param, format, &values)?)?
                }
            };
            let lowest = format.levels().0 as f32;
            // Whole numbers below 256; a weight that is no number has no code, and counts as the lowest.
            all.extend(codes.iter().map(|code| (code - lowest) as u8));
        }
        Ok(all)
    }

    /// The decoder of this moment: fake-quantized with share `lambda` of the rounding, or float when there is none.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn decoder(&self, lambda: Option<f32>) -> Result<Decoder<Matrix, Tensor>> {
        self.decoder_at(lambda.map(|lambda| Moment { lambda, ..Moment::full() }))
    }

    /// The decoder as `moment` has it, or float when there is none.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn decoder_at(&self, moment: Option<Moment>) -> Result<Decoder<Matrix, Tensor>> {
        Decoder::build(self.config.clone(), &mut Latent { student: self, moment })
    }

    /// One layer of that decoder.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn layer(&self, index: usize, moment: Option<Moment>) -> Result<Layer<Matrix, Tensor>> {
        Layer::build(&self.config, index, &mut Latent { student: self, moment })
    }

    /// Its table of embeddings.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn embedding(&self, moment: Option<Moment>) -> Result<Matrix> {
        Latent { student: self, moment }.matrix(&Param::embedding(&self.config))
    }

    fn fake_quant(&self, param: &Param, format: Format, moment: Moment) -> Result<Tensor> {
        let Quantization { gradient, learn, .. } = self.quantization;
        let frozen = learn == Learn::Scales;
        let gradient = if frozen { Gradient::Codes } else { gradient };
        let name = if frozen { codes_name(param) } else { param.name.clone() };
        let noise = moment.noise.map(|draw| {
            Noise::of(draw.seed, draw.step, self.index.get(&name).copied().unwrap_or_default(), draw.share)
        });
        let (rule, dtype) = (self.quantization.rule(), moment.precision.dtype());
        let spec = FakeQuant { format, gradient, rule, lambda: moment.lambda, noise, dtype };
        let weight = self.var(&name)?.as_tensor();
        if !gradient.learns_scales() {
            return Ok(ops::fake_quant(weight, &spec)?);
        }
        let scale = self.var(&scale_name(param))?.as_tensor();
        let bias = self.grid_bias(param, format, scale)?;
        Ok(ops::fake_quant_held(weight, scale, bias.as_ref(), self.turns(param)?.as_ref(), &spec)?)
    }

    /// Whether the matrix whose scales or biases `variable` holds lies on its grid, so that rounding changes none of its weights:
    /// that of a model which was rounded before.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn begins_on_grid(&self, variable: &Variable) -> Result<bool> {
        if self.quantization.learn != Learn::All {
            return Ok(false);
        }
        let names = |param: &Param| [scale_name(param), bias_name(param)].contains(&variable.name);
        let Some(param) = params(&self.config).into_iter().find(names) else { return Ok(false) };
        let Some(format) = self.format(&param) else { return Ok(false) };
        let values = host(self.var(&param.name)?)?;
        let (rows, cols, mut rounded) = (param.shape[0], param.shape[1], vec![0.0; values.len()]);
        qat_quant::fake_quant(format, &values, rows, cols, &self.grid(&param, format)?, &mut rounded);
        // Scale times code rounds once.
        let same = |(a, b): (&f32, &f32)| (a - b).abs() <= f32::EPSILON * a.abs();
        Ok(values.iter().zip(&rounded).all(same))
    }

    /// The learned grid of `param`'s matrix as it would be stored now.
    fn grid(&self, param: &Param, format: Format) -> Result<Scales> {
        let scale = host(self.var(&scale_name(param))?)?;
        let bias = match (format.has_bias(), self.quantization.even) {
            (false, _) => Vec::new(),
            (true, true) => scale.iter().map(|s| s * -format.middle()).collect(),
            (true, false) => host(self.var(&bias_name(param))?)?,
        };
        Ok(Scales::rounded(format, &scale, &bias))
    }

    /// The grid of `param`'s matrix, learned or chosen from its `values`.
    fn grid_of(&self, param: &Param, format: Format, values: &[f32]) -> Result<Scales> {
        if self.quantization.gradient.learns_scales() {
            return self.grid(param, format);
        }
        Ok(Scales::choose(format, self.quantization.rule(), values, param.shape[0], param.shape[1]))
    }

    /// The tensor as it ships: encoded once, with the scales that the forward pass used.
    ///
    /// # Errors
    /// A weight that is not finite.
    pub fn ship(&self, param: &Param) -> Result<Shipped> {
        let Some(format) = self.format(param) else {
            return Ok(Shipped::Float(host(self.var(&param.name)?)?));
        };
        let (name, rows, cols) = (&param.name, param.shape[0], param.shape[1]);
        let packed = if self.quantization.learn == Learn::Scales {
            let codes = host(self.var(&codes_name(param))?)?;
            qat_quant::pack_codes(name, format, &codes, rows, cols, &self.grid(param, format)?)?
        } else {
            let values = host(self.var(name)?)?;
            let grid = self.grid_of(param, format, &values)?;
            match self.turns(param)? {
                None => qat_quant::pack(name, format, &values, rows, cols, &grid)?,
                Some(_) => {
                    let codes = self.codes_of(param, format, &values, &grid)?;
                    qat_quant::pack_codes(name, format, &codes, rows, cols, &grid)?
                }
            }
        };
        Ok(Shipped::Packed(packed))
    }
}

fn codes_name(param: &Param) -> String {
    format!("{}_codes", param.name)
}

fn codes(format: Format, values: &[f32], param: &Param, scales: &Scales) -> Vec<f32> {
    let mut codes = vec![0.0; values.len()];
    qat_quant::codes(format, values, param.shape[0], param.shape[1], scales, &mut codes);
    codes
}

fn scale_name(param: &Param) -> String {
    format!("{}_scale", param.name)
}

fn bias_name(param: &Param) -> String {
    format!("{}_bias", param.name)
}

fn host(var: &Var) -> Result<Vec<f32>> {
    Ok(var.as_tensor().flatten_all()?.to_vec1()?)
}

/// Gives a decoder the latent variables, through their fake quantizers.
struct Latent<'a> {
    student: &'a Student,
    moment: Option<Moment>,
}

impl Weights for Latent<'_> {
    type M = Matrix;
    type V = Tensor;
    type Error = Error;

    fn matrix(&mut self, param: &Param) -> Result<Matrix> {
        let student = self.student;
        let cache = self.moment.zip(student.quantization.cache_of(param));
        let cache = cache.map(|(moment, kv)| Cache { kv, lambda: moment.lambda });
        let (Some(moment), Some(format)) = (self.moment, student.format(param)) else {
            return Ok(Matrix { cache, ..Matrix::of(self.vector(param)?) });
        };
        let int8 = student.activations(param) == Activations::Int8Token;
        let weight = student.fake_quant(param, format, moment)?;
        Ok(Matrix { weight, int8_inputs: int8.then_some(moment.lambda), cache })
    }

    fn vector(&mut self, param: &Param) -> Result<Tensor> {
        Ok(self.student.var(&param.name)?.as_tensor().clone())
    }
}

#[cfg(test)]
impl Student {
    /// Adds a variable that no forward pass reads.
    pub(crate) fn plant_idle_variable(&mut self, name: &str) -> Result<()> {
        self.push(name.to_owned(), Kind::Weight, Tensor::ones(4, candle_core::DType::F32, &Device::Cpu)?)?;
        self.trained = self.variables.len();
        Ok(())
    }
}

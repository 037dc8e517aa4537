//! The student: latent f32 variables, the formats they will ship in, and the decoder over their fake-quantized values.
//!
//! Knows no loss and no data. Invariant: the values that [`Student::decoder`] trains with at λ = 1 are, to the bit, the
//! values that [`Student::ship`] gives, because both are `decode(encode(latent))` of one codec with one choice of scales.

mod floats;
pub mod prune;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use qat_infer::{
    files::Activations,
    model::{Config, Decoder, Param, Role, Weights, params},
};
use qat_quant::{Format, Packed, ScaleRule, Scales};

pub use floats::{Floats, random_values, read_config};

use crate::{
    Error, Result,
    exec::Matrix,
    ops::{self, FakeQuant, Gradient},
    recipe::{Plan, Rules},
};

/// What a variable is, and so with which learning rate it moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A matrix inside a layer.
    Weight,
    /// The table of embeddings, or an output head of its own.
    Table,
    /// A norm's weight or a bias vector.
    Norm,
    /// Learned scales of a matrix, `[groups]`.
    Scale,
    /// Learned biases of an affine grid, `[groups]`.
    GridBias,
}

/// A trainable variable.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Tensor name; scales and biases of a grid carry the matrix's name with `_scale` and `_bias` behind it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its value.
    pub var: Var,
}

/// How the student is quantized.
#[derive(Debug, Clone)]
pub struct Quantization {
    /// Format of each matrix.
    pub rules: Rules,
    /// How scales are chosen, or start.
    pub scales: ScaleRule,
    /// How gradients pass the rounding.
    pub gradient: Gradient,
    /// Inputs of quantized projections.
    pub activations: Activations,
}

impl Quantization {
    /// What `plan` asks for.
    pub fn of(plan: &Plan) -> Self {
        Self {
            rules: plan.rules.clone(),
            scales: plan.scales,
            gradient: plan.gradient,
            activations: plan.activations,
        }
    }

    /// The same formats with scales chosen by `rule` from the weights as they are: rounding without training.
    pub fn untrained(rules: Rules, rule: ScaleRule, activations: Activations) -> Self {
        Self { rules, scales: rule, gradient: Gradient::Ste, activations }
    }
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
    variables: Vec<Variable>,
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
            index: BTreeMap::new(),
        };
        for param in &list {
            student.add(param, floats.values(&param.name)?, device)?;
        }
        Ok(student)
    }

    fn add(&mut self, param: &Param, values: &[f32], device: &Device) -> Result<()> {
        let kind = match param.role {
            Role::Projection => Kind::Weight,
            Role::Embedding | Role::Head => Kind::Table,
            Role::Norm | Role::Bias => Kind::Norm,
        };
        self.push(param.name.clone(), kind, Tensor::from_slice(values, param.shape.as_slice(), device)?)?;
        let Some(format) = self.format(param) else { return Ok(()) };
        if self.quantization.gradient != Gradient::Lsq {
            return Ok(());
        }
        let start = Scales::choose(format, self.quantization.scales, values, param.shape[0], param.shape[1]);
        let groups = start.scale.len();
        self.push(scale_name(param), Kind::Scale, Tensor::from_vec(start.scale, groups, device)?)?;
        if format.has_bias() {
            self.push(bias_name(param), Kind::GridBias, Tensor::from_vec(start.bias, groups, device)?)?;
        }
        Ok(())
    }

    fn push(&mut self, name: String, kind: Kind, value: Tensor) -> Result<()> {
        self.index.insert(name.clone(), self.variables.len());
        self.variables.push(Variable { name, kind, var: Var::from_tensor(&value)? });
        Ok(())
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

    /// Every trainable variable, in a fixed order.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    fn var(&self, name: &str) -> Result<&Var> {
        let index = self.index.get(name).ok_or_else(|| Error::Config(format!("{name}: no such variable")))?;
        Ok(&self.variables[*index].var)
    }

    /// The decoder of this moment: fake-quantized with share `lambda` of the rounding, or float when there is none.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn decoder(&self, lambda: Option<f32>) -> Result<Decoder<Matrix, Tensor>> {
        Decoder::build(self.config.clone(), &mut Latent { student: self, lambda })
    }

    fn fake_quant(&self, param: &Param, format: Format, lambda: f32) -> Result<Tensor> {
        let Quantization { gradient, scales: rule, .. } = self.quantization;
        let spec = FakeQuant { format, gradient, rule, lambda };
        let weight = self.var(&param.name)?.as_tensor();
        if gradient != Gradient::Lsq {
            return Ok(ops::fake_quant(weight, &spec)?);
        }
        let bias = if format.has_bias() { Some(self.var(&bias_name(param))?.as_tensor()) } else { None };
        Ok(ops::fake_quant_learned(weight, self.var(&scale_name(param))?.as_tensor(), bias, &spec)?)
    }

    /// The tensor as it ships: encoded once, with the scales that the forward pass used.
    ///
    /// # Errors
    /// A weight that is not finite.
    pub fn ship(&self, param: &Param) -> Result<Shipped> {
        let values = host(self.var(&param.name)?)?;
        let Some(format) = self.format(param) else { return Ok(Shipped::Float(values)) };
        let (rows, cols) = (param.shape[0], param.shape[1]);
        let scales = if self.quantization.gradient == Gradient::Lsq {
            let scale = host(self.var(&scale_name(param))?)?;
            let bias = if format.has_bias() { host(self.var(&bias_name(param))?)? } else { Vec::new() };
            Scales::rounded(format, &scale, &bias)
        } else {
            Scales::choose(format, self.quantization.scales, &values, rows, cols)
        };
        Ok(Shipped::Packed(qat_quant::pack(&param.name, format, &values, rows, cols, &scales)?))
    }
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
    lambda: Option<f32>,
}

impl Weights for Latent<'_> {
    type M = Matrix;
    type V = Tensor;
    type Error = Error;

    fn matrix(&mut self, param: &Param) -> Result<Matrix> {
        let student = self.student;
        let (Some(lambda), Some(format)) = (self.lambda, student.format(param)) else {
            return Ok(Matrix::of(self.vector(param)?));
        };
        let int8 = student.activations(param) == Activations::Int8Token;
        Ok(Matrix {
            weight: student.fake_quant(param, format, lambda)?,
            int8_inputs: int8.then_some(lambda),
            cache: None,
        })
    }

    fn vector(&mut self, param: &Param) -> Result<Tensor> {
        Ok(self.student.var(&param.name)?.as_tensor().clone())
    }
}

#[cfg(test)]
impl Student {
    /// Adds a variable that no forward pass reads.
    pub(crate) fn plant_idle_variable(&mut self, name: &str) -> Result<()> {
        self.push(name.to_owned(), Kind::Weight, Tensor::ones(4, candle_core::DType::F32, &Device::Cpu)?)
    }
}

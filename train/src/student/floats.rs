//! A model's tensors as plain f32 on the host, on their way from a directory (or a seed) to trainable variables.
//!
//! Knows no autograd. Invariant: holds exactly the tensors that `params(config)` lists, each with that shape.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use candle_core::{Device, Tensor};
use qat_infer::{
    FloatModel,
    files::Activations,
    model::{Config, Decoder, Layer, Param, Role, Weights, params},
};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result, exec::Matrix};

/// Configuration and f32 tensors of a model.
#[derive(Debug, Clone)]
pub struct Floats {
    /// Shapes.
    pub config: Config,
    /// Row-major values by Hugging Face name.
    pub tensors: BTreeMap<String, Vec<f32>>,
    /// Names of matrices whose inputs are rounded to 8 bits per token.
    pub int8_inputs: BTreeSet<String>,
}

impl Floats {
    /// Reads every tensor of `model` as the model computes with it: a teacher.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or not finite.
    pub fn read(model: &FloatModel) -> Result<Self> {
        let mut floats = Self::of(model, FloatModel::values)?;
        let all = params(&model.config).into_iter();
        let rounded = all.filter(|param| model.activations(param) == Activations::Int8Token);
        floats.int8_inputs = rounded.map(|param| param.name).collect();
        Ok(floats)
    }

    /// Reads every tensor of `model` as training goes on from it: a student.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or not finite.
    pub fn read_latent(model: &FloatModel) -> Result<Self> {
        Self::of(model, FloatModel::latent)
    }

    fn of(
        model: &FloatModel,
        values: impl Fn(&FloatModel, &Param) -> qat_infer::Result<Vec<f32>>,
    ) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for param in params(&model.config) {
            let values = values(model, &param)?;
            tensors.insert(param.name, values);
        }
        Ok(Self::plain(model.config.clone(), tensors))
    }

    /// Tensors of a model that rounds nothing on its way.
    pub fn plain(config: Config, tensors: BTreeMap<String, Vec<f32>>) -> Self {
        Self { config, tensors, int8_inputs: BTreeSet::new() }
    }

    /// [`random_values`] for every tensor.
    pub fn random(config: Config, seed: u64) -> Self {
        let random = |(at, param): (usize, Param)| {
            let values = random_values(&param, at, config.layers, seed);
            (param.name, values)
        };
        let tensors = params(&config).into_iter().enumerate().map(random).collect();
        Self::plain(config, tensors)
    }

    /// All zeros: a place for values that are restored from a checkpoint.
    pub fn zeros(config: Config) -> Self {
        let zeros = |p: Param| (p.name, vec![0.0; p.shape.iter().product()]);
        let tensors = params(&config).into_iter().map(zeros).collect();
        Self::plain(config, tensors)
    }

    /// The values of one tensor.
    pub(crate) fn values(&self, name: &str) -> Result<&[f32]> {
        let values =
            self.tensors.get(name).ok_or_else(|| Error::Config(format!("{name}: no such tensor")))?;
        Ok(values)
    }

    /// A decoder over constant tensors on `device`: a teacher, or a float model to be probed.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn decoder(&self, device: &Device) -> Result<Decoder<Matrix, Tensor>> {
        Decoder::build(self.config.clone(), &mut Constants { floats: self, device })
    }
}

/// Random values for `param`, the tensor number `at` of a model of so many layers: N(0, 0.02²) for a matrix, smaller by
/// √(2·layers) if it writes into the residual stream (GPT-2, section 2.3); ones for a norm, zeros for a bias; for the taps of a
/// convolution numbers between ±1/√taps, as PyTorch draws them.
pub fn random_values(param: &Param, at: usize, layers: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(at as u64);
    let len = param.shape.iter().product();
    match param.role {
        Role::Norm => vec![1.0; len],
        Role::Bias => vec![0.0; len],
        Role::Conv => {
            let most = 1.0 / (param.shape.last().copied().unwrap_or(1) as f32).sqrt();
            (0..len).map(|_| rng.random_range(-most..most)).collect()
        }
        Role::Embedding | Role::Head | Role::Projection => {
            let writes = param.part().is_some_and(|(_, part)| part.writes_residual());
            let std = 0.02 * if writes { 1.0 / (2.0 * layers as f32).sqrt() } else { 1.0 };
            (0..len).map(|_| std * gaussian(&mut rng)).collect()
        }
    }
}

/// Box–Muller: a standard normal number.
fn gaussian(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

impl Floats {
    /// Layer `index` over constant tensors on `device`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn layer(&self, index: usize, device: &Device) -> Result<Layer<Matrix, Tensor>> {
        Layer::build(&self.config, index, &mut Constants { floats: self, device })
    }

    /// The table of embeddings on `device`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn embedding(&self, device: &Device) -> Result<Matrix> {
        Constants { floats: self, device }.matrix(&Param::embedding(&self.config))
    }
}

struct Constants<'a> {
    floats: &'a Floats,
    device: &'a Device,
}

impl Weights for Constants<'_> {
    type M = Matrix;
    type V = Tensor;
    type Error = Error;

    fn matrix(&mut self, param: &Param) -> Result<Matrix> {
        let int8_inputs = self.floats.int8_inputs.contains(&param.name).then_some(1.0);
        Ok(Matrix { int8_inputs, ..Matrix::of(self.vector(param)?) })
    }

    fn vector(&mut self, param: &Param) -> Result<Tensor> {
        Ok(Tensor::from_slice(self.floats.values(&param.name)?, param.shape.as_slice(), self.device)?)
    }
}

/// Reads the `config.json` at `path`.
///
/// # Errors
/// The file can't be read, is no JSON, or describes a model that is not supported.
pub fn read_config(path: &Path) -> Result<Config> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::io("cannot read the model's config", path, e))?;
    let value = serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not valid JSON: {e}")))?;
    Ok(Config::from_json(&value, path)?)
}

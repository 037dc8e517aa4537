//! A model's tensors as plain f32 on the host, on their way from a directory (or a seed) to trainable variables.
//!
//! Knows no autograd. Invariant: holds exactly the tensors that `params(config)` lists, each with that shape.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Device, Tensor};
use qat_infer::{
    FloatModel,
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
}

impl Floats {
    /// Reads every tensor of `model`.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or not finite.
    pub fn read(model: &FloatModel) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for param in params(&model.config) {
            let values = model.values(&param)?;
            tensors.insert(param.name, values);
        }
        Ok(Self { config: model.config.clone(), tensors })
    }

    /// [`random_values`] for every tensor.
    pub fn random(config: Config, seed: u64) -> Self {
        let random = |(at, param): (usize, Param)| {
            let values = random_values(&param, at, config.layers, seed);
            (param.name, values)
        };
        Self { tensors: params(&config).into_iter().enumerate().map(random).collect(), config }
    }

    /// All zeros: a place for values that are restored from a checkpoint.
    pub fn zeros(config: Config) -> Self {
        let zeros = |p: Param| (p.name, vec![0.0; p.shape.iter().product()]);
        Self { tensors: params(&config).into_iter().map(zeros).collect(), config }
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
/// √(2·layers) if it writes into the residual stream (GPT-2, section 2.3), ones for a norm, zeros for a bias.
pub fn random_values(param: &Param, at: usize, layers: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(at as u64);
    let len = param.shape.iter().product();
    match param.role {
        Role::Norm => vec![1.0; len],
        Role::Bias => vec![0.0; len],
        Role::Embedding | Role::Head | Role::Projection => {
            let writes = param.name.contains("o_proj") || param.name.contains("down_proj");
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
        Ok(Matrix::of(self.vector(param)?))
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

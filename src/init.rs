//! `qat init`: a model of random weights in a given shape, so that anyone can repeat a measurement of speed or size.
//!
//! Knows no training. Invariant: shape and seed alone decide the float weights (numbers that f16 holds), whatever they are
//! then stored as; a packed model goes through the codec and the writer of `qat export`.

mod shapes;

use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use half::f16;
use qat_infer::{
    files::{Activations, CONFIG_FILE, HfWriter, Manifest, PackedWriter},
    model::{Config, Param, Role, params},
};
use qat_quant::{Format, Packed, ScaleRule, Scales, kernels::FloatType, pack};
use qat_train::student::{random_values, read_config};
use rayon::prelude::*;
use serde_json::{Value, json};

use self::shapes::{SHAPES, TINY};
use crate::{Ending, cli, export::announce};

/// Tensors in memory at a time: about a layer.
const AT_ONCE: usize = 8;

/// Runs the command.
pub fn run(args: &cli::Init) -> anyhow::Result<Ending> {
    let config = config(&args.shape).context("--shape")?;
    let layers = choice(&args.format).context("--format")?;
    let embeddings = match &args.embeddings {
        Some(_) if layers.is_none() => {
            bail!("--embeddings: --format float stores every tensor as float; leave it out")
        }
        Some(spelling) => choice(spelling).context("--embeddings")?,
        None => Some(Format::Int8G32),
    };
    let format = |param: &Param| match param.role {
        Role::Norm | Role::Bias | Role::Conv => None,
        Role::Projection => layers,
        Role::Embedding | Role::Head => embeddings.filter(|_| layers.is_some()),
    };
    for param in &params(&config) {
        if let Some(format) = format(param) {
            format.check_row_len(&param.name, param.shape[1])?;
        }
    }
    if layers.is_none() && args.activations == Some(cli::Activations::Int8) {
        bail!(
            "--activations int8: a float model takes float activations; choose a packed --format, or leave it out"
        );
    }
    let source = json!({"method": "random", "shape": args.shape, "seed": args.seed});
    let random = Random { config, seed: args.seed };
    match layers {
        None => {
            write_float(&random, &args.out, &source)?;
            println!("wrote {}; read back and equal to the bit", args.out.display());
        }
        Some(_) => {
            let inputs = args.activations.map_or(Activations::Float, Activations::from);
            announce(&args.out, &write_packed(&random, &format, &args.out, inputs, source)?);
        }
    }
    Ok(Ending::Done)
}

fn write_float(random: &Random, out: &Path, source: &Value) -> anyhow::Result<()> {
    let mut writer = HfWriter::create(out, &random.config.to_json(), &[], FloatType::F16, source)?;
    let config = &random.config;
    random.each(&|_| None, &mut |param, tensor| Ok(writer.add_param(config, param, &tensor.floats)?))?;
    Ok(writer.finish()?)
}

fn write_packed(
    random: &Random,
    format: &(impl Fn(&Param) -> Option<Format> + Sync),
    out: &Path,
    inputs: Activations,
    source: Value,
) -> anyhow::Result<Manifest> {
    let mut writer = PackedWriter::create(out, &random.config.to_json(), &[], source)?;
    random.each(format, &mut |param, Tensor { floats, packed }| {
        let (name, shape) = (&param.name, &param.shape);
        match (packed, param.role) {
            (Some(packed), Role::Projection) => writer.packed(name, packed.as_ref(), inputs)?,
            (Some(packed), _) => writer.packed(name, packed.as_ref(), Activations::Float)?,
            (None, Role::Norm | Role::Bias | Role::Conv) => {
                writer.float(name, FloatType::F32, shape, &floats)?
            }
            (None, _) => writer.float(name, FloatType::F16, shape, &floats)?,
        }
        Ok(())
    })?;
    Ok(writer.finish()?)
}

/// Writes a model of two layers that runs in milliseconds, all of it in `format`.
pub fn tiny(format: Format, out: &Path) -> anyhow::Result<()> {
    let random = Random { config: TINY.config(), seed: 0 };
    let of_matrices = |param: &Param| (param.shape.len() == 2).then_some(format);
    write_packed(
        &random,
        &of_matrices,
        out,
        Activations::Float,
        json!({"method": "random", "shape": TINY.name}),
    )?;
    Ok(())
}

/// A named shape, or that of a `config.json` (or of the model directory that has one).
pub fn config(shape: &str) -> anyhow::Result<Config> {
    if let Some(named) = SHAPES.iter().find(|named| named.name == shape) {
        return Ok(named.config());
    }
    let path = Path::new(shape);
    match (path.is_dir(), path.exists()) {
        (true, _) => Ok(read_config(&path.join(CONFIG_FILE))?),
        (false, true) => Ok(read_config(path)?),
        (false, false) => bail!(
            "{shape}: no such shape and no such file; want {}, or the path of a config.json",
            SHAPES.map(|named| named.name).join(", ")
        ),
    }
}

/// A format, or none for float.
pub fn choice(spelling: &str) -> anyhow::Result<Option<Format>> {
    match spelling {
        "float" => Ok(None),
        _ => Ok(Some(spelling.parse().map_err(|e| anyhow!("{e} (or float)"))?)),
    }
}

/// The random model of a shape and a seed.
struct Random {
    config: Config,
    seed: u64,
}

/// One of its tensors.
struct Tensor {
    floats: Vec<f32>,
    packed: Option<Packed>,
}

impl Random {
    /// Gives every tensor, packed in its `format`, to `take` in the order of the forward pass.
    fn each(
        &self,
        format: &(impl Fn(&Param) -> Option<Format> + Sync),
        take: &mut impl FnMut(&Param, Tensor) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let params: Vec<(usize, Param)> = params(&self.config).into_iter().enumerate().collect();
        for some in params.chunks(AT_ONCE) {
            let tensor = |(at, param): &(usize, Param)| self.tensor(*at, param, format(param));
            let tensors: Vec<Tensor> = some.par_iter().map(tensor).collect::<anyhow::Result<_>>()?;
            for ((_, param), tensor) in some.iter().zip(tensors) {
                take(param, tensor)?;
            }
        }
        Ok(())
    }

    fn tensor(&self, at: usize, param: &Param, format: Option<Format>) -> anyhow::Result<Tensor> {
        let mut floats = random_values(param, at, self.config.layers, self.seed);
        floats.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
        let Some(format) = format else { return Ok(Tensor { floats, packed: None }) };
        let (rows, cols) = (param.shape[0], param.shape[1]);
        let scales = Scales::choose(format, ScaleRule::Absmax, &floats, rows, cols);
        let packed = pack(&param.name, format, &floats, rows, cols, &scales)?;
        Ok(Tensor { floats: Vec::new(), packed: Some(packed) })
    }
}

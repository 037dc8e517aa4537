//! `qat plan`: what a recipe or a model will take, before any of it is taken.
//!
//! Reads shapes and manifests, no weights. Invariant: nothing is written, and nothing is trained but for `--probe`.

mod running;
mod tiers;
mod training;

use std::path::Path;

use anyhow::{Context as _, bail};
use qat_hub::Part;
use qat_infer::{
    export::{self, Target},
    files::{Activations, CONFIG_FILE, MANIFEST_FILE, Manifest, PackedDir, Storage},
    metal,
    model::{Config, Param, Role},
    outline::Outline,
};
use qat_quant::{Format, kernels::FloatType};
use qat_train::{
    forecast::Shapes,
    recipe::{self, Choice, Plan},
    student::read_config,
};
use serde::Serialize;

use self::{
    running::Running,
    training::{Clock, Training},
};
use crate::{Ending, cli, hub, init, train};

/// What was planned.
#[derive(Debug, Serialize)]
struct Found {
    /// The recipe with its variant, or the model.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    training: Option<Training>,
    /// What ships, or is there.
    model: Running,
}

/// Runs the command.
pub fn run(args: &cli::Plan) -> anyhow::Result<Ending> {
    let is_recipe = args.target.extension().is_some_and(|ending| ending == "toml");
    let found = if is_recipe { of_recipe(args)? } else { vec![of_model(args)?] };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(Ending::Done);
    }
    for (at, Found { name, training, model }) in found.iter().enumerate() {
        let gap = if at > 0 { "\n" } else { "" };
        println!("{gap}# {name}\n");
        if let Some(training) = training {
            println!("{training}\n\nwhat ships\n");
        }
        println!("{model}");
    }
    Ok(Ending::Done)
}

fn of_recipe(args: &cli::Plan) -> anyhow::Result<Vec<Found>> {
    if args.format.is_some() || args.embeddings.is_some() {
        bail!("--format, --embeddings: a recipe says its formats; use --set quant.weights=…");
    }
    if args.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        bail!("--tokens-per-second: want a number above 0");
    }
    let device = training::device(&args.device).context("--device")?;
    let instead = args.shape.as_deref().map(init::config).transpose().context("--shape")?;
    let mut found = Vec::new();
    for mut named in train::chosen(recipe::load(&args.target, &args.sets)?, &args.variants)? {
        Plan::new(&named.recipe).with_context(|| args.target.display().to_string())?;
        let brought = hub::fetch(&mut named.recipe, || Ok(None), Part::Shape)?;
        let mut plan = Plan::new(&named.recipe)?;
        brought.put_into(&mut plan);
        let shapes = Shapes::of(&plan, instead.as_ref())?;
        let clock = match args.rate {
            Some(rate) => Clock::Rate(rate),
            None if args.probe => Clock::Probe,
            None => Clock::None,
        };
        let outline = shipped(&plan, &shapes.student)?;
        let none = export::Options::default();
        let (targets, options) =
            plan.export.as_ref().map_or((&[][..], &none), |plan| (&plan.targets, &plan.options));
        found.push(Found {
            name: named
                .variant
                .iter()
                .fold(args.target.display().to_string(), |name, v| format!("{name}, {v}")),
            training: Some(Training::of(&plan, &shapes, device, clock)?),
            model: Running::of(&outline, plan.quantization.activations, targets, options, &args.context)?,
        });
    }
    Ok(found)
}

/// What a recipe's export will hold.
fn shipped(plan: &Plan, config: &Config) -> anyhow::Result<Outline> {
    // Formats that the run will choose: as large as their budget, in the first of them that has as many bits.
    let rules = match &plan.mix {
        None => plan.quantization.rules.clone(),
        Some(mix) => {
            let bits = |format: &Format| format.bits_per_weight(1, format.block_len());
            let widest = mix.candidates.iter().copied().max_by(|a, b| bits(a).total_cmp(&bits(b)));
            let within = mix.candidates.iter().copied().filter(|format| bits(format) <= mix.target_bpw);
            let nearest = within.max_by(|a, b| bits(a).total_cmp(&bits(b))).or(widest);
            nearest.map_or(plan.quantization.rules.clone(), |format| {
                mix.with(plan.quantization.rules.clone(), format)
            })
        }
    };
    Ok(Outline::new(config.clone(), |param| stored(rules.choose(param)))?)
}

/// As exports store it.
fn stored(format: Choice) -> Storage {
    format.map_or(Storage::Float(FloatType::F32), Storage::Packed)
}

fn of_model(args: &cli::Plan) -> anyhow::Result<Found> {
    let unused = [
        ("--set", !args.sets.is_empty()),
        ("--variant", !args.variants.is_empty()),
        ("--shape", args.shape.is_some()),
        ("--probe", args.probe),
        ("--tokens-per-second", args.rate.is_some()),
    ];
    if let Some((flag, _)) = unused.iter().find(|(_, given)| *given) {
        bail!("{flag}: is for recipes (files called ….toml), and {} is none", args.target.display());
    }
    let (outline, activations) = outline(args)?;
    // Graphs of ONNX are known when they are written; the others refuse here the families and grids that they lack.
    let wide = export::Options { dtype: Some(FloatType::F32), ..Default::default() };
    let known = |target: &Target| {
        *target == Target::Onnx || target.bytes(&outline.config, &outline.tensors, &wide).is_some()
    };
    let fits = |target: &Target| known(target) && target.check(outline.tensors.iter().cloned()).is_ok();
    let targets: Vec<Target> = Target::ALL.into_iter().filter(fits).collect();
    let none = export::Options::default();
    Ok(Found {
        name: args.target.display().to_string(),
        training: None,
        model: Running::of(&outline, activations, &targets, &none, &args.context)?,
    })
}

/// A model that is there, or a shape in the formats that were asked for.
fn outline(args: &cli::Plan) -> anyhow::Result<(Outline, Activations)> {
    let target = &args.target;
    let is_model = target.is_dir() || qat_infer::gguf::at(target).is_some();
    if !is_model {
        let config = init::config(&target.to_string_lossy())?;
        let choice = |spelling: &Option<String>, default: Format| match spelling {
            Some(spelling) => init::choice(spelling),
            None => Ok(Some(default)),
        };
        let layers = choice(&args.format, Format::Int4G32).context("--format")?;
        let tables = choice(&args.embeddings, Format::Int8G32).context("--embeddings")?;
        let storage = |param: &Param| match param.role {
            Role::Norm | Role::Bias | Role::Conv => Storage::Float(FloatType::F32),
            Role::Projection => stored(layers),
            Role::Embedding | Role::Head => {
                stored(tables.filter(|_| layers.is_some() || args.embeddings.is_some()))
            }
        };
        return Ok((Outline::new(config, storage)?, Activations::Float));
    }
    if args.format.is_some() || args.embeddings.is_some() {
        bail!(
            "--format, --embeddings: {} has its formats; name its {CONFIG_FILE} to plan it in others",
            target.display()
        );
    }
    crate::no_run(target)?;
    if PackedDir::is_at(target) {
        return of_packed(target);
    }
    let model = metal::Model::open(target)?;
    let stored: std::collections::BTreeMap<String, Storage> =
        model.decoder.matrices().map(|matrix| (matrix.name().to_owned(), storage_of(matrix))).collect();
    let storage = |param: &Param| stored.get(&param.name).copied().unwrap_or(Storage::Float(FloatType::F32));
    Ok((Outline::new(model.decoder.config.clone(), storage)?, Activations::Float))
}

fn storage_of(matrix: &metal::Matrix) -> Storage {
    use qat_quant::kernels::metal::Storage as OnGpu;
    match matrix.storage() {
        OnGpu::Packed(format) => Storage::Packed(format),
        OnGpu::Float(float) => Storage::Float(float),
    }
}

fn of_packed(dir: &Path) -> anyhow::Result<(Outline, Activations)> {
    let manifest = Manifest::read(&dir.join(MANIFEST_FILE))?;
    let config = read_config(&dir.join(CONFIG_FILE))?;
    let entry = |param: &Param| manifest.tensors.get(&param.name);
    let rounded = manifest.tensors.values().any(|entry| entry.activations == Activations::Int8Token);
    let storage = |param: &Param| entry(param).map_or(Storage::Float(FloatType::F32), |entry| entry.storage);
    let activations = if rounded { Activations::Int8Token } else { Activations::Float };
    Ok((Outline::new(config, storage)?, activations))
}

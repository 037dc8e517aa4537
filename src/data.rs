//! `qat data`: the text of a recipe, or of files, as its student sees it.

mod show;
mod text;
mod tokenize;

use std::path::Path;

use anyhow::bail;
use qat_hub::Part;
use qat_infer::FloatModel;
use qat_train::{
    device,
    ranks::Ranks,
    recipe::{self, Plan, Recipe},
    trainer::{Job, Start},
};
use serde_json::json;

use crate::{Ending, cli, hub, train};

/// Longest window unless one is asked for.
const LONGEST_DEFAULT: usize = 512;

/// Runs the command.
pub fn run(args: &cli::Data) -> anyhow::Result<Ending> {
    match &args.command {
        cli::DataCommand::Show(args) => show::run(args),
        cli::DataCommand::Tokenize(args) => tokenize::run(args),
        cli::DataCommand::Text(args) => text::run(args),
    }
}

/// The plan whose text is meant, with everything on this machine.
fn plan(args: &cli::DataText) -> anyhow::Result<Plan> {
    let mut recipe = recipe(args)?;
    Plan::new(&recipe)?;
    let brought = hub::fetch(&mut recipe, || Ok(None), Part::Whole)?;
    let mut plan = Plan::new(&recipe)?;
    brought.put_into(&mut plan);
    Ok(plan)
}

/// The job of `plan`, as far as its text goes.
fn job<'a>(plan: &'a Plan, cache: &'a Path) -> anyhow::Result<Job<'a>> {
    let device = device::Choice::Cpu.open()?.device;
    Ok(Job { plan, out: Path::new(""), cache, device, start: Start::Fresh, ranks: Ranks::alone() })
}

/// The recipe that is looked at, or one of the files.
fn recipe(args: &cli::DataText) -> anyhow::Result<Recipe> {
    let [first, ..] = args.targets.as_slice() else { bail!("name a recipe, or files of data") };
    if Path::new(first).extension().is_some_and(|ending| ending == "toml") {
        return of_recipe(Path::new(first), args);
    }
    if !args.sets.is_empty() || args.variant.is_some() {
        bail!("--set, --variant: are for recipes (files called ….toml), and {first} is none");
    }
    let Some(model) = &args.model else {
        bail!("{first}: say whose tokens it becomes with --model DIR, or name a recipe");
    };
    let longest = FloatModel::open(model)?.config.max_position_embeddings;
    let rows = |name: &String| [".jsonl", ".parquet"].iter().any(|ending| name.ends_with(ending));
    let is_chat = match args.format {
        Some(format) => format == cli::DataFormat::Chat,
        None => args.targets.iter().all(rows),
    };
    let mut recipe = json!({
        "student": {"from": model},
        "quant": {"weights": "float"},
        "data": {"train": args.targets, "ctx": args.ctx.unwrap_or(longest.min(LONGEST_DEFAULT))},
        "loss": {"cross_entropy": 1.0},
        "train": {"steps": 1, "batch": 1},
    });
    if is_chat {
        recipe["data"]["format"] = "chat".into();
    }
    for (key, value) in [("template", &args.template), ("learn", &args.learn)] {
        if let Some(value) = value {
            recipe["data"][key] = value.as_str().into();
        }
    }
    Ok(serde_json::from_value(recipe)?)
}

fn of_recipe(path: &Path, args: &cli::DataText) -> anyhow::Result<Recipe> {
    let unused = [
        ("--model", args.model.is_some()),
        ("--format", args.format.is_some()),
        ("--template", args.template.is_some()),
        ("--learn", args.learn.is_some()),
        ("--ctx", args.ctx.is_some()),
    ];
    if let Some((flag, _)) = unused.iter().find(|(_, given)| *given) {
        bail!("{flag}: a recipe says it itself; use --set data.…");
    }
    if args.targets.len() > 1 {
        bail!("{}: one recipe at a time", path.display());
    }
    let wanted: Vec<String> = args.variant.iter().cloned().collect();
    let mut named = train::chosen(recipe::load(path, &args.sets)?, &wanted)?;
    if named.len() > 1 {
        let names: Vec<&str> = named.iter().filter_map(|named| named.variant.as_deref()).collect();
        bail!("{}: choose one with --variant: {}", path.display(), names.join(", "));
    }
    Ok(named.remove(0).recipe)
}

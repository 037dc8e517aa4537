//! `qat init RECIPE.toml`: a commented recipe for a model and a text, asked for or given as flags.
//!
//! Knows no training: what a recipe may hold, `qat_train::recipe` says, and reads each one back before it is written. Invariant: nothing
//! is overwritten, and what was written loads.

use std::{
    io::{BufRead as _, IsTerminal as _, Write as _, stderr, stdin},
    path::Path,
};

use anyhow::{Context as _, anyhow, bail};
use minijinja::{Environment, context};
use qat_hub::Reference;
use qat_infer::{
    FloatModel,
    export::Target,
    files::write_file_atomic,
    model::{Config, Role, params},
};
use qat_quant::Format;
use qat_train::recipe;
use serde::Serialize;

use super::config;
use crate::{Ending, cli, hub};

const TEMPLATE: &str = include_str!("recipe.toml.jinja");
/// Longest window of a recipe that nobody chose one for.
const CONTEXT: usize = 1024;
/// Tokens of a step.
const STEP: usize = 16_384;
/// Parameters from which on the teacher's predictions are kept and activations computed twice.
const LARGE: u64 = 100_000_000;

/// What a recipe is made of.
struct Wanted {
    model: String,
    train: Vec<String>,
    valid: Vec<String>,
    is_chat: bool,
    formats: Vec<Format>,
    targets: Vec<String>,
}

/// How a format is trained.
#[derive(Serialize)]
struct Variant {
    format: String,
    lr: &'static str,
    scale_lr: &'static str,
    steps: usize,
    warmup: usize,
}

impl Variant {
    /// Rates as published runs and docs/results.md have them: the coarser the grid, the further weights have to go.
    fn of(format: Format) -> Self {
        let (low, high) = format.levels();
        let (lr, scale_lr, steps, warmup) = match high - low {
            2 => ("3e-4", "1e-3", 6000, 200),
            3 => ("1e-4", "1e-3", 3000, 0),
            7 => ("5e-5", "5e-4", 2000, 0),
            _ => ("2e-5", "5e-4", 1000, 0),
        };
        Self { format: format.to_string(), lr, scale_lr, steps, warmup }
    }
}

/// Runs the command.
pub fn run(args: &cli::Init, path: &Path) -> anyhow::Result<Ending> {
    if path.exists() {
        bail!("{}: is there already; name another file, or delete it", path.display());
    }
    let wanted = Wanted::of(args)?;
    let shape = shape(&wanted.model).context("--model")?;
    for format in &wanted.formats {
        for param in params(&shape).iter().filter(|param| param.role == Role::Projection) {
            format.check_row_len(&param.name, param.shape[1]).context("--format")?;
        }
    }
    let text = wanted.recipe(&shape, path)?;
    recipe::parse(&text, path, &[]).context("a recipe of ours, which is a mistake of qat")?;
    write_file_atomic(path, text.as_bytes())?;
    let path = path.display();
    println!("wrote {path}; it says what its keys mean. Next:\n");
    println!("  qat plan {path}        memory, time, and which devices the result fits");
    println!("  qat data show {path}   the text as the model sees it");
    println!("  qat train {path}");
    Ok(Ending::Done)
}

/// The shape of the model, of which no weights are needed.
fn shape(model: &str) -> anyhow::Result<Config> {
    if Reference::is(model) {
        let mut place = model.into();
        hub::shape(&mut place)?;
        return config(&place.display().to_string());
    }
    Ok(FloatModel::open(Path::new(model))?.config)
}

impl Wanted {
    fn of(args: &cli::Init) -> anyhow::Result<Self> {
        let one = |list: &[String]| (!list.is_empty()).then(|| list.join(" "));
        let model =
            ask("--model", "Model: a folder, a GGUF file or hf://owner/name", args.model.clone(), None)?;
        let train =
            ask("--data", "Text to train on: files, globs or hf://datasets/…", one(&args.data), None)?;
        let valid = match (&*args.valid, args.data.is_empty() && stdin().is_terminal()) {
            ([], true) => {
                ask("--valid", "Other text of that kind, to score with (nothing: no scores)", None, Some(""))?
            }
            (given, _) => given.join(" "),
        };
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let (train, valid) = (words(&train), words(&valid));
        let is_chat = args.chat || train.iter().any(|file| has_conversations(Path::new(file)));
        let format = args.format.clone();
        let formats = ask("--format", "Formats, such as int4-g32 or ternary-g64", format, Some("int4-g32"))?;
        let targets = ask("--target", "Written as: qat, mlx, gguf, …", one(&args.target), Some("qat"))?;
        let separate = |text: &str| words(&text.replace(',', " "));
        let formats: Vec<Format> = separate(&formats)
            .iter()
            .map(|spelling| spelling.parse().map_err(|e| anyhow!("--format: {e}")))
            .collect::<anyhow::Result<_>>()?;
        let targets = separate(&targets);
        for target in targets.iter().filter(|target| *target != "qat") {
            target.parse::<Target>().context("--target")?;
        }
        if train.is_empty() || formats.is_empty() || targets.is_empty() {
            bail!("--data, --format and --target want at least one each");
        }
        Ok(Self { model, train, valid, is_chat, formats, targets })
    }

    fn recipe(&self, shape: &Config, path: &Path) -> anyhow::Result<String> {
        let name = self.model.trim_end_matches('/').rsplit('/').next().unwrap_or(&self.model);
        let parameters: u64 =
            params(shape).iter().map(|param| param.shape.iter().product::<usize>() as u64).sum();
        let ctx = shape.max_position_embeddings.min(CONTEXT);
        let batch = match parameters {
            0..=50_000_000 => 16,
            50_000_001..=200_000_000 => 8,
            200_000_001..=500_000_000 => 4,
            _ => 2,
        };
        let batch = batch.min((STEP / ctx).max(1));
        let formats: Vec<String> = self.formats.iter().map(Format::to_string).collect();
        let variants: Vec<Variant> = self.formats.iter().map(|format| Variant::of(*format)).collect();
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let list = |texts: &[String]| toml::Value::from(texts.to_vec()).to_string();
        let rendered = Environment::new().render_str(
            TEMPLATE,
            context! {
                name => one_line(name),
                path => one_line(&path.display().to_string()),
                model => quoted(&self.model),
                cache => quoted(&format!("teacher-cache/{name}")),
                formats,
                train => list(&self.train),
                valid => (!self.valid.is_empty()).then(|| list(&self.valid)),
                is_chat => self.is_chat,
                is_large => parameters >= LARGE,
                ctx,
                batch,
                accumulate => (STEP / (batch * ctx)).max(1),
                targets => list(&self.targets),
                first => Variant::of(self.formats[0]),
                variants => if variants.len() > 1 { variants } else { Vec::new() },
            },
        );
        Ok(rendered.context("the recipe's text")? + "\n")
    }
}

/// `text` fit for a comment.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Whether the first row of a file of JSON Lines has questions and answers in it.
fn has_conversations(file: &Path) -> bool {
    let mut line = String::new();
    let is_lines = file.extension().is_some_and(|extension| extension == "jsonl");
    let Some(opened) = is_lines.then(|| std::fs::File::open(file).ok()).flatten() else { return false };
    // A line without end is no row.
    let read = std::io::BufReader::new(std::io::Read::take(opened, 1 << 20)).read_line(&mut line);
    let row: serde_json::Value = read.ok().and_then(|_| serde_json::from_str(&line).ok()).unwrap_or_default();
    ["messages", "conversations", "instruction", "prompt", "question"]
        .iter()
        .any(|key| row.get(key).is_some())
}

/// What was given as `flag`, or is answered to `question`; without a terminal to ask on, the default.
fn ask(flag: &str, question: &str, given: Option<String>, default: Option<&str>) -> anyhow::Result<String> {
    if let Some(given) = given {
        return Ok(given);
    }
    if !stdin().is_terminal() {
        let missing = || format!("{flag} is missing, and there is no terminal to ask on. {question}");
        return default.map(str::to_owned).with_context(missing);
    }
    loop {
        let shown =
            default.filter(|default| !default.is_empty()).map_or(String::new(), |d| format!(" [{d}]"));
        eprint!("{question}{shown}: ");
        stderr().flush()?;
        let mut line = String::new();
        if stdin().lock().read_line(&mut line)? == 0 {
            bail!("{flag}: no answer; nothing was written");
        }
        match (line.trim(), default) {
            ("", Some(default)) => return Ok(default.to_owned()),
            ("", None) => {}
            (answer, _) => return Ok(answer.to_owned()),
        }
    }
}

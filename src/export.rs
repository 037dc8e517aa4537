//! `qat export`: a run, a float model or a packed one becomes a directory that ships.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use qat_infer::{
    FloatModel,
    eval::Report,
    export::{Export, Options, Target, Written},
    files::{Activations, Manifest, PackedDir, read_json},
};
use qat_train::{
    device,
    export::{Shipment, is_run},
    ranks::Ranks,
    recipe::{Plan, Quantization, Rounding, Rules},
    trainer::{Job, Start},
};
use serde_json::json;

use crate::{Ending, cli, table};

/// Spelling of the packed format.
const PACKED: &str = "qat";

/// Tokens of a window of calibration text, unless the model's context is shorter.
const CALIBRATION_CTX: usize = 512;

/// Runs the command.
pub fn run(args: &cli::Export) -> anyhow::Result<Ending> {
    if args.format == PACKED {
        return pack(args);
    }
    let target: Target = args.format.parse().context("--format")?;
    let dtype = args.dtype.as_deref().map(str::parse).transpose().context("--dtype")?;
    let options = Options { dtype, tq1: args.tq1, context: args.context };
    let report = report(args)?;
    let job = Export { target, options: &options, requantize: args.requantize, report: report.as_ref() };
    let staged = Export::stage(&args.out)?;
    let written = if PackedDir::is_at(&args.from) {
        refuse_rounding(args, "is packed already")?;
        job.run(&args.from, staged)?
    } else {
        let packed = staged.scratch(PACKED);
        shipment(args)?.write(&packed)?;
        job.run(&packed, staged)?
    };
    announce_files(target, &written);
    Ok(Ending::Done)
}

fn pack(args: &cli::Export) -> anyhow::Result<Ending> {
    let unused = [
        ("--requantize", args.requantize),
        ("--tq1", args.tq1),
        ("--dtype", args.dtype.is_some()),
        ("--context", args.context.is_some()),
        ("--report", args.report.is_some()),
    ];
    if let Some((flag, _)) = unused.into_iter().find(|(_, given)| *given) {
        bail!("{flag}: is for the files of other runtimes; leave it out with --format qat");
    }
    announce(&args.out, &shipment(args)?.write(&args.out)?);
    Ok(Ending::Done)
}

fn shipment(args: &cli::Export) -> anyhow::Result<Shipment> {
    if is_run(&args.from) { of_run(args) } else { of_model(args) }
}

fn of_run(args: &cli::Export) -> anyhow::Result<Shipment> {
    refuse_rounding(args, "is a run: its formats and scales were trained")?;
    let (shipment, damaged) = Shipment::of_run(&args.from)?;
    for problem in damaged {
        eprintln!("passed over a damaged checkpoint: {problem}");
    }
    Ok(shipment)
}

fn refuse_rounding(args: &cli::Export, why: &str) -> anyhow::Result<()> {
    if args.weights.is_none() {
        return Ok(());
    }
    let from = args.from.display();
    let instead = match is_run(&args.from) {
        true => {
            format!("round its float start instead ({from}/student), or train with another quant.weights")
        }
        false => "name the float model it was made of instead".to_owned(),
    };
    bail!(
        "{from} {why}, and --weights, --embeddings, --scales and --pad-intermediate would replace them; {instead}"
    )
}

fn of_model(args: &cli::Export) -> anyhow::Result<Shipment> {
    let Some(weights) = &args.weights else {
        // The directory's own error comes first: it may be no model at all.
        FloatModel::open(&args.from)?;
        bail!("{} is a float model: say how to round it, such as --weights int4-g32", args.from.display());
    };
    let embeddings = args.embeddings.as_deref().unwrap_or("int8-g32");
    let rules = Rules::new(weights, embeddings, embeddings, &Default::default())
        .context("--weights, --embeddings")?;
    let rounding: Rounding = args.scales.as_deref().unwrap_or("mse").parse().context("--scales")?;
    if args.pad_intermediate == Some(0) {
        bail!("--pad-intermediate 0: want a multiple of at least 1, such as 64");
    }
    let quantization = Quantization::untrained(rules, rounding, Activations::Float);
    match (rounding, args.calibration.is_empty()) {
        (Rounding::Gptq, false) => by_gptq(args, weights, quantization),
        (Rounding::Gptq, true) => bail!(
            "--scales gptq: rounds by what the inputs of each matrix are; name text to measure them on with --calibration TEXT"
        ),
        (Rounding::Rule(rule), false) => {
            bail!("--calibration: only gptq reads it; --scales {rule} looks at the weights alone")
        }
        (Rounding::Rule(_), true) => Ok(Shipment::of_model(&args.from, quantization, args.pad_intermediate)?),
    }
}

/// The start of a run whose recipe says what the flags say.
fn by_gptq(args: &cli::Export, weights: &str, quantization: Quantization) -> anyhow::Result<Shipment> {
    let ctx = FloatModel::open(&args.from)?.config.max_position_embeddings.min(CALIBRATION_CTX);
    let mut recipe = json!({
        "student": {"from": args.from},
        "quant": {"weights": weights},
        "data": {"train": args.calibration, "ctx": ctx},
        "loss": {"cross_entropy": 1.0},
        "train": {"steps": 1, "batch": 8},
    });
    if let Some(multiple) = args.pad_intermediate {
        recipe["student"]["pad_intermediate"] = multiple.into();
    }
    if let Some(windows) = args.calibration_windows {
        recipe["quant"]["calibration_windows"] = windows.into();
    }
    let plan = Plan::new(&serde_json::from_value(recipe)?)?;
    let job = Job {
        plan: &plan,
        out: &args.out,
        cache: &crate::cache_dir(),
        device: device::Choice::Cpu.open()?.device,
        start: Start::Fresh,
        ranks: Ranks::alone(),
    };
    Ok(Shipment::by_gptq(&args.from, quantization, &job)?)
}

/// What the model was measured to be: as the user names it, or as the run has it.
fn report(args: &cli::Export) -> anyhow::Result<Option<Report>> {
    let read = |path: &Path| read_json::<Report>(path).context("--report");
    if let Some(path) = &args.report {
        return Ok(Some(read(path)?));
    }
    let of_run: PathBuf = args.from.join("report.json");
    Ok(if is_run(&args.from) && of_run.is_file() { Some(read(&of_run)?) } else { None })
}

/// Says what was packed.
pub fn announce(out: &Path, manifest: &Manifest) {
    println!(
        "wrote {} ({}, {:.2} bits per weight with embeddings, scales and norms); read back and equal to the bit",
        out.display(),
        table::bytes(manifest.file_bytes),
        manifest.bits_per_weight
    );
}

/// Says what was written for a runtime.
pub fn announce_files(target: Target, written: &Written) {
    if let Some(requantized) = &written.requantized {
        println!("rounded again: {requantized}");
    }
    println!(
        "wrote {} ({target}, {}); read back and equal to the bit",
        written.path.display(),
        table::bytes(written.bytes)
    );
}

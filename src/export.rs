//! `qat export`: a run or a float model becomes a directory that ships.

use anyhow::{Context as _, bail};
use qat_infer::files::Activations;
use qat_quant::kernels::FloatType;
use qat_train::{
    export::{Shipment, Written, is_run},
    recipe::{ExportFormat, Rules},
    student::Quantization,
};

use crate::{Ending, cli, table};

/// Runs the command.
pub fn run(args: &cli::Export) -> anyhow::Result<Ending> {
    let format: ExportFormat = args.format.parse().context("--format")?;
    let shipment = if is_run(&args.from) { of_run(args)? } else { of_model(args)? };
    announce(&shipment.write(format, FloatType::F32, &args.out)?);
    Ok(Ending::Done)
}

fn of_run(args: &cli::Export) -> anyhow::Result<Shipment> {
    if args.weights.is_some() {
        bail!(
            "{} is a run: its formats and scales were trained, and --weights, --embeddings, --scales and --pad-intermediate would \
             replace them; round its float start instead ({}/student), or train with another quant.weights",
            args.from.display(),
            args.from.display()
        );
    }
    let (shipment, damaged) = Shipment::of_run(&args.from)?;
    for problem in damaged {
        eprintln!("passed over a damaged checkpoint: {problem}");
    }
    Ok(shipment)
}

fn of_model(args: &cli::Export) -> anyhow::Result<Shipment> {
    let Some(weights) = &args.weights else {
        // The directory's own error comes first: it may be no model at all.
        qat_infer::files::HfDir::open(&args.from)?;
        bail!("{} is a float model: say how to round it, such as --weights int4-g32", args.from.display());
    };
    let embeddings = args.embeddings.as_deref().unwrap_or("int8-g32");
    let rules = Rules::new(weights, embeddings, embeddings, &Default::default())
        .context("--weights, --embeddings")?;
    let rule = args.scales.as_deref().unwrap_or("mse").parse().context("--scales")?;
    if args.pad_intermediate == Some(0) {
        bail!("--pad-intermediate 0: want a multiple of at least 1, such as 64");
    }
    let quantization = Quantization::untrained(rules, rule, Activations::Float);
    Ok(Shipment::of_model(&args.from, quantization, args.pad_intermediate)?)
}

/// Says what was written.
pub fn announce(written: &Written) {
    let size = written.manifest.as_ref().map_or(String::new(), |m| {
        format!(
            " ({}, {:.2} bits per weight with embeddings, scales and norms)",
            table::bytes(m.file_bytes),
            m.bits_per_weight
        )
    });
    println!("wrote {}{size}; read back and equal to the bit", written.path.display());
}

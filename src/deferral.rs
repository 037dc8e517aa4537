//! `qat eval --deferral`: when to ask a larger model, as a table and as the file that `--confidence` reads.

use std::path::Path;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use qat_infer::eval::{Deferral, DeferralOptions, find_deferral};
use qat_infer::{Chosen, with_runtime};

use crate::{Ending, cli, evaluate, table};

/// Shares of answers in the table.
const SHOWN: usize = 4;

/// Runs the command.
pub fn run(args: &cli::Eval, file: &Path, chosen: &Chosen) -> anyhow::Result<Ending> {
    let Some(against) = &args.against else { bail!("--deferral: wants --against LARGER") };
    let text = evaluate::text(&args.data)?;
    let options = DeferralOptions {
        keep: args.deferral.keep,
        prompts: args.deferral.prompts.get(),
        kv: args.kv,
        activations: args.activations.chosen(),
    };
    let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} answers, {eta} left")?;
    let bar = ProgressBar::new(0).with_style(style).with_prefix(format!("asking {}", args.dir.display()));
    let mut progress = |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let found = with_runtime!(chosen, runtime => {
        find_deferral(runtime, &args.dir, against, &text.text, &options, &mut progress)
    });
    bar.finish_and_clear();
    let found = found?;
    evaluate::write_json(file, &found)?;
    print(&found, file);
    Ok(Ending::Done)
}

fn print(found: &Deferral, file: &Path) {
    println!(
        "{} answers of up to {} tokens; without asking, {:.1} % of their tokens are the larger model's.\n",
        found.answers,
        found.tokens,
        100.0 * found.quality
    );
    let shares: Vec<String> =
        (1..=SHOWN).map(|at| format!("quality of the surest {} %", 100 * at / SHOWN)).collect();
    let mut header = vec!["measure", "mean over shares"];
    header.extend(shares.iter().map(String::as_str));
    let mut rows = table::with_header(&header, &[0]);
    for measured in &found.measures {
        let points = (1..=SHOWN).map(|at| {
            let point = measured.curve.get(measured.curve.len() * at / SHOWN - 1);
            point.map_or(String::new(), |point| format!("{:.1} %", 100.0 * point.quality))
        });
        let area = format!("{:.1} %", 100.0 * measured.area_unseen);
        rows.add_row([measured.measure.name().to_owned(), area].into_iter().chain(points));
    }
    println!("{rows}\n");
    let name = found.measure.name();
    match found.threshold {
        None => println!("{:.1} % are kept without ever asking.", 100.0 * found.keep),
        Some(f64::MAX) => {
            println!("No answer is sure enough to keep {:.1} %: always ask.", 100.0 * found.keep)
        }
        Some(threshold) => println!(
            "Ask the larger model where {name} is below {threshold:.4}: {:.1} % are answered here, and {:.1} ± {:.1} % kept ({:.1} % were \
             to be; half of the answers chose, the others say so).",
            100.0 * found.answered,
            100.0 * found.kept,
            100.0 * found.kept_se,
            100.0 * found.keep
        ),
    }
    println!("wrote {}; qat generate and qat chat read it with --confidence", file.display());
}

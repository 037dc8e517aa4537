//! What came out: quality against size, beside the float model and beside rounding without training.

use qat_infer::eval::Report;

use crate::{
    report::{
        axis::Spread,
        charts::{Point, colour, points},
        page::{Figure, Line, Section, Table},
        scores::{GateLine, Kind},
        svg::Caption,
    },
    table::{COMPARISON, Row},
};

/// The part about what was scored.
pub fn section(rows: &[(Kind, Row)], gates: &[GateLine]) -> Option<Section> {
    let (_, trained) = rows.last()?;
    let mut tables = vec![table(rows)];
    tables.extend(of_gates(gates));
    let r = &trained.report;
    let mut words = vec![format!(
        "Scored on {} tokens of text that training never saw ({} windows of {} tokens). Perplexity: between how many equally likely tokens \
         the model wavers. KL: how far its predictions are from the float model's, in nats per token. Both are better when lower. Errors are \
         standard errors.",
        crate::table::count(r.tokens as u64),
        r.windows,
        r.ctx
    )];
    if let Some(floor) = r.entropy_floor_nats {
        words.push(format!(
            "No model can have a perplexity below {:.3} on this text: its source is known.",
            floor.exp()
        ));
    }
    Some(Section {
        id: "quality",
        title: "Quality against size".to_owned(),
        words,
        figures: figures(
            &rows.iter().map(|(kind, row)| (*kind, row, of_kind(*kind))).collect::<Vec<_>>(),
            &[],
            KINDS,
        ),
        tables,
        ..Section::default()
    })
}

/// What the colours of [`of_kind`] mean.
const KINDS: &str = "Grey: the float model. Orange: the same grid, rounded without training. Blue: trained. The gap between orange and blue is \
                     what training is for.";

/// Everything that was scored, line by line.
pub fn table(rows: &[(Kind, Row)]) -> Table {
    let line =
        |(kind, row): &(Kind, Row)| Line { strong: *kind == Kind::Trained, cells: row.cells().to_vec() };
    Table {
        header: COMPARISON.map(str::to_owned).to_vec(),
        rows: rows.iter().map(line).collect(),
        ..Table::default()
    }
}

/// A model in the pictures: what it is, what it scored, and its colour.
pub type Drawn<'a> = (Kind, &'a Row, String);

/// Perplexity and KL against the size of the file. Where there is a `legend`, it has the names, and what was only rounded is a ring; `told` says
/// what the colours mean.
pub fn figures(rows: &[Drawn], legend: &[(String, String)], told: &str) -> Vec<Figure> {
    if rows.len() < 2 {
        return Vec::new();
    }
    let place = |(kind, row, colour): &Drawn, (y, error): (f64, f64)| Point {
        name: row.name.clone(),
        x: row.report.file_bytes as f64 / MEGABYTE,
        y,
        error,
        colour: colour.clone(),
        hollow: *kind == Kind::Rounded && !legend.is_empty(),
    };
    let all: Vec<Point> = rows.iter().map(|row| place(row, perplexity(&row.1.report))).collect();
    let x = "file, MB; further left is better";
    let caption = Caption { title: "Perplexity against size", y: "lower is better", x };
    let mut figures = vec![Figure {
        name: "perplexity-size".to_owned(),
        svg: points(caption, &all, Spread::Ratios, legend),
        told: format!("{told} Bars: standard error of the difference from the float model."),
    }];
    // A float model is at no distance from itself.
    let distance = |(kind, row, _): &Drawn| match kind {
        Kind::Reference => Some((0.0, 0.0)),
        _ => row.report.kl_mean.zip(row.report.kl_se),
    };
    let apart: Vec<Point> = rows.iter().filter_map(|row| distance(row).map(|kl| place(row, kl))).collect();
    if apart.iter().any(|point| point.y > 0.0) {
        let y = "KL, nats per token; lower is better";
        figures.push(Figure {
            name: "kl-size".to_owned(),
            svg: points(Caption { title: "Distance from the float model", y, x }, &apart, Spread::FromZero, legend),
            told: "KL sees all that a model predicts; perplexity sees only what it gives to the token that came.".to_owned(),
        });
    }
    figures
}

/// Perplexity with the error of what it is above the reference's, which is measured token by token and so is far smaller than its own.
fn perplexity(r: &Report) -> (f64, f64) {
    (r.perplexity, r.delta_ln_ppl_se.map_or(0.0, |error| r.perplexity * error))
}

/// Bytes of the unit of the pictures.
const MEGABYTE: f64 = 1e6;

/// Grey for a reference, orange for what was rounded, blue for what was trained.
fn of_kind(kind: Kind) -> String {
    match kind {
        Kind::Reference => "n".to_owned(),
        Kind::Rounded => colour(1),
        Kind::Trained => colour(0),
    }
}

fn of_gates(gates: &[GateLine]) -> Option<Table> {
    let line = |gate: &GateLine| Line {
        strong: false,
        cells: vec![
            gate.gate.clone(),
            format!("{:.6}", gate.value),
            if gate.passed { "passed" } else { "FAILED" }.to_owned(),
        ],
    };
    (!gates.is_empty()).then(|| Table {
        title: "Gates of the recipe".to_owned(),
        header: ["condition", "measured", "result"].map(str::to_owned).to_vec(),
        rows: gates.iter().map(line).collect(),
        ..Table::default()
    })
}

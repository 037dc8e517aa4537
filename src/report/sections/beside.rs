//! Runs beside each other: what they scored, how they went, and in which keys their recipes differ.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    report::{
        axis::{Spread, number},
        charts::{Curve, colour},
        curves::{Curves, Quantity},
        page::{Figure, Line, Page, Section, Table},
        run::Run,
        scores::Kind,
        thin::Points,
    },
    table::{self, Row},
};

use super::{
    duration,
    quality::{self, Drawn},
    training::{self, LEARNING_RATE, SPEED, Words, figure},
};

/// The page of several runs.
pub fn beside(runs: &[Run]) -> Page {
    let rows = all_rows(runs);
    let summary = Section {
        id: "runs",
        title: "How they went".to_owned(),
        words: vec![LOSSES.to_owned()],
        tables: vec![table_of(&PROGRESS, progress(runs), false)],
        ..Section::default()
    };
    let training = Section {
        id: "training",
        title: "Training".to_owned(),
        figures: figures(runs),
        ..Section::default()
    };
    let different = differences(runs);
    let recipes = (!different.is_empty()).then(|| {
        let mut header = vec!["key"];
        header.extend(runs.iter().map(|run| run.name.as_str()));
        Section {
            id: "recipes",
            title: "Where the recipes differ".to_owned(),
            tables: vec![table_of(&header, different, true)],
            ..Section::default()
        }
    });
    Page {
        title: format!("{} runs beside each other", runs.len()),
        about: vec![runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(" · ")],
        sections: [Some(summary), quality(runs, &rows), Some(training), recipes]
            .into_iter()
            .flatten()
            .collect(),
        footer: vec![format!("Written by qat {}: qat compare … --html FILE.", env!("CARGO_PKG_VERSION"))],
        ..Page::default()
    }
}

/// What the losses of a comparison are.
const LOSSES: &str = "Losses in nats per token, lower is better; of runs that learn by different losses only what is held out can be compared.";

fn quality(runs: &[Run], rows: &[(Option<usize>, Kind, Row)]) -> Option<Section> {
    let drawn: Vec<Drawn> =
        rows.iter().map(|(run, kind, row)| (*kind, row, run.map_or("n".to_owned(), colour))).collect();
    let mut legend: Vec<_> =
        runs.iter().enumerate().map(|(at, run)| (run.name.clone(), colour(at))).collect();
    if drawn.iter().any(|(kind, ..)| *kind == Kind::Reference) {
        legend.push(("float model".to_owned(), "n".to_owned()));
    }
    (!rows.is_empty()).then(|| Section {
        id: "quality",
        title: "Quality against size".to_owned(),
        words: vec![SCORES.to_owned()],
        figures: quality::figures(
            &drawn,
            &legend,
            "A dot is a run as it ships, a ring its start, rounded without training.",
        ),
        tables: vec![quality::table(
            &rows.iter().map(|(_, kind, row)| (*kind, row.clone())).collect::<Vec<_>>(),
        )],
        ..Section::default()
    })
}

/// What the scores of a comparison are.
const SCORES: &str = "Perplexity and KL (the distance from the float model's predictions) are better when lower. Runs that were scored on \
                      different texts or windows can't be told apart by them.";

/// What all runs scored, with the number of the run that it belongs to; a reference of several runs once, and of none.
pub fn all_rows(runs: &[Run]) -> Vec<(Option<usize>, Kind, Row)> {
    let mut rows: Vec<(Option<usize>, Kind, Row)> = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        for (kind, row) in run.rows(&format!("{}: ", run.name)) {
            // Speed is measured anew each time; what a model is and scores is not.
            let same = |other: &Row| {
                let told =
                    |row: &Row| (row.name.clone(), row.report.file_bytes, row.report.nll_mean.to_bits());
                told(other) == told(&row)
            };
            match kind {
                Kind::Reference if rows.iter().any(|(run, _, other)| run.is_none() && same(other)) => {}
                Kind::Reference => rows.push((None, kind, row)),
                _ => rows.push((Some(at), kind, row)),
            }
        }
    }
    rows
}

/// Columns of [`progress`].
pub const PROGRESS: [&str; 9] = [
    "run",
    "layers",
    "steps",
    "tokens",
    "time",
    "tokens/s",
    "loss at the end",
    "held-out KL",
    "held-out cross entropy",
];

/// How each run went, in a line.
pub fn progress(runs: &[Run]) -> Vec<Vec<String>> {
    let last = |points: &Points| points.last().map_or("–".to_owned(), |p| number(p[1]));
    let line = |run: &Run| {
        let log = &run.curves;
        let steps = match run.steps() {
            Some(steps) if steps != log.step => format!("{} of {steps}", log.step),
            _ => log.step.to_string(),
        };
        vec![
            run.name.clone(),
            run.recipe.as_ref().map_or("–".to_owned(), |recipe| recipe.quant.weights.clone()),
            steps,
            table::count(log.tokens),
            duration(log.seconds),
            number(log.tokens as f64 / log.seconds.max(1e-9)),
            last(&log.loss),
            last(&log.valid_kl),
            last(&log.valid_cross_entropy),
        ]
    };
    runs.iter().map(line).collect()
}

/// Keys whose values aren't the same in all recipes that are known: key, then the value of each run.
pub fn differences(runs: &[Run]) -> Vec<Vec<String>> {
    let recipes: Vec<Option<BTreeMap<_, _>>> =
        runs.iter().map(|run| run.recipe.as_ref().and_then(|recipe| recipe.keys().ok())).collect();
    let keys: BTreeSet<&String> = recipes.iter().flatten().flat_map(BTreeMap::keys).collect();
    let mut different = Vec::new();
    for key in keys {
        let values: Vec<_> = recipes.iter().flatten().map(|recipe| recipe.get(key)).collect();
        if values.windows(2).all(|pair| pair[0] == pair[1]) {
            continue;
        }
        let told = |recipe: &Option<BTreeMap<_, serde_json::Value>>| {
            recipe.as_ref().and_then(|recipe| recipe.get(key)).map_or("–".to_owned(), ToString::to_string)
        };
        different.push(std::iter::once(key.clone()).chain(recipes.iter().map(told)).collect());
    }
    different
}

fn table_of(header: &[&str], rows: Vec<Vec<String>>, words: bool) -> Table {
    Table {
        words,
        header: header.iter().map(|&cell| cell.to_owned()).collect(),
        rows: rows.into_iter().map(|cells| Line { strong: false, cells }).collect(),
        ..Table::default()
    }
}

/// The same curve of all runs in one picture, for each curve that a run has.
fn figures(runs: &[Run]) -> Vec<Figure> {
    let mut quantities: Vec<Quantity> = Vec::new();
    for quantity in runs.iter().flat_map(|run| run.curves.losses()) {
        if !quantities.iter().any(|known| known.name == quantity.name) {
            quantities.push(quantity);
        }
    }
    let mut figures = Vec::new();
    for Quantity { name, .. } in &quantities {
        for (whose, of) in SIDES {
            let title = Quantity { name, training: None, held_out: None }.title();
            let (y, file) = (format!("{whose}, nats per token; lower is better"), format!("{name}-{whose}"));
            let told = training::told(name);
            let words =
                Words { name: &file.replace(' ', "-"), title: &title, y: &y, spread: Spread::Ratios, told };
            figures.extend(together(runs, &words, |curves| curves.quantity(name).and_then(of)));
        }
    }
    for (words, of) in
        [(LEARNING_RATE, (|curves| &curves.lr) as fn(&Curves) -> &Points), (SPEED, |curves| &curves.tps)]
    {
        figures.extend(together(runs, &Words { told: "", ..words }, |curves| Some(of(curves))));
    }
    figures
}

/// A side of a quantity.
type Side = for<'a> fn(Quantity<'a>) -> Option<&'a Points>;

/// Both sides of a quantity, by whose they are.
const SIDES: [(&str, Side); 2] = [("training batches", |q| q.training), ("held-out text", |q| q.held_out)];

/// The curves of those runs that have one.
fn together<'a>(
    runs: &'a [Run],
    words: &Words,
    of: impl Fn(&'a Curves) -> Option<&'a Points>,
) -> Option<Figure> {
    let curve = |(at, run): (usize, &'a Run)| {
        let points = of(&run.curves).filter(|points| !points.is_empty())?;
        Some(Curve { name: run.name.clone(), points, colour: colour(at), dotted: false })
    };
    let curves: Vec<Curve> = runs.iter().enumerate().filter_map(curve).collect();
    (!curves.is_empty()).then(|| figure(words, &curves))
}

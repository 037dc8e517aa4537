//! What training did to the matrices: errors and codes by layer and module, and how weights, codes and scales are spread.

use qat_train::export::{Change, Changes, FormatSpread, ModuleSpread};

use crate::report::{
    axis::number,
    charts::{COLUMNS, Cell, ROWS, codes, colour, histograms, map},
    page::{Figure, Line, Section, Table},
    svg::Caption,
};

/// Rows of the table of all matrices.
const LINES: usize = 1000;

/// The part about errors and codes.
pub fn changes(changes: &Changes) -> Option<Section> {
    let maps = [
        (
            "rounding-start",
            "Rounding error before training",
            "per cent of the weights' size; lower is better",
            of(changes, |c| c.rounding_start),
            "How far the weights that training started from would have moved by rounding alone: ‖Q(w₀) − w₀‖ / ‖w₀‖.",
        ),
        (
            "rounding",
            "Rounding error after training",
            "per cent of the weights' size; lower is better",
            of(changes, |c| c.rounding),
            "The same of the trained weights. They need not lie on their grid: what counts is what the rounded ones predict.",
        ),
        (
            "flipped",
            "Codes that training chose anew",
            "per cent of the matrix's weights",
            of(changes, |c| c.flipped),
            "Weights whose code isn't that of rounding the start. None at all would mean that training only moved scales and norms.",
        ),
    ];
    let figures: Vec<Figure> = maps
        .into_iter()
        .filter(|(.., cells, _)| !cells.is_empty())
        .map(|(name, title, y, cells, told)| Figure {
            name: name.to_owned(),
            svg: map(Caption { title, y, x: "" }, &cells),
            told: told.to_owned(),
        })
        .collect();
    if figures.is_empty() {
        return None;
    }
    let mut words = vec![format!(
        "{} quantized matrices after step {}, a row for each layer and a column for each module; darker is more.",
        changes.matrices.len(),
        changes.step
    )];
    if changes.matrices.iter().all(|c| c.rounding_start.is_none()) {
        words.push(
            "The weights that training started from were not kept: nothing can be said of them.".to_owned(),
        );
    }
    Some(Section {
        id: "matrices",
        title: "What training did to the matrices".to_owned(),
        words,
        figures,
        tables: vec![table(changes)],
        ..Section::default()
    })
}

fn of(changes: &Changes, value: fn(&Change) -> Option<f64>) -> Vec<Cell> {
    let cell = |change: &Change| {
        Some(Cell {
            row: change.layer.map_or("–".to_owned(), |layer| format!("layer {layer}")),
            column: change.module.clone(),
            percent: 100.0 * value(change)?,
        })
    };
    // Layers first: what is outside of them has modules of its own, and so columns that are empty elsewhere.
    let inside = changes.matrices.iter().filter(|change| change.layer.is_some());
    inside.filter_map(cell).take(ROWS * COLUMNS).collect()
}

fn table(changes: &Changes) -> Table {
    let percent = |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{} %", number(100.0 * v)));
    let line = |c: &Change| Line {
        strong: false,
        cells: vec![
            c.name.clone(),
            c.format.clone(),
            crate::table::count(c.weights as u64),
            percent(c.rounding_start),
            percent(c.rounding),
            percent(c.from_start),
            percent(c.flipped),
        ],
    };
    Table {
        title: "Every matrix".to_owned(),
        folded: true,
        header: [
            "matrix",
            "format",
            "weights",
            "error before",
            "error after",
            "from the start",
            "codes changed",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: changes.matrices.iter().take(LINES).map(line).collect(),
        ..Table::default()
    }
}

/// The part about how numbers are spread.
pub fn spreads(changes: &Changes) -> Option<Section> {
    let mut figures: Vec<Figure> = changes.formats.iter().flat_map(of_format).collect();
    figures.extend(changes.modules.iter().take(COLUMNS).map(of_module));
    (!figures.is_empty()).then(|| Section {
        id: "spreads",
        title: "Weights, codes and scales".to_owned(),
        words: vec![
            "How the numbers are spread before training and after. Weights are counted in units of the root mean square of the matrix that \
             training started from, over all layers; what lies outside of ±4 is counted at the edge."
                .to_owned(),
        ],
        figures,
        ..Section::default()
    })
}

fn of_format(spread: &FormatSpread) -> [Figure; 2] {
    let grey = || ("rounded start".to_owned(), "n".to_owned());
    let blue = || ("trained".to_owned(), colour(0));
    let ((a, grey_class), (b, blue_class)) = (grey(), blue());
    let title = format!("Codes of {}", spread.format);
    let caption = Caption { title: &title, y: "per cent of the weights", x: "code" };
    let sides = [(a, grey_class, spread.codes_start.as_slice()), (b, blue_class, spread.codes.as_slice())];
    let codes = Figure {
        name: format!("codes-{}", spread.format),
        svg: codes(caption, spread.lowest, &sides),
        told: "How often each level of the grid is used. Levels that nobody uses are bits that are paid for in vain; many at the ends mean \
               that large weights are cut off."
            .to_owned(),
    };
    let title = format!("Scales of {}", spread.format);
    let caption = Caption { title: &title, y: "per cent of the groups", x: "log₂ of the scale's size" };
    let ((a, grey_class), (b, blue_class)) = (grey(), blue());
    let scales = Figure {
        name: format!("scales-{}", spread.format),
        svg: histograms(caption, &[(a, grey_class, &spread.scales_start), (b, blue_class, &spread.scales)]),
        told: "The distance between two levels of the grid, one for each group of weights. One to the right is twice as far."
            .to_owned(),
    };
    [codes, scales]
}

fn of_module(spread: &ModuleSpread) -> Figure {
    let title = format!("Weights of {}", spread.module);
    let caption = Caption {
        title: &title,
        y: "per cent of the weights",
        x: "in units of the start's root mean square",
    };
    let named = |name: &str, colour: String, of| (name.to_owned(), colour, of);
    let sides = [
        named("start", "n".to_owned(), &spread.start),
        named("trained, before rounding", colour(0), &spread.latent),
        named("as it ships", colour(1), &spread.packed),
    ];
    Figure {
        name: format!("weights-{}", spread.module.replace(['/', '\\'], "-")),
        svg: histograms(caption, &sides),
        told: String::new(),
    }
}

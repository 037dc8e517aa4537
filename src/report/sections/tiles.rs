//! The numbers that count, at the top of a page.

use qat_infer::eval::Report;

use crate::{
    report::{axis::number, page::Tile, run::Run},
    table::{self, Row},
};

/// Those of the packed model where it was scored, else of the training.
pub fn tiles(run: &Run) -> Vec<Tile> {
    match run.scores.trained() {
        Some(trained) => {
            [size(run, trained), quality(run, trained), vec![speed(run, trained)], gates(run)].concat()
        }
        None => of_training(run),
    }
}

fn size(run: &Run, trained: &Report) -> Vec<Tile> {
    let reference = run.scores.reference();
    let times = |whole: u64| whole as f64 / trained.file_bytes.max(1) as f64;
    let smaller =
        |r: &Report| format!("{:.1} × smaller than {}", times(r.file_bytes), table::bytes(r.file_bytes));
    let bits = |r: &Report| format!("instead of {:.0}, everything counted", r.bits_per_weight);
    vec![
        tile("Packed file", table::bytes(trained.file_bytes), reference.map(smaller)),
        tile("Bits per weight", format!("{:.2}", trained.bits_per_weight), reference.map(bits)),
    ]
}

fn quality(run: &Run, trained: &Report) -> Vec<Tile> {
    let beside = |r: &Report| {
        let more = 100.0 * (trained.perplexity / r.perplexity - 1.0);
        format!("float: {:.3} ({more:+.2} %); lower is better", r.perplexity)
    };
    let note = run.scores.reference().map_or("lower is better".to_owned(), beside);
    let mut tiles = vec![tile("Perplexity", format!("{:.3}", trained.perplexity), Some(note))];
    if let Some(kl) = trained.kl_mean {
        let least = run.scores.rounded().filter_map(|r| r.kl_mean).min_by(f64::total_cmp);
        let rounded = least.map(|kl| format!("nats/token; only rounded: {}", number(kl)));
        tiles.push(tile("KL to the float model", number(kl), rounded));
    }
    if let Some(same) = trained.same_top1 {
        let note = "of its first choices are the float model's".to_owned();
        tiles.push(tile("Same next token", format!("{:.1} %", 100.0 * same), Some(note)));
    }
    let untrained = run.scores.rounded().cloned().collect();
    if let Some(won) = table::won_back(&Row { name: String::new(), report: trained.clone(), untrained }) {
        tiles.push(tile("Won back", won, Some("of what the best rounding lost".to_owned())));
    }
    tiles
}

fn speed(run: &Run, trained: &Report) -> Tile {
    let note = match run.scores.reference() {
        Some(r) => format!("written one by one, here; float: {}", number(r.decode_tps)),
        None => "written one by one, here".to_owned(),
    };
    let energy =
        trained.decode_joules_per_token.map_or(String::new(), |j| format!("; {} J a token", number(j)));
    tile("Tokens per second", number(trained.decode_tps), Some(note + &energy))
}

fn gates(run: &Run) -> Vec<Tile> {
    let gates = &run.scores.gates;
    if gates.is_empty() {
        return Vec::new();
    }
    let failed = gates.iter().filter(|gate| !gate.passed).count();
    let (value, tone) = match failed {
        0 => ("passed".to_owned(), "good"),
        failed => (format!("{failed} failed"), "bad"),
    };
    let conditions: Vec<&str> = gates.iter().map(|gate| gate.gate.as_str()).collect();
    vec![Tile { tone, ..tile("Gates", value, Some(conditions.join(", "))) }]
}

fn of_training(run: &Run) -> Vec<Tile> {
    let mut tiles = Vec::new();
    for quantity in run.curves.losses() {
        let points = quantity.held_out.or(quantity.training);
        if let Some((first, last)) = points.and_then(|points| points.first().zip(points.last())) {
            let whose = if quantity.held_out.is_some() { "held-out text" } else { "training batches" };
            let began =
                if first == last { String::new() } else { format!("; at first {}", number(first[1])) };
            let note = format!("nats/token, {whose}{began}");
            tiles.push(tile(&quantity.title(), number(last[1]), Some(note)));
        }
    }
    tiles
}

fn tile(name: &str, value: String, note: Option<String>) -> Tile {
    Tile { name: name.to_owned(), value, note: note.unwrap_or_default(), tone: "" }
}

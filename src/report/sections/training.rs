//! How training went: losses, learning rate, speed and what else the log has, over steps.

use crate::report::{
    axis::Spread,
    charts::{Curve, colour, curves},
    curves::{Curves, Quantity},
    page::{Figure, Section},
    svg::Caption,
    thin::Points,
};

/// The part about training.
pub fn section(log: &Curves) -> Option<Section> {
    if log.is_empty() {
        return None;
    }
    // One point is no curve: what is only measured at the end is among the scores.
    let losses =
        log.losses().into_iter().filter(|q| q.training.or(q.held_out).is_some_and(|points| points.len() > 1));
    let mut figures: Vec<Figure> = losses.map(|quantity| figure_of(&quantity)).collect();
    let mut single = |words: Words, points: &Points| {
        if !points.is_empty() {
            let curve = Curve { name: words.title.to_owned(), points, colour: colour(0), dotted: false };
            figures.push(figure(&words, &[curve]));
        }
    };
    single(LEARNING_RATE, &log.lr);
    single(SPEED, &log.tps);
    single(GRADIENT, &log.grad_norm);
    if log.lambda.iter().any(|p| p[1] != 1.0) {
        single(ROUNDING, &log.lambda);
    }
    figures.extend(flips(log));
    Some(Section {
        id: "training",
        title: "Training".to_owned(),
        words: vec![
            "Training values are means over the steps since the point before, on the batches of the moment, with weights rounded as they \
             were then. Held-out values are measured on text that is never trained on, with every weight as it ships."
                .to_owned(),
        ],
        figures,
        ..Section::default()
    })
}

/// What is said of a picture of curves.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    /// Name of its file.
    pub name: &'a str,
    /// What is shown.
    pub title: &'a str,
    /// Unit of the heights, and which way is better.
    pub y: &'a str,
    /// How heights are spread.
    pub spread: Spread,
    /// What it says.
    pub told: &'a str,
}

/// Words of the learning rate.
pub const LEARNING_RATE: Words = Words {
    name: "learning-rate",
    title: "Learning rate",
    y: "of the matrices",
    spread: Spread::FromZero,
    told: "How large a step the optimizer may take: usually rising at first, then falling to nearly nothing, so that weights come to rest.",
};

/// Words of the speed.
pub const SPEED: Words = Words {
    name: "speed",
    title: "Training speed",
    y: "tokens per second; higher is better",
    spread: Spread::FromZero,
    told: "Dips come from what else the machine did.",
};

const GRADIENT: Words = Words {
    name: "gradient",
    title: "Gradient norm",
    y: "before clipping, of the last step of each interval",
    spread: Spread::Ratios,
    told: "How steep the loss is. A norm that keeps growing announces a run that diverges.",
};

const ROUNDING: Words = Words {
    name: "rounding",
    title: "Share of the rounding",
    y: "0: float weights, 1: as they ship",
    spread: Spread::FromZero,
    told: "How much of the difference between float and rounded weights the student already computed with.",
};

const FLIPS: Words = Words {
    name: "flips",
    title: "Codes that changed",
    y: "per cent of all quantized weights, since the line before",
    spread: Spread::FromZero,
    told: "A weight learns when its code changes and stays. Many that only come back swing between two codes.",
};

fn figure_of(quantity: &Quantity) -> Figure {
    let sides = [("training", quantity.training, 0, false), ("held out", quantity.held_out, 1, true)];
    let curves = sides.into_iter().filter_map(|(name, points, at, dotted)| {
        Some(Curve { name: name.to_owned(), points: points?, colour: colour(at), dotted })
    });
    let (y, title) = ("nats per token; lower is better", quantity.title());
    let words =
        Words { name: quantity.name, title: &title, y, spread: Spread::Ratios, told: told(quantity.name) };
    figure(&words, &curves.collect::<Vec<_>>())
}

/// What a loss means.
pub fn told(name: &str) -> &'static str {
    match name {
        "loss" => "What the optimizer lowers: the terms below, each times its weight.",
        "forward_kl" => {
            "How many nats of what the teacher says about the next token the student misses. 0 is a perfect copy."
        }
        "reverse_kl" | "skew_reverse_kl" => {
            "The same the other way round: the student is told off for what the teacher finds unlikely."
        }
        "jsd" => "A symmetric distance between what teacher and student say, at most ln 2.",
        "skew_kl" => {
            "KL divergence to a mixture of teacher and student, which is gentler where they differ much."
        }
        "cross_entropy" => {
            "How surprised the student is by the next token of the text; perplexity is its exponential."
        }
        _ => "A term of the loss.",
    }
}

/// Codes that changed, came back or are held, where the recipe asked for them.
fn flips(log: &Curves) -> Option<Figure> {
    let percent = |points: &Points| points.iter().map(|[x, y]| [*x, 100.0 * y]).collect::<Points>();
    let shares = [
        ("changed", percent(&log.changed)),
        ("of these, came back", percent(&log.returned)),
        ("held at their code", percent(&log.frozen)),
    ];
    let there = shares.iter().enumerate().filter(|(_, (_, points))| !points.is_empty());
    let curves: Vec<Curve> = there
        .map(|(at, (name, points))| Curve {
            name: name.to_string(),
            points,
            colour: colour(at),
            dotted: false,
        })
        .collect();
    (!curves.is_empty()).then(|| figure(&FLIPS, &curves))
}

/// Curves over steps.
pub fn figure(words: &Words, lines: &[Curve]) -> Figure {
    let svg = curves(Caption { title: words.title, y: words.y, x: "step" }, lines, words.spread);
    Figure { name: words.name.to_owned(), svg, told: words.told.to_owned() }
}

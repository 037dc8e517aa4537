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
    let mut single = |name: &str, title: &str, y: &str, points: &Points, spread, told: &str| {
        if !points.is_empty() {
            let curve = Curve { name: title.to_owned(), points, colour: colour(0), dotted: false };
            figures.push(figure(name, title, y, &[curve], spread, told));
        }
    };
    single(
        "learning-rate",
        "Learning rate",
        "of the matrices",
        &log.lr,
        Spread::FromZero,
        "How large a step the optimizer may take: usually rising at first, then falling to nearly nothing, so that weights come to rest.",
    );
    single(
        "speed",
        "Training speed",
        "tokens per second; higher is better",
        &log.tps,
        Spread::FromZero,
        "Dips come from what else the machine did.",
    );
    single(
        "gradient",
        "Gradient norm",
        "before clipping, of the last step of each interval",
        &log.grad_norm,
        Spread::Ratios,
        "How steep the loss is. A norm that keeps growing announces a run that diverges.",
    );
    if log.lambda.iter().any(|p| p[1] != 1.0) {
        single(
            "rounding",
            "Share of the rounding",
            "0: float weights, 1: as they ship",
            &log.lambda,
            Spread::FromZero,
            "How much of the difference between float and rounded weights the student already computed with.",
        );
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

fn figure_of(quantity: &Quantity) -> Figure {
    let side = |name: &str, points: &Option<&'_ Points>, at: usize, dotted: bool| {
        points.map(|points| (name.to_owned(), points.clone(), colour(at), dotted))
    };
    let sides =
        [side("training", &quantity.training, 0, false), side("held out", &quantity.held_out, 1, true)];
    let sides: Vec<_> = sides.into_iter().flatten().collect();
    let lines: Vec<Curve> = sides
        .iter()
        .map(|(name, points, colour, dotted)| Curve {
            name: name.clone(),
            points,
            colour: colour.clone(),
            dotted: *dotted,
        })
        .collect();
    figure(
        quantity.name,
        &quantity.title(),
        "nats per token; lower is better",
        &lines,
        Spread::Ratios,
        told(quantity.name),
    )
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
    (!curves.is_empty()).then(|| {
        figure(
            "flips",
            "Codes that changed",
            "per cent of all quantized weights, since the line before",
            &curves,
            Spread::FromZero,
            "A weight learns when its code changes and stays. Many that only come back swing between two codes.",
        )
    })
}

/// Curves over steps under `name`.
pub fn figure(name: &str, title: &str, y: &str, lines: &[Curve], spread: Spread, told: &str) -> Figure {
    let svg = curves(Caption { title, y, x: "step" }, lines, spread);
    Figure { name: name.to_owned(), svg, told: told.to_owned() }
}

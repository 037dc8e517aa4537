//! What a page says of a run, part by part.
//!
//! Knows no HTML and no files. Invariant: a part about which the run knows nothing is not there.

mod beside;
mod matrices;
mod quality;
mod tiles;
mod training;

pub use self::beside::{PROGRESS, all_rows, beside, differences, progress};
use qat_quant::Format;

use super::{
    axis::number,
    page::{Page, Section, Side, Sides},
    run::Run,
    samples::Sample,
};
use crate::table;

/// The page of a run.
pub fn of_run(run: &Run) -> Page {
    let sections = [
        quality::section(&run.rows(""), &run.scores.gates),
        training::section(&run.curves),
        run.changes.as_ref().and_then(matrices::changes),
        run.changes.as_ref().and_then(matrices::spreads),
        run.samples.as_ref().and_then(|samples| texts(&samples.samples)),
        recipe(run),
    ];
    Page {
        title: format!("Run {}", run.name),
        about: about(run),
        tiles: tiles::tiles(run),
        sections: sections.into_iter().flatten().collect(),
        footer: footer(run),
    }
}

/// What was trained, and how far it came.
fn about(run: &Run) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(recipe) = &run.recipe {
        let student = match (&recipe.student.from, &recipe.student.scratch) {
            (Some(from), _) => from.clone(),
            (None, Some(scratch)) => {
                format!("a model of the shape of {}, from random weights,", scratch.config)
            }
            (None, None) => "a model".to_owned(),
        };
        let teacher = match &recipe.teacher {
            Some(teacher) if teacher.model == "latent" => {
                ", to keep what its own float weights predict".to_owned()
            }
            Some(teacher) => format!(", to predict what {} predicts", teacher.model),
            None => String::new(),
        };
        lines.push(format!(
            "{student} trained with the weights of its layers rounded to {}, its embeddings to {}{teacher}.",
            grid(&recipe.quant.weights),
            grid(&recipe.quant.embeddings)
        ));
    }
    let steps = match run.steps() {
        Some(steps) if steps > run.curves.step => {
            format!("{} of {} steps so far", table::count(run.curves.step as u64), table::count(steps as u64))
        }
        _ => format!("{} steps", table::count(run.curves.step as u64)),
    };
    if !run.curves.is_empty() {
        lines.push(format!(
            "{steps}, {} tokens, {} of training.",
            table::count(run.curves.tokens),
            duration(run.curves.seconds)
        ));
    }
    lines
}

/// A format as people who don't know its name understand it.
fn grid(spelling: &str) -> String {
    match spelling.parse::<Format>() {
        Ok(format) => {
            let (lowest, highest) = format.levels();
            // Of a matrix large enough that one scale for all of it doesn't count.
            let bits = number(format.bits_per_weight(4096, 4096));
            format!("{spelling} ({} levels, {bits} bits a weight with its scales)", highest - lowest + 1)
        }
        Err(_) => spelling.to_owned(),
    }
}

/// A time as people say it.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        s if s < 120 => format!("{s} s"),
        s if s < 2 * 3600 => format!("{} min", (s + 30) / 60),
        s if s < 48 * 3600 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} days {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Texts side by side, with what both have in common.
fn texts(samples: &[Sample]) -> Option<Section> {
    let sides = |sample: &Sample| {
        let [float, packed] = [&sample.float, &sample.packed].map(|text| plain(text).trim_start().to_owned());
        let same: usize =
            float.chars().zip(packed.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        let side = |name: &str, text: &str| Side {
            name: name.to_owned(),
            same: text[..same].to_owned(),
            rest: text[same..].to_owned(),
        };
        Sides {
            prompt: plain(&sample.prompt),
            sides: vec![side("Float model", &float), side("Packed model", &packed)],
        }
    };
    (!samples.is_empty()).then(|| Section {
        id: "texts",
        title: "The same words, gone on with by both models".to_owned(),
        words: vec![
            "Each model writes what it finds likeliest, from words of the text that it was scored on. Marked is what comes after \
             the first difference; from there on the two read different texts, so that a difference alone says nothing of quality."
                .to_owned(),
        ],
        samples: samples.iter().map(sides).collect(),
        ..Section::default()
    })
}

/// `text` without control characters, which HTML has no place for.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !['\n', '\t'].contains(&c) { '\u{FFFD}' } else { c }).collect()
}

fn recipe(run: &Run) -> Option<Section> {
    let code = run.recipe.as_ref()?.to_toml().ok()?;
    Some(Section {
        id: "recipe",
        title: "Recipe".to_owned(),
        words: vec!["As it ran, with every default and what was changed on the command line. Saved as a file, qat train repeats the run.".to_owned()],
        code,
        ..Section::default()
    })
}

fn footer(run: &Run) -> Vec<String> {
    let mut lines = vec![format!(
        "Written by qat {} from what the folder of the run holds; qat report makes it again.",
        env!("CARGO_PKG_VERSION")
    )];
    if run.curves.unreadable > 0 {
        lines.push(format!(
            "{} lines of log.jsonl could not be read and are left out.",
            run.curves.unreadable
        ));
    }
    lines.extend(run.troubles.iter().map(|trouble| format!("Left out: {trouble}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_people_tell_them() {
        let told = [0.4, 119.0, 360.0, 5000.0, 7300.0, 200_000.0].map(duration);
        assert_eq!(told, ["0 s", "119 s", "6 min", "83 min", "2 h 1 min", "2 days 7 h"]);
    }

    #[test]
    fn grids_are_told_by_their_levels_and_bits() {
        assert_eq!(grid("int4-g32"), "int4-g32 (16 levels, 4.5 bits a weight with its scales)");
        assert_eq!(grid("ternary-tensor"), "ternary-tensor (3 levels, 2 bits a weight with its scales)");
        assert_eq!(grid("float"), "float");
    }

    #[test]
    fn texts_part_where_they_differ() {
        let sample =
            Sample { prompt: "a".into(), float: " höher und".into(), packed: " höhle\u{7}".into() };
        let section = texts(&[sample]).expect("a section");
        let [float, packed] = &section.samples[0].sides[..] else { panic!("two sides") };
        assert_eq!((float.same.as_str(), float.rest.as_str()), ("höh", "er und"));
        assert_eq!((packed.same.as_str(), packed.rest.as_str()), ("höh", "le\u{FFFD}"));
    }

    #[test]
    fn a_run_that_knows_nothing_is_a_page_without_parts() {
        let page = of_run(&Run { name: "<b>".to_owned(), ..Run::default() });
        assert!(page.sections.is_empty() && page.tiles.is_empty());
        assert!(page.html().expect("renders").contains("Run &lt;b&gt;"));
    }
}

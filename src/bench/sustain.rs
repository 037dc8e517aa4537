//! `qat bench --sustain`: how long the speed of writing lasts, drawn over time.
//!
//! Knows no clock. Invariant: what was measured until Ctrl-C is shown and written like a whole run.

use std::{num::NonZero, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use qat_infer::bench::{Point, Setup, Test, sustain};
use qat_quant::kernels::Isa;
use serde::Serialize;

use super::Energy;
use crate::{Ending, cli, evaluate, table, train};

/// Columns and rows of the drawing.
const COLUMNS: usize = 60;
const ROWS: usize = 8;

/// An eighth of a cell more in each.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What is written as JSON.
#[derive(Debug, Serialize)]
struct Sustained<'a> {
    model: &'a Path,
    test: String,
    threads: usize,
    isa: &'static str,
    /// What was counted, or why nothing was.
    energy: &'a str,
    /// What was asked for, in seconds, and what it became.
    asked_seconds: f64,
    seconds: f64,
    tokens: usize,
    tokens_per_second: f64,
    joules_per_token: Option<f64>,
    /// Tokens per second in the first and in the last tenth of the time.
    first: f64,
    last: f64,
    points: &'a [Point],
}

/// The duration that `text` spells: a number with s, m or h behind it.
pub fn length(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!("want a number of seconds, minutes or hours above 0, such as 90s, 10m or 1h; found {text:?}")
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let seconds = digits.parse::<f64>().map_err(|_| wrong())? * unit;
    // A month is more than anybody means.
    if seconds > 0.0 && seconds < 30.0 * 86_400.0 {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(wrong())
    }
}

/// Runs the command.
pub fn run(
    args: &cli::Bench,
    length: Duration,
    (tests, threads): (&[Test], &[NonZero<usize>]),
    energy: &Energy,
) -> anyhow::Result<Ending> {
    let ([dir], [test], [threads]) = (args.dirs.as_slice(), tests, threads) else {
        bail!("--sustain: want one model, one number of threads, and one of each --tg and --depth");
    };
    let model = super::open(dir, args)?;
    let setup = Setup { threads: *threads, kv: args.kv, repetitions: args.reps, seed: args.seed };
    let stop = train::stop_flag(true)?;
    let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} s  {msg}")?;
    let bar = ProgressBar::new(length.as_secs()).with_style(style).with_prefix(dir.display().to_string());
    let mut seen = |point: &Point| {
        bar.set_position(point.seconds as u64);
        bar.set_message(format!("{:.1} tokens/s", point.tokens_per_second));
    };
    let points = sustain(&model, (*test, &setup), length, energy.meter.as_ref(), &stop, &mut seen)?;
    bar.finish_and_clear();
    let tenth = points.len().div_ceil(10);
    let (first, last) = (rate(&points[..tenth]), rate(&points[points.len() - tenth..]));
    let sustained = Sustained {
        model: dir,
        test: test.to_string(),
        threads: threads.get(),
        isa: Isa::active()?.name(),
        energy: &energy.said,
        asked_seconds: length.as_secs_f64(),
        seconds: points.last().map_or(0.0, |point| point.seconds),
        tokens: points.iter().map(|point| point.tokens).sum(),
        tokens_per_second: rate(&points).context("stopped before the first token was written")?,
        joules_per_token: joules_per_token(&points),
        first: first.unwrap_or_default(),
        last: last.unwrap_or_default(),
        points: &points,
    };
    match args.format {
        cli::BenchFormat::Md => print!("{}", sustained.in_words()),
        cli::BenchFormat::Csv => print!("{}", csv(&points)),
        cli::BenchFormat::Json => println!("{}", serde_json::to_string_pretty(&sustained)?),
    }
    if let Some(path) = &args.json {
        evaluate::write_json(path, &sustained)?;
    }
    Ok(Ending::Done)
}

/// Tokens per second of these points together.
fn rate(points: &[Point]) -> Option<f64> {
    let (tokens, seconds) = points.iter().fold((0.0, 0.0), |(tokens, seconds), point| {
        (tokens + point.tokens as f64, seconds + point.tokens as f64 / point.tokens_per_second)
    });
    (tokens > 0.0).then(|| tokens / seconds)
}

fn joules_per_token(points: &[Point]) -> Option<f64> {
    let joules = points.iter().map(|point| Some(point.joules_per_token()? * point.tokens as f64));
    let tokens: usize = points.iter().map(|point| point.tokens).sum();
    joules.sum::<Option<f64>>().map(|sum| sum / tokens as f64)
}

impl Sustained<'_> {
    fn in_words(&self) -> String {
        let mut text = format!(
            "{}: {}, {} threads, {}\n\ntokens per second\n{}\n",
            self.model.display(),
            self.test,
            self.threads,
            self.isa,
            drawing(self.points)
        );
        text += &format!(
            "{} tokens in {:.0} of {:.0} s: {:.2} tokens/s; first tenth {:.2}, last tenth {:.2} ({:.0} % of the first)\n",
            table::count(self.tokens as u64),
            self.seconds,
            self.asked_seconds,
            self.tokens_per_second,
            self.first,
            self.last,
            100.0 * self.last / self.first
        );
        let temperatures =
            [self.points.first(), self.points.last()].map(|point| point.and_then(|p| p.celsius));
        if let [Some(first), Some(last)] = temperatures {
            text += &format!("processor: {first:.0} °C in the beginning, {last:.0} °C at the end\n");
        }
        match self.joules_per_token {
            Some(joules) => {
                let watts = joules * self.tokens_per_second;
                text +=
                    &format!("energy: {} a token, {watts:.1} W ({})\n", table::joules(joules), self.energy);
            }
            None => text += &format!("energy: {}\n", self.energy),
        }
        text
    }
}

/// Bars from zero up, a column for each share of the time.
fn drawing(points: &[Point]) -> String {
    let column = |at: usize| {
        let [begin, end] = [at, at + 1].map(|at| at * points.len() / COLUMNS);
        points.get(begin..end.max(begin + 1)).and_then(rate).unwrap_or(0.0)
    };
    let rates: Vec<f64> = (0..COLUMNS).map(column).collect();
    let top = rates.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut text = String::new();
    for row in (0..ROWS).rev() {
        let label = match row {
            _ if row + 1 == ROWS => format!("{top:.1}"),
            _ if 2 * (row + 1) == ROWS => format!("{:.1}", top / 2.0),
            _ => String::new(),
        };
        let bars = rates.iter().map(|rate| {
            let eighths = (rate / top * (8 * ROWS) as f64).round() as usize;
            BARS[eighths.saturating_sub(8 * row).min(8)]
        });
        text += &format!("{label:>10} │{}\n", bars.collect::<String>().trim_end());
    }
    let seconds = format!("{:.0} s", points.last().map_or(0.0, |point| point.seconds));
    text += &format!("{:>10} └{}\n", 0, "─".repeat(COLUMNS));
    text + &format!("{:>10}  0 s{seconds:>width$}\n", "", width = COLUMNS - 3)
}

fn csv(points: &[Point]) -> String {
    let cell = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    let mut text = "seconds,tokens,tokens_per_second,watts,joules_per_token,celsius\n".to_owned();
    for point in points {
        let [watts, joules, celsius] = [point.watts, point.joules_per_token(), point.celsius].map(cell);
        let Point { seconds, tokens, tokens_per_second, .. } = point;
        text += &format!("{seconds},{tokens},{tokens_per_second},{watts},{joules},{celsius}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(seconds: f64, tokens: usize, tokens_per_second: f64) -> Point {
        Point { seconds, tokens, tokens_per_second, watts: Some(10.0), celsius: None }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(length("90s"), Ok(Duration::from_secs(90)));
        assert_eq!((length("10m"), length("0.5h")), (length("600s"), length("30min")));
        for wrong in ["10", "m", "-5s", "0s", "1e9h", "5 d", "", "nans", "ßs"] {
            assert!(length(wrong).is_err_and(|e| e.contains("such as 90s, 10m or 1h")), "{wrong}");
        }
    }

    #[test]
    fn a_course_that_halves_is_drawn_at_half_the_height() {
        let points: Vec<Point> =
            (1..=120).map(|at| point(f64::from(at), 10, if at <= 60 { 100.0 } else { 50.0 })).collect();
        let text = drawing(&points);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), ROWS + 2, "{text}");
        assert_eq!(lines[0], format!("     100.0 │{}", "█".repeat(30)), "{text}");
        assert_eq!(lines[4], format!("      50.0 │{}", "█".repeat(60)), "{text}");
        assert_eq!(lines[3], format!("           │{}", "█".repeat(30)), "{text}");
        assert!(lines[9].ends_with("120 s"), "{text}");
        // 600 tokens at 100/s and 600 at 50/s.
        let mean = rate(&points).expect("tokens");
        assert!((mean - 1200.0 / 18.0).abs() < 1e-9, "{mean}");
        assert!((joules_per_token(&points).expect("measured") - 10.0 * 18.0 / 1200.0).abs() < 1e-9);
        assert_eq!(csv(&points[..1]).lines().nth(1), Some("1,10,100,10,0.1,"));
    }
}

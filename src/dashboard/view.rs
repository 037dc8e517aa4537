//! What a run looks like on a terminal of any size.
//!
//! Knows no keys and no clock but that of the run. Invariant: every size can be drawn, down to one letter.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis as DrawnAxis, Block, Chart, Dataset, Gauge, GraphType, Paragraph},
};

use super::Watched;
use crate::report::{Axis, Points, Spread, duration, number, thin};

/// Fewest columns and rows that two pictures side by side, and one over the other, need.
const WIDE: u16 = 76;
const HIGH: u16 = 22;

/// A picture: its title, and its curves with their names.
struct Picture<'a> {
    title: String,
    curves: Vec<(&'static str, &'a Points, Color)>,
    spread: Spread,
}

/// Draws the run.
pub fn draw(frame: &mut Frame, run: &Watched) {
    let area = frame.area();
    let said = if area.height >= HIGH { 5 } else { 0 };
    let [head, progress, pictures, lines, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(said),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(heading(run)), head);
    frame.render_widget(gauge(run), progress);
    draw_pictures(frame, run, pictures);
    let last = run.lines.iter().rev().take(usize::from(said)).rev();
    frame.render_widget(Paragraph::new(last.map(|line| Line::raw(line.as_str())).collect::<Vec<_>>()), lines);
    let help = match run.stopping {
        true => "stopping after this step, then saved; q again: stop at once",
        false => "q or Ctrl-C: save and stop",
    };
    frame.render_widget(Paragraph::new(Span::styled(help, Style::new().add_modifier(Modifier::DIM))), foot);
}

fn heading(run: &Watched) -> Line<'_> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut parts = vec![Span::styled(run.name.as_str(), bold)];
    let mut add = |text: String| parts.push(Span::raw(format!("   {text}")));
    add(duration(run.began.elapsed().as_secs_f64()));
    if let (Some(loss), Some(speed)) = (run.curves.loss.last(), run.curves.tps.last()) {
        add(format!("loss {}", number(loss[1])));
        add(format!("{} tokens/s", number(speed[1])));
        add(format!("{} tokens seen", number(run.curves.tokens as f64)));
    }
    Line::from(parts)
}

fn gauge(run: &Watched) -> Gauge<'_> {
    let (done, all, label) = match run.task {
        Some((task, done, all)) => {
            (done, all, format!("{task}: {:.0} %", 100.0 * done as f64 / all.max(1) as f64))
        }
        None => {
            let left = run.left().map_or(String::new(), |left| format!(", {} left", duration(left)));
            let (step, steps) = (run.curves.step, run.steps);
            (step as u64, steps as u64, format!("step {step} of {steps}{left}"))
        }
    };
    let share = (done as f64 / all.max(1) as f64).clamp(0.0, 1.0);
    Gauge::default().ratio(share).label(label).gauge_style(Style::new().fg(Color::Blue))
}

/// As many pictures as there is room for, the losses first.
fn draw_pictures(frame: &mut Frame, run: &Watched, area: Rect) {
    let pictures = pictures(run);
    let columns = if area.width >= WIDE { 2 } else { 1 };
    let rows = (area.height / 9).clamp(1, 2);
    let shown: Vec<&Picture> = pictures.iter().take(usize::from(columns * rows)).collect();
    let rows =
        Layout::vertical(vec![Constraint::Fill(1); shown.len().div_ceil(usize::from(columns))]).split(area);
    for (row, pictures) in rows.iter().zip(shown.chunks(usize::from(columns))) {
        let places = Layout::horizontal(vec![Constraint::Fill(1); pictures.len()]).split(*row);
        for (place, picture) in places.iter().zip(pictures) {
            draw_picture(frame, picture, *place, run.steps);
        }
    }
}

/// What there is to draw: two losses, or one and the other held out, then learning rate and speed.
fn pictures(run: &Watched) -> Vec<Picture<'_>> {
    let curves = &run.curves;
    let mut pictures: Vec<Picture> = Vec::new();
    for quantity in curves.losses().into_iter().take(2) {
        let training = quantity.training.map(|points| ("training", points, Color::Cyan));
        let held_out = quantity.held_out.map(|points| ("held out", points, Color::Yellow));
        let curves = [training, held_out].into_iter().flatten().collect();
        pictures.push(Picture { title: quantity.title(), curves, spread: Spread::Ratios });
    }
    for (title, points) in [("Tokens per second", &curves.tps), ("Learning rate", &curves.lr)] {
        if !points.is_empty() {
            let curves = vec![(title, points, Color::Green)];
            pictures.push(Picture { title: title.to_owned(), curves, spread: Spread::FromZero });
        }
    }
    pictures
}

fn draw_picture(frame: &mut Frame, picture: &Picture, area: Rect, steps: usize) {
    let values = picture.curves.iter().flat_map(|(_, points, _)| points.iter().map(|p| p[1]));
    let y = Axis::new(values, picture.spread);
    let x = Axis::exact(0.0, steps as f64);
    // Braille has two dots a column; more points than that are drawn over each other.
    let most = 4 * usize::from(area.width.max(1));
    let place = |p: &[f64; 2]| (x.place(p[0]), y.place(p[1]));
    let drawn: Vec<Vec<(f64, f64)>> =
        picture.curves.iter().map(|(_, points, _)| thin(points, most).iter().map(place).collect()).collect();
    let is_alone = picture.curves.len() == 1;
    let datasets = picture.curves.iter().zip(&drawn).map(|((name, _, colour), points)| {
        // A single point has no line.
        let kind = if points.len() == 1 { GraphType::Scatter } else { GraphType::Line };
        let dataset = Dataset::default().marker(Marker::Braille).graph_type(kind);
        let dataset = dataset.style(Style::new().fg(*colour)).data(points);
        if is_alone { dataset } else { dataset.name(*name) }
    });
    let dim = Style::new().add_modifier(Modifier::DIM);
    let (low, high) = y.ends();
    let middle = if y.is_log() { (low * high).sqrt() } else { (low + high) / 2.0 };
    let axis = |labels: Vec<String>| DrawnAxis::default().bounds([0.0, 1.0]).labels(labels).style(dim);
    let chart = Chart::new(datasets.collect())
        .block(Block::bordered().title(picture.title.as_str()).border_style(dim))
        .x_axis(axis(vec!["0".to_owned(), number(steps as f64)]))
        .y_axis(axis([low, middle, high].map(|value| y.told(value)).to_vec()));
    frame.render_widget(chart, area);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qat_train::trainer::{Event, ValidLog};
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    fn watched(lines: usize) -> Watched {
        let mut run = Watched::new("small\u{1b}[2J", Path::new("nowhere"));
        run.name = "small".to_owned();
        run.hear(Event::Begin { from: 0, steps: 1000, parameters: 10, tokens: 5, tokens_per_step: 64 });
        for n in 1..=lines {
            let loss = 3.0 / n as f64;
            let log = serde_json::json!({
                "step": n * 10, "loss": loss, "terms": {"forward_kl": loss}, "lr": 1e-3, "lambda": 1.0, "grad_norm": 1.0,
                "tokens": n * 640, "tps": 640.0,
            });
            run.hear(Event::Step(serde_json::from_value(log).expect("a line of the log")));
        }
        if lines > 0 {
            run.hear(Event::Valid(ValidLog {
                step: lines * 10,
                valid_cross_entropy: 2.5,
                valid_kl: Some(0.125),
            }));
            run.hear(Event::Note("beware\u{1b}[2J of this".to_owned()));
        }
        run
    }

    fn drawn(run: &Watched, wide: u16, high: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(wide, high)).expect("a terminal");
        terminal.draw(|frame| draw(frame, run)).expect("drawn");
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer.content().chunks(usize::from(wide.max(1)));
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect()
    }

    #[test]
    fn a_run_is_seen_with_its_curves_and_what_is_left() {
        let screen = drawn(&watched(50), 120, 40);
        for part in [
            "small",
            "step 500 of 1000, 50 s left",
            "640 tokens/s",
            "KL divergence from the teacher",
            "held out",
            "Cross entropy of the text",
            "Learning rate",
            "Tokens per second",
            "held out: 2.5000 nats/token, KL to the teacher 0.1250",
            "beware[2J of this",
            "q or Ctrl-C",
        ] {
            assert!(screen.contains(part), "{part:?} is not in\n{screen}");
        }
        assert!(screen.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "curves are drawn\n{screen}");
        assert!(!screen.contains('\u{1b}'));
    }

    #[test]
    fn every_size_and_every_moment_can_be_drawn() {
        for lines in [0, 1, 2, 500] {
            let mut run = watched(lines);
            for (wide, high) in [(1, 1), (3, 2), (20, 5), (76, 9), (80, 24), (300, 100)] {
                drawn(&run, wide, high);
            }
            run.hear(Event::Tokenizing { done: 5, total: 0 });
            run.stopping = true;
            let screen = drawn(&run, 80, 24);
            assert!(screen.contains("tokenizing") && screen.contains("stopping after this step"), "{screen}");
        }
    }
}

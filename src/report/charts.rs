//! The kinds of pictures of a report: curves over steps, points with their errors, spreads, counts of codes, maps of layers and modules.
//!
//! Knows no run: what is drawn comes as numbers and words. Invariant: whatever is drawn has a bounded number of points.

use qat_train::export::Histogram;

use super::{
    axis::{Axis, Spread, number},
    svg::{CLASSES, Caption, Entry, Svg, shortened},
    thin::{Points, thin},
};

/// Points that a curve is drawn with.
const POINTS: usize = 500;
/// Height of a field.
const FIELD: f64 = 170.0;
/// Rows of a map.
pub const ROWS: usize = 160;
/// Columns of a map.
pub const COLUMNS: usize = 12;

/// A curve with its name.
#[derive(Debug, Clone)]
pub struct Curve<'a> {
    /// What it is.
    pub name: String,
    /// Its points.
    pub points: &'a Points,
    /// Class of its colour: a number, or `n` for grey.
    pub colour: String,
    /// Whether its points are few and are drawn as such.
    pub dotted: bool,
}

/// Class of the colour number `at`, over and over.
pub fn colour(at: usize) -> String {
    (at % CLASSES).to_string()
}

/// Curves over the steps of a run.
pub fn curves(caption: Caption, curves: &[Curve], spread: Spread) -> String {
    let legend =
        if curves.len() > 1 { entries(curves.iter().map(|c| (&c.name, &c.colour))) } else { Vec::new() };
    let all = || curves.iter().flat_map(|c| c.points.iter());
    let x = Axis::new(all().map(|p| p[0]), Spread::FromZero);
    let y = Axis::new(all().map(|p| p[1]), spread);
    let mut svg = Svg::new(caption, &legend, FIELD);
    svg.axes(&x, &y);
    for curve in curves {
        let points = thin(curve.points, POINTS);
        let places = points.iter().map(|[a, b]| [x.place(*a), y.place(*b)]);
        svg.curve(places, &format!("s{}", curve.colour), &curve.name);
        if curve.dotted && points.len() <= 40 || points.len() == 1 {
            for [a, b] in &points {
                let told = format!("{}: {} at step {a}", curve.name, number(*b));
                svg.dot([svg.x(x.place(*a)), svg.y(y.place(*b))], &format!("f{}", curve.colour), &told);
            }
        }
    }
    svg.element()
}

fn entries<'a>(named: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<Entry> {
    named.map(|(name, colour)| Entry { name: name.clone(), class: format!("f{colour}") }).collect()
}

/// A measured thing: a place, its error and its name.
#[derive(Debug, Clone)]
pub struct Point {
    /// What it is.
    pub name: String,
    /// Where, from left to right.
    pub x: f64,
    /// How high.
    pub y: f64,
    /// Standard error of the height.
    pub error: f64,
    /// Class of its colour.
    pub colour: String,
    /// Whether it is drawn as a ring.
    pub hollow: bool,
}

/// Points with their names beside them or, where there is a legend (names and colours), in it.
pub fn points(caption: Caption, points: &[Point], spread: Spread, legend: &[(String, String)]) -> String {
    let x = Axis::new(points.iter().map(|p| p.x), Spread::FromZero);
    let ends = points.iter().flat_map(|p| [p.y - p.error, p.y, p.y + p.error]);
    let y = Axis::new(ends, spread);
    let mut svg =
        Svg::new(caption, &entries(legend.iter().map(|(name, colour)| (name, colour))), FIELD + 20.0);
    svg.axes(&x, &y);
    for point in points.iter().filter(|p| p.y.is_finite()) {
        let class = &point.colour;
        let at = [svg.x(x.place(point.x)), svg.y(y.place(point.y))];
        for end in [point.y - point.error, point.y + point.error] {
            svg.line(at, [at[0], svg.y(y.place(end))], &format!("s{class}"));
        }
        let look = if point.hollow { format!("hollow s{class}") } else { format!("f{class}") };
        svg.dot(at, &look, &format!("{}: {}", point.name, number(point.y)));
    }
    if legend.is_empty() {
        for is_right in [false, true] {
            let side = points.iter().filter(|p| p.y.is_finite() && (x.place(p.x) > 0.5) == is_right);
            let places = side.map(|p| (svg.x(x.place(p.x)), svg.y(y.place(p.y)), p.name.as_str())).collect();
            write_beside(&mut svg, places, is_right);
        }
    }
    svg.element()
}

/// Writes names beside their places, to the left of those that lie on the right; each at least a line from the next, and all in the field.
fn write_beside(svg: &mut Svg, mut places: Vec<(f64, f64, &str)>, is_right: bool) {
    const APART: f64 = 13.0;
    places.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut heights: Vec<f64> = Vec::new();
    for (_, y, _) in &places {
        let above = heights.last().map_or(f64::NEG_INFINITY, |above| above + APART);
        heights.push((y + 4.0).max(above));
    }
    let mut below = svg.y(0.0) + APART - 3.0;
    for height in heights.iter_mut().rev() {
        *height = height.min(below - APART);
        below = *height;
    }
    for ((x, _, name), height) in places.iter().zip(heights) {
        let (x, class) = if is_right { (x - 9.0, "end") } else { (x + 9.0, "") };
        svg.text_at(x, height, class, &shortened(name, 34));
    }
}

/// Spreads over each other: the first as an area, the others as lines.
pub fn histograms(caption: Caption, spreads: &[(String, String, &Histogram)]) -> String {
    let spreads: Vec<_> = spreads.iter().filter(|(_, _, h)| h.counts.iter().any(|&c| c > 0)).collect();
    let used = spreads.iter().flat_map(|(_, _, h)| {
        h.counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(bin, _)| (bin, h.counts.len(), h.from, h.to))
    });
    let edges = used.map(|(bin, bins, from, to)| {
        let width = (to - from) / bins as f64;
        (from + width * bin as f64, from + width * (bin + 1) as f64)
    });
    let (low, high) = edges.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), (c, d)| (a.min(c), b.max(d)));
    let x = if low < high { Axis::exact(low, high) } else { Axis::exact(0.0, 1.0) };
    let share = |h: &Histogram| -> Vec<f64> {
        let all = h.counts.iter().sum::<u64>().max(1) as f64;
        h.counts.iter().map(|&count| 100.0 * count as f64 / all).collect()
    };
    let shares: Vec<Vec<f64>> = spreads.iter().map(|(_, _, h)| share(h)).collect();
    let y = Axis::new(shares.iter().flatten().copied(), Spread::FromZero);
    let legend = entries(spreads.iter().map(|(name, colour, _)| (name, colour)));
    let mut svg = Svg::new(caption, &legend, FIELD - 40.0);
    svg.axes(&x, &y);
    for (at, ((name, colour, h), shares)) in spreads.iter().zip(&shares).enumerate() {
        let width = (h.to - h.from) / h.counts.len() as f64;
        let steps: Points = shares
            .iter()
            .enumerate()
            .map(|(bin, share)| (h.from + width * bin as f64, *share))
            .filter(|(left, _)| *left > low - width / 2.0 && *left < high - width / 2.0)
            .flat_map(|(left, share)| [[left, share], [left + width, share]])
            .map(|[a, b]| [x.place(a), y.place(b)])
            .collect();
        if at == 0 {
            svg.area(steps.iter().copied(), &format!("f{colour}"));
        }
        svg.curve(steps.into_iter(), &format!("s{colour} thin"), name);
    }
    svg.element()
}

/// Counts of codes from `lowest` on, before and after: bars where they are few, lines where they are many.
pub fn codes(caption: Caption, lowest: i32, sides: &[(String, String, &[u64])]) -> String {
    let sides: Vec<_> = sides.iter().filter(|(_, _, counts)| counts.iter().any(|&c| c > 0)).collect();
    let codes = sides.first().map_or(0, |(_, _, counts)| counts.len());
    if codes > 32 {
        let (from, to) = (f64::from(lowest) - 0.5, f64::from(lowest) + codes as f64 - 0.5);
        let spread = |counts: &[u64]| Histogram { from, to, counts: counts.to_vec() };
        let spreads: Vec<_> = sides.iter().map(|(_, _, counts)| spread(counts)).collect();
        let named: Vec<_> = sides
            .iter()
            .zip(&spreads)
            .map(|((name, colour, _), h)| (name.clone(), colour.clone(), h))
            .collect();
        return histograms(caption, &named);
    }
    let share =
        |counts: &[u64], at: usize| 100.0 * counts[at] as f64 / counts.iter().sum::<u64>().max(1) as f64;
    let all = sides.iter().flat_map(|(_, _, counts)| (0..codes).map(|at| share(counts, at)));
    let y = Axis::new(all, Spread::FromZero);
    let mut svg =
        Svg::new(caption, &entries(sides.iter().map(|(name, colour, _)| (name, colour))), FIELD - 40.0);
    svg.axes(&Axis::exact(f64::from(lowest) - 0.5, f64::from(lowest) + codes as f64 - 0.5), &y);
    let slot = svg.width() / codes.max(1) as f64;
    let wide = slot * 0.8 / sides.len().max(1) as f64;
    for (at_side, (name, colour, counts)) in sides.iter().enumerate() {
        for at in 0..codes {
            let share = share(counts, at);
            let left = svg.x(0.0) + slot * (at as f64 + 0.1) + wide * at_side as f64;
            let (top, foot) = (svg.y(y.place(share)), svg.y(y.place(0.0)));
            let told =
                format!("{name}: code {} stands for {} % of the weights", lowest + at as i32, number(share));
            svg.rect(left, top, (wide - 1.0).max(0.5), foot - top, &format!("f{colour}"), 1.0, &told);
        }
    }
    svg.element()
}

/// A number of a map: its row, its column, and what it is a part of.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Which row.
    pub row: String,
    /// Which column.
    pub column: String,
    /// Per cent.
    pub percent: f64,
}

/// Numbers by rows and columns, the darker the larger. Rows and columns beyond the most that are drawn are left out.
pub fn map(caption: Caption, cells: &[Cell]) -> String {
    let mut rows: Vec<&str> = Vec::new();
    let mut columns: Vec<&str> = Vec::new();
    for cell in cells {
        for (list, name) in [(&mut rows, &cell.row), (&mut columns, &cell.column)] {
            if !list.contains(&name.as_str()) {
                list.push(name);
            }
        }
    }
    rows.truncate(ROWS);
    columns.truncate(COLUMNS);
    let high = 17.0;
    let head = 18.0;
    let mut svg = Svg::new(caption, &[], head + high * rows.len() as f64);
    let most = cells.iter().map(|c| c.percent).filter(|p| p.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
    let wide = svg.width() / columns.len().max(1) as f64;
    let top = svg.y(1.0);
    for (at, column) in columns.iter().enumerate() {
        svg.text_at(
            svg.x(0.0) + wide * (at as f64 + 0.5),
            top + 12.0,
            "label middle tight",
            &short_module(column),
        );
    }
    for (at, row) in rows.iter().enumerate() {
        let y = top + head + high * at as f64;
        svg.text_at(svg.x(0.0) - 6.0, y + 12.5, "label end", &shortened(row, 8));
        for cell in cells.iter().filter(|cell| cell.row == *row) {
            let Some(column) = columns.iter().position(|name| *name == cell.column) else { continue };
            let x = svg.x(0.0) + wide * column as f64;
            let told = format!("{} {}: {} %", cell.row, cell.column, number(cell.percent));
            // At most as dark as text on it can be read.
            svg.rect(
                x + 0.5,
                y + 0.5,
                wide - 1.0,
                high - 1.0,
                "f0",
                0.06 + 0.54 * cell.percent / most,
                &told,
            );
            svg.text_at(x + wide / 2.0, y + 12.5, "middle cell", &number(cell.percent));
        }
    }
    svg.element()
}

/// `self_attn.q_proj` as `q_proj`, shortened to what a column holds.
fn short_module(module: &str) -> String {
    shortened(module.rsplit('.').next().unwrap_or(module), 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTION: Caption = Caption { title: "title", y: "nats", x: "step" };

    #[test]
    fn a_long_run_makes_a_small_picture() {
        let points: Points = (0..100_000).map(|n| [n as f64, 1.0 / (1.0 + n as f64)]).collect();
        let curve =
            |name: &str| Curve { name: name.to_owned(), points: &points, colour: colour(0), dotted: true };
        let element = curves(CAPTION, &[curve("one"), curve("two")], Spread::Ratios);
        assert!(element.len() < 20_000, "{} bytes", element.len());
        assert_eq!(element.matches("<polyline").count(), 2);
        assert!(!element.contains("<circle"), "too many for dots");
    }

    #[test]
    fn few_codes_are_bars_and_many_are_lines() {
        let side = |codes: usize| vec![1u64; codes];
        let draw = |counts: &[u64]| {
            codes(
                CAPTION,
                -1,
                &[("a".to_owned(), "n".to_owned(), counts), ("b".to_owned(), "0".to_owned(), counts)],
            )
        };
        // Two of the legend, two sides of three bars.
        assert_eq!(draw(&side(3)).matches("<rect").count(), 2 + 6);
        assert_eq!(draw(&side(255)).matches("<polyline").count(), 2);
        assert!(draw(&[0, 0]).contains("<svg"), "nothing is an empty picture");
    }

    #[test]
    fn a_map_leaves_out_what_is_too_much() {
        let cell = |n: usize| Cell { row: n.to_string(), column: format!("c{}", n % 40), percent: n as f64 };
        let element = map(CAPTION, &(0..5000).map(cell).collect::<Vec<_>>());
        assert!(element.len() < 60_000 && element.matches("<rect").count() <= ROWS, "{}", element.len());
        assert!(map(CAPTION, &[]).contains("<svg"));
    }

    #[test]
    fn names_of_points_keep_their_distance() {
        let point = |n: usize| Point {
            name: format!("point {n}"),
            x: 4.5,
            y: 2.0 + n as f64 * 1e-6,
            error: f64::NAN,
            colour: colour(n),
            hollow: false,
        };
        let all: Vec<Point> = (0..4).map(point).collect();
        let element = points(CAPTION, &all, Spread::Ratios, &[]);
        let height = |n: usize| -> f64 {
            let (before, _) = element.split_once(&format!(">point {n}</text>")).expect("a name");
            let (_, y) = before.rsplit_once("y=\"").expect("a place");
            y.trim_end_matches('"').parse().expect("a number")
        };
        assert!((0..3).all(|n| height(n) - height(n + 1) > 12.9), "{element}");
        let legend = [("a run".to_owned(), colour(0))];
        let element = points(CAPTION, &all, Spread::Ratios, &legend);
        assert!(element.contains(">a run</text>") && !element.contains(">point 1</text>"), "{element}");
    }
}

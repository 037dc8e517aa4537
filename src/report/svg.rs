//! A picture as SVG: a title, what the axes mean, a legend and a field to draw in.
//!
//! Knows no data and no colours: shapes carry classes, which a page gives colours for light and dark. Invariant: whatever text comes in goes
//! out escaped, and no number that is not finite goes out.

use std::fmt::Write as _;

use super::axis::Axis;

/// Width of every picture, in its own units; about the pixels of half a page.
pub const WIDTH: f64 = 440.0;
/// Where the field begins and how much is free to its right.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
/// Height of a line of text.
const LINE: f64 = 15.0;
/// Mean width of a letter of the legend, where narrow pages make it larger.
const LETTER: f64 = 7.0;

/// What a picture says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Caption<'a> {
    /// What is shown.
    pub title: &'a str,
    /// Unit of the heights, and which way is better.
    pub y: &'a str,
    /// Unit of the widths.
    pub x: &'a str,
}

/// A name in the legend.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub name: String,
    /// Class of its colour, `f` and a number.
    pub class: String,
}

/// A picture being drawn.
#[derive(Debug)]
pub struct Svg {
    body: String,
    height: f64,
    /// Top of the field.
    top: f64,
    /// Height of the field.
    field: f64,
    title: String,
    data: String,
}

/// `text` as it stands in SVG, in quotes or out of them.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no other control characters.
            letter if letter.is_control() && !['\n', '\t'].contains(&letter) => out.push('\u{FFFD}'),
            letter => out.push(letter),
        }
    }
    out
}

/// `text`, cut where it is longer than `most` letters.
pub fn shortened(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

impl Svg {
    /// A picture whose field is `field` high.
    pub fn new(caption: Caption, legend: &[Entry], field: f64) -> Self {
        let mut svg = Self {
            body: String::new(),
            height: 0.0,
            top: 0.0,
            field,
            title: caption.title.to_owned(),
            data: String::new(),
        };
        svg.text(0.0, 13.0, "title", &shortened(caption.title, 70));
        svg.text(0.0, 13.0 + LINE, "note", &shortened(caption.y, 90));
        svg.top = 13.0 + 2.0 * LINE + svg.legend(legend);
        svg.height = svg.top + field + if caption.x.is_empty() { 8.0 } else { 36.0 };
        if !caption.x.is_empty() {
            let bottom = svg.top + field + 31.0;
            svg.text_at(LEFT + svg.width() / 2.0, bottom, "note middle", &shortened(caption.x, 80));
        }
        svg
    }

    /// Draws the legend and gives its height.
    fn legend(&mut self, legend: &[Entry]) -> f64 {
        let (mut x, mut y) = (0.0, 13.0 + 2.0 * LINE);
        for entry in legend {
            let name = shortened(&entry.name, 44);
            let wide = 20.0 + LETTER * name.chars().count() as f64;
            if x > 0.0 && x + wide > WIDTH {
                (x, y) = (0.0, y + LINE);
            }
            self.rect(x, y - 8.0, 10.0, 8.0, &entry.class, 1.0, "");
            self.text(x + 14.0, y, "label", &name);
            x += wide;
        }
        if legend.is_empty() { 0.0 } else { y - 13.0 - LINE }
    }

    /// Width of the field.
    pub fn width(&self) -> f64 {
        WIDTH - LEFT - RIGHT
    }

    /// Where the place `x` of the field is, 0 to 1.
    pub fn x(&self, place: f64) -> f64 {
        LEFT + place * self.width()
    }

    /// Where the place `y` of the field is, 0 at its foot and 1 at its top.
    pub fn y(&self, place: f64) -> f64 {
        self.top + (1.0 - place) * self.field
    }

    /// Draws both axes with their marks, and lines across the field at those of `y`. A reader's pointer is told values by them.
    pub fn axes(&mut self, x: &Axis, y: &Axis) {
        for (value, text) in y.marks() {
            let at = self.y(y.place(value));
            self.line([LEFT, at], [WIDTH - RIGHT, at], "grid");
            self.text_at(LEFT - 6.0, at + 3.5, "label end", &text);
        }
        for (value, text) in x.marks() {
            let at = self.x(x.place(value));
            let foot = self.y(0.0);
            self.line([at, foot], [at, foot + 4.0], "axis");
            self.text_at(at, foot + 16.0, "label middle", &text);
        }
        self.line([LEFT, self.y(0.0)], [WIDTH - RIGHT, self.y(0.0)], "axis");
        let ends = |axis: &Axis| {
            let (from, to) = axis.ends();
            format!("{from:e} {to:e} {}", u8::from(axis.is_log()))
        };
        self.data = format!(
            " data-x=\"{}\" data-y=\"{}\" data-field=\"{LEFT} {:.1} {:.1} {:.1}\"",
            ends(x),
            ends(y),
            self.top,
            self.width(),
            self.field
        );
    }

    /// A line through `points`, at places of the field; `name` is told to a reader's pointer.
    pub fn curve(&mut self, points: impl Iterator<Item = [f64; 2]>, class: &str, name: &str) {
        let mut path = String::new();
        for [x, y] in points.filter(|p| p.iter().all(|c| c.is_finite())) {
            let _ = write!(path, "{:.1},{:.1} ", self.x(x), self.y(y));
        }
        let _ = write!(
            self.body,
            "<polyline class=\"{class}\" data-name=\"{}\" points=\"{}\"/>",
            escape(name),
            path.trim_end()
        );
    }

    /// The area between `points` and the foot of the field.
    pub fn area(&mut self, points: impl Iterator<Item = [f64; 2]>, class: &str) {
        let points: Vec<[f64; 2]> = points.filter(|p| p.iter().all(|c| c.is_finite())).collect();
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let mut path = format!("{:.1},{:.1} ", self.x(first[0]), self.y(0.0));
        for [x, y] in &points {
            let _ = write!(path, "{:.1},{:.1} ", self.x(*x), self.y(*y));
        }
        let _ = write!(path, "{:.1},{:.1}", self.x(last[0]), self.y(0.0));
        let _ = write!(self.body, "<polygon class=\"{class}\" points=\"{path}\"/>");
    }

    /// A straight line.
    pub fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], class: &str) {
        if [x1, y1, x2, y2].iter().all(|c| c.is_finite()) {
            let _ = write!(
                self.body,
                "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
            );
        }
    }

    /// A dot that says `told` when it is pointed at.
    pub fn dot(&mut self, [x, y]: [f64; 2], class: &str, told: &str) {
        if x.is_finite() && y.is_finite() {
            let told = escape(told);
            let _ = write!(
                self.body,
                "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"><title>{told}</title></circle>"
            );
        }
    }

    /// A rectangle that says `told` when it is pointed at.
    #[expect(clippy::too_many_arguments, reason = "a place, a size, a look and a word")]
    pub fn rect(&mut self, x: f64, y: f64, wide: f64, high: f64, class: &str, opacity: f64, told: &str) {
        if ![x, y, wide, high, opacity].iter().all(|c| c.is_finite()) || wide <= 0.0 || high <= 0.0 {
            return;
        }
        let opacity = if opacity < 1.0 { format!(" fill-opacity=\"{opacity:.2}\"") } else { String::new() };
        let place = format!("x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\"");
        let _ = match told {
            "" => write!(self.body, "<rect class=\"{class}\" {place}{opacity}/>"),
            told => {
                let told = escape(told);
                write!(self.body, "<rect class=\"{class}\" {place}{opacity}><title>{told}</title></rect>")
            }
        };
    }

    /// Text that begins at `x`, or ends or is centred there, as its class says.
    pub fn text_at(&mut self, x: f64, y: f64, class: &str, text: &str) {
        if x.is_finite() && y.is_finite() {
            self.text(x, y, class, text);
        }
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ =
            write!(self.body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(text));
    }

    /// The picture as an element of a page.
    pub fn element(self) -> String {
        self.with("", "")
    }

    fn with(self, attributes: &str, style: &str) -> String {
        format!(
            "<svg{attributes} viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{}\"{}>{style}{}</svg>",
            self.height,
            escape(&self.title),
            self.data,
            self.body
        )
    }
}

/// `element` as a file of its own, which brings its colours along.
pub fn file(element: &str) -> String {
    let style = format!("<style>{}</style><rect class=\"ground\" width=\"100%\" height=\"100%\"/>", style());
    let begun = element.replacen("<svg", "<svg xmlns=\"http://www.w3.org/2000/svg\"", 1);
    match begun.find('>') {
        Some(at) => format!("{}{style}{}\n", &begun[..=at], &begun[at + 1..]),
        None => begun,
    }
}

/// Colours of lines and areas, for light and for dark pages: as far apart as eyes that confuse red and green can tell.
const COLOURS: [(&str, &str); 8] = [
    ("#2a78d6", "#3987e5"),
    ("#eb6834", "#d95926"),
    ("#1baf7a", "#199e70"),
    ("#eda100", "#c98500"),
    ("#e87ba4", "#d55181"),
    ("#008300", "#3aa53a"),
    ("#4a3aa7", "#9085e9"),
    ("#e34948", "#e66767"),
];

/// How many classes `s0`, `f0`, … there are; `sn` and `fn` are grey.
pub const CLASSES: usize = COLOURS.len();

/// The rules that every picture needs.
pub fn style() -> String {
    let mut style = String::from(
        "svg text{font-family:system-ui,-apple-system,\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif;font-size:11px}\
         svg .title{font-size:13.5px;font-weight:600}svg .middle{text-anchor:middle}svg .end{text-anchor:end}\
         svg polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}svg polygon{stroke:none;fill-opacity:.18}\
         svg circle{stroke-width:1.5}svg .thin{stroke-width:1}svg .dashed{stroke-dasharray:4 3}\
         svg line{stroke-width:1}svg .cell{font-size:10px}svg .hollow{fill:none;stroke-width:2}",
    );
    let rules = |pick: fn(&(&'static str, &'static str)) -> &'static str,
                 [ink, muted, grid, ground, grey]: [&str; 5]| {
        let mut rules = format!(
            "svg text{{fill:{ink}}}svg .note,svg .label{{fill:{muted}}}svg .grid{{stroke:{grid}}}svg .axis{{stroke:{muted}}}\
             svg .ground{{fill:{ground}}}svg circle:not(.hollow){{stroke:{ground}}}svg .sn{{stroke:{grey}}}svg .fn{{fill:{grey}}}"
        );
        for (at, colour) in COLOURS.iter().map(pick).enumerate() {
            let _ = write!(rules, "svg .s{at}{{stroke:{colour}}}svg .f{at}{{fill:{colour}}}");
        }
        rules
    };
    style.push_str(&rules(|c| c.0, ["#1a1a19", "#5f5e58", "#e6e5e0", "#ffffff", "#8d8c85"]));
    let dark = rules(|c| c.1, ["#f2f1ec", "#aaa9a1", "#3a3a37", "#222220", "#93928a"]);
    let _ = write!(style, "@media (prefers-color-scheme:dark){{{dark}}}");
    style
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::axis::Spread;

    const CAPTION: Caption = Caption { title: "<script>alert('x')</script>", y: "a & b", x: "step" };

    #[test]
    fn text_of_runs_can_not_leave_its_place() {
        let entry = Entry { name: "\"><img src=x onerror=1>\u{1b}[31m".to_owned(), class: "f0".to_owned() };
        let mut svg = Svg::new(CAPTION, &[entry], 100.0);
        svg.dot([10.0, 10.0], "f0", "</title><script>");
        svg.curve([[0.0, 0.5], [f64::NAN, 0.1], [1.0, 1.0]].into_iter(), "s0", "'><script>");
        let element = svg.element();
        assert!(
            !element.contains("<script") && !element.contains("<img") && !element.contains('\u{1b}'),
            "{element}"
        );
        assert!(!element.contains("NaN") && element.contains("a &amp; b"), "{element}");
    }

    #[test]
    fn a_picture_is_well_formed() {
        let mut svg = Svg::new(CAPTION, &[], 100.0);
        let axis = Axis::new([0.0, 3.0].into_iter(), Spread::FromZero);
        svg.axes(&axis, &axis);
        svg.rect(0.0, 0.0, f64::INFINITY, 1.0, "f0", 1.0, "not drawn");
        svg.area([[0.0, 0.0], [1.0, 1.0]].into_iter(), "f0");
        let file = file(&svg.element());
        assert!(file.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox"), "{file}");
        assert_eq!(file.matches('<').count(), file.matches('>').count());
        assert_eq!(file.matches("<text").count(), file.matches("</text>").count());
        assert!(!file.contains("not drawn") && file.contains("prefers-color-scheme"));
    }
}

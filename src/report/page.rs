//! A report as one HTML file that asks nothing of the network.
//!
//! Knows no run: it puts words, tables and pictures in their places. Invariant: every word goes out escaped; what goes out as it is are
//! the pictures of [`super::svg`], which escape theirs, and the style and script of this folder.

use minijinja::Environment;
use serde::Serialize;

use super::svg;

/// A page.
#[derive(Debug, Clone, Serialize, Default)]
pub struct Page {
    /// Its title.
    pub title: String,
    /// What it is about, a line each.
    pub about: Vec<String>,
    /// The numbers that count.
    pub tiles: Vec<Tile>,
    /// What follows, in order.
    pub sections: Vec<Section>,
    /// Last lines.
    pub footer: Vec<String>,
}

/// A number that counts.
#[derive(Debug, Clone, Serialize)]
pub struct Tile {
    /// What it is.
    pub name: String,
    /// The number.
    pub value: String,
    /// What it is measured against.
    pub note: String,
    /// `good`, `bad` or nothing.
    pub tone: &'static str,
}

/// A part of a page.
#[derive(Debug, Clone, Serialize, Default)]
pub struct Section {
    /// Where links lead to.
    pub id: &'static str,
    /// Its title.
    pub title: String,
    /// What a reader should know, a paragraph each.
    pub words: Vec<String>,
    /// Pictures.
    pub figures: Vec<Figure>,
    /// Tables.
    pub tables: Vec<Table>,
    /// Texts side by side.
    pub samples: Vec<Sides>,
    /// Text that stays as it is.
    pub code: String,
}

/// A picture with what it says.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Name of the file, when it becomes one.
    pub name: String,
    /// The picture.
    pub svg: String,
    /// What it says.
    pub told: String,
}

/// A table.
#[derive(Debug, Clone, Serialize, Default)]
pub struct Table {
    /// Its title.
    pub title: String,
    /// Whether it is shown only when asked for.
    pub folded: bool,
    /// Whether its cells are words rather than numbers.
    pub words: bool,
    /// Titles of the columns.
    pub header: Vec<String>,
    /// Its rows.
    pub rows: Vec<Line>,
}

/// A row of a table.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Whether it is the one that the page is about.
    pub strong: bool,
    /// One for each column.
    pub cells: Vec<String>,
}

/// Texts that go on from one prompt.
#[derive(Debug, Clone, Serialize)]
pub struct Sides {
    /// The prompt.
    pub prompt: String,
    /// The texts.
    pub sides: Vec<Side>,
}

/// A text beside another.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    /// Who wrote it.
    pub name: String,
    /// What both have.
    pub same: String,
    /// What it goes on with by itself.
    pub rest: String,
}

impl Page {
    /// The page as HTML.
    ///
    /// # Errors
    /// The template is broken.
    pub fn html(&self) -> anyhow::Result<String> {
        // Names that end in .html are escaped.
        const NAME: &str = "page.html";
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.add_template(NAME, include_str!("page.html"))?;
        let style = format!("{}{}", svg::style(), include_str!("page.css"));
        let script = include_str!("page.js");
        let context = minijinja::context! { ..minijinja::Value::from_serialize(self), ..minijinja::context! { style, script } };
        Ok(environment.get_template(NAME)?.render(context)?)
    }

    /// Every picture of the page, by its name.
    pub fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.sections.iter().flat_map(|section| &section.figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_run_stay_words() {
        let evil = "<script>alert(1)</script>\"'&";
        let page = Page {
            title: evil.to_owned(),
            about: vec![evil.to_owned()],
            tiles: vec![Tile {
                name: evil.to_owned(),
                value: evil.to_owned(),
                note: evil.to_owned(),
                tone: "good",
            }],
            sections: vec![Section {
                title: evil.to_owned(),
                words: vec![evil.to_owned()],
                tables: vec![Table {
                    title: evil.to_owned(),
                    header: vec![evil.to_owned()],
                    rows: vec![Line { strong: true, cells: vec![evil.to_owned()] }],
                    ..Table::default()
                }],
                samples: vec![Sides {
                    prompt: evil.to_owned(),
                    sides: vec![Side { name: evil.to_owned(), same: evil.to_owned(), rest: evil.to_owned() }],
                }],
                code: evil.to_owned(),
                ..Section::default()
            }],
            footer: vec![evil.to_owned()],
        };
        let html = page.html().expect("renders");
        // The one script is the page's own.
        assert_eq!(html.matches("<script").count(), 1, "{html}");
        assert!(html.matches("&lt;script&gt;").count() >= 14, "{html}");
        for outside in ["http://www.w3.org/2000/svg", "src=", "href=", "url(", "@import"] {
            let elsewhere = html.replace("\"http://www.w3.org/2000/svg\"", "");
            assert!(!elsewhere.contains(outside), "{outside} asks for something outside");
        }
    }
}

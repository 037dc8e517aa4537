//! `qat data show`: what a recipe's text looks like to its student, and how much of it is learned.

use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal as _, Write as _, stdout};
use std::sync::atomic::AtomicBool;

use anyhow::anyhow;
use qat_train::{
    data::Marked,
    trainer::{Event, Look, look},
};

use super::{job, plan};
use crate::{Ending, cli, table};

/// Runs the command.
pub fn run(args: &cli::DataShow) -> anyhow::Result<Ending> {
    let (plan, cache) = (plan(&args.text)?, crate::cache_dir());
    let mut notes = Vec::new();
    let mut hear = |event| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
    };
    let seen = look(&job(&plan, &cache)?, &mut hear, &AtomicBool::new(false))?;
    let mut said = String::new();
    let style = Style::of_stdout();
    for number in 0..args.windows.min(seen.train.len() / seen.stride) {
        window(&seen, number, &style, &mut said)?;
    }
    writeln!(said, "{}", counts(&seen, plan.recipe.data.ctx))?;
    notes.iter().try_for_each(|note| writeln!(said, "{note}"))?;
    match stdout().write_all(said.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(Ending::Done),
    }
}

/// How what is learned is told from the rest: by colour on a terminal, elsewhere by brackets.
struct Style {
    learned: [&'static str; 2],
    other: [&'static str; 2],
}

impl Style {
    fn of_stdout() -> Self {
        let colours =
            stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        match colours {
            true => Self { learned: ["\x1b[32m", "\x1b[0m"], other: ["\x1b[2m", "\x1b[0m"] },
            false => Self { learned: ["⟦", "⟧"], other: ["", ""] },
        }
    }

    fn put(&self, text: &str, learned: bool, into: &mut String) {
        if text.is_empty() {
            return;
        }
        let [before, behind] = if learned { self.learned } else { self.other };
        into.push_str(before);
        into.push_str(text);
        into.push_str(behind);
    }
}

/// Writes window `number`, document by document.
fn window(seen: &Look, number: usize, style: &Style, into: &mut String) -> anyhow::Result<()> {
    let start = number * seen.stride;
    let tokens = seen.train.marked(start..start + seen.stride);
    let count = |f: fn(&Marked) -> bool| tokens.iter().filter(|token| f(token)).count();
    writeln!(
        into,
        "── window {}: {} tokens, {} learned ──",
        number + 1,
        tokens.len() - count(|token| token.fills),
        count(|token| token.learned)
    )?;
    let mut stream = seen.tokenizer.decode_stream(false);
    let (mut run, mut learned, mut documents) = (String::new(), false, 0);
    for token in tokens.iter().filter(|token| !token.fills) {
        if token.begins && documents > 0 {
            style.put(&std::mem::take(&mut run), learned, into);
            into.push_str("\n── next document ──\n");
        }
        documents += usize::from(token.begins);
        if token.learned != learned {
            style.put(&std::mem::take(&mut run), learned, into);
            learned = token.learned;
        }
        let piece = stream.step(token.id).map_err(|e| anyhow!("token {}: {e}", token.id))?;
        run.push_str(&harmless(&piece.unwrap_or_default()));
        if token.cut {
            run.push_str(" …(cut)");
        }
    }
    style.put(&run, learned, into);
    let fill = count(|token| token.fills);
    if fill > 0 {
        write!(into, "\n── {fill} tokens left over ──")?;
    }
    into.push_str("\n\n");
    Ok(())
}

/// Text without what would move the cursor of a terminal.
fn harmless(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// How much there is.
fn counts(seen: &Look, ctx: usize) -> String {
    let mut lines = table::lines();
    let mut row = |name: &str, value: String| {
        lines.add_row([name.to_owned(), value]);
    };
    let of = |part: u64, all: u64| {
        format!("{} ({:.1} %)", table::count(part), 100.0 * part as f64 / all.max(1) as f64)
    };
    let tokens = (seen.train.len() + seen.valid.len()) as u64;
    row("documents", table::count(seen.train.header().documents));
    if seen.stride == ctx {
        row("tokens", table::count(tokens));
        row("learned", of(tokens, tokens));
    } else {
        let [mut all, held_out] = [seen.train.census(), seen.valid.census()];
        all.tokens += held_out.tokens;
        all.learned += held_out.learned;
        all.fill += held_out.fill;
        all.cut += held_out.cut;
        row("tokens", table::count(all.tokens));
        row("learned", of(all.learned, all.tokens));
        row("left over in windows", of(all.fill, tokens));
        row("documents cut", table::count(all.cut));
    }
    row("windows to train on", table::count((seen.train.len() / seen.stride) as u64));
    row("windows held out", table::count((seen.valid.len() / seen.stride) as u64));
    row("tokens of a window", table::count(ctx as u64));
    lines.to_string()
}

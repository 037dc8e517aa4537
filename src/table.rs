//! Tables for the terminal: one report in full, and several side by side.

use comfy_table::{CellAlignment, ContentArrangement, Table, TableStyle, presets};
use qat_infer::eval::Report;

/// A size in bytes as people read it.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let power = (n.max(1).ilog2() / 10).min(3);
    match power {
        0 => format!("{n} B"),
        p => format!("{:.2} {}", n as f64 / (1u64 << (10 * p)) as f64, UNITS[p as usize]),
    }
}

/// Energy as people read it.
pub fn joules(joules: f64) -> String {
    match joules {
        j if j < 1e-3 => format!("{:.3} mJ", j * 1e3),
        j if j < 1.0 => format!("{:.2} mJ", j * 1e3),
        j => format!("{j:.2} J"),
    }
}

/// Width of a report when the output is no terminal, which would tell its own.
const WIDTH: u16 = 130;

/// A number with its digits in threes.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let grouped: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|three| str::from_utf8(three).ok()).collect();
    grouped.join(",")
}

/// For names and values, a line each.
pub fn lines() -> Table {
    let mut table = empty(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.set_width(WIDTH);
    }
    table
}

/// For rows under `header`; the columns `of_words` begin at their left, the others are numbers.
pub fn with_header(header: &[&str], of_words: &[usize]) -> Table {
    let mut table = empty(presets::ASCII_MARKDOWN);
    table.set_header(header);
    for (at, column) in table.column_iter_mut().enumerate() {
        if !of_words.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// One report, a line each.
pub fn report(r: &Report) -> Table {
    let mut table = lines();
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row("perplexity", format!("{:.4} ± {:.4}", r.perplexity, r.perplexity_se));
    row("bits per byte", format!("{:.4}", r.bits_per_byte));
    row("tokens scored", format!("{} in {} windows of {}", r.tokens, r.windows, r.ctx));
    if let Some(floor) = r.entropy_floor_nats {
        let above = r.nll_mean - floor;
        row(
            "above the text's true entropy",
            format!("{above:.4} nats/token (entropy {floor:.4}, perplexity {:.4})", floor.exp()),
        );
    }
    if let (Some(kl), Some(se), Some(top1)) = (r.kl_mean, r.kl_se, r.same_top1) {
        row("KL to the reference", format!("{kl:.6} ± {se:.6} nats/token"));
        row("same top-1 as the reference", format!("{:.2} %", 100.0 * top1));
    }
    if let (Some(delta), Some(se)) = (r.delta_ln_ppl, r.delta_ln_ppl_se) {
        row("Δ ln perplexity", format!("{delta:+.6} ± {se:.6}"));
    }
    row("prefill", format!("{:.0} tokens/s", r.prefill_tps));
    row("decode", format!("{:.0} tokens/s", r.decode_tps));
    row("first token", format!("{:.2} ms after a prompt of {}", r.ttft_ms, r.prompt_tokens));
    if let Some((prefill, decode)) = r.prefill_joules_per_token.zip(r.decode_joules_per_token) {
        row(
            "energy",
            format!("{} a token read, {} a token written ({})", joules(prefill), joules(decode), r.energy),
        );
    } else {
        row("energy", r.energy.clone());
    }
    row("peak memory", r.peak_rss_bytes.map_or("not measured here".to_owned(), bytes));
    row("bits per weight", format!("{:.4}", r.bits_per_weight));
    row("file", bytes(r.file_bytes));
    row("device", format!("{} ({})", r.device, r.isa));
    row("protocol", r.protocol.clone());
    table
}

/// A model in a comparison.
#[derive(Debug, Clone)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// What it scored.
    pub report: Report,
    /// Reports of the same formats without training, when this one was trained.
    pub untrained: Vec<Report>,
}

/// Columns of a comparison.
pub const COMPARISON: [&str; 8] =
    ["model", "bits/weight", "file", "perplexity", "lost (Δ ln ppl)", "KL", "same top-1", "won back"];

/// Models side by side: what rounding lost, and what training won back of it.
pub fn comparison(rows: &[Row]) -> Table {
    // Markdown, so that the table can be pasted where results are kept.
    let mut table = with_header(&COMPARISON, &[0]);
    for row in rows {
        table.add_row(row.cells());
    }
    table
}

impl Row {
    /// What stands in the columns of a comparison.
    pub fn cells(&self) -> [String; 8] {
        let r = &self.report;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        [
            self.name.clone(),
            format!("{:.2}", r.bits_per_weight),
            bytes(r.file_bytes),
            format!("{:.3} ± {:.3}", r.perplexity, r.perplexity_se),
            or_dash(r.delta_ln_ppl.zip(r.delta_ln_ppl_se).map(|(d, se)| format!("{d:+.4} ± {se:.4}"))),
            or_dash(r.kl_mean.zip(r.kl_se).map(|(kl, se)| format!("{kl:.4} ± {se:.4}"))),
            or_dash(r.same_top1.map(|t| format!("{:.1} %", 100.0 * t))),
            or_dash(won_back(self)),
        ]
    }
}

/// Share of the loss in ln perplexity (against the best untrained rounding) that training undid; nothing where rounding
/// lost less than two standard errors, since a share of noise is noise.
pub fn won_back(row: &Row) -> Option<String> {
    let lost = |r: &Report| r.delta_ln_ppl.zip(r.delta_ln_ppl_se);
    let (untrained, se) = row.untrained.iter().filter_map(lost).min_by(|a, b| a.0.total_cmp(&b.0))?;
    let (trained, _) = lost(&row.report)?;
    (untrained > 2.0 * se).then(|| format!("{:.0} %", 100.0 * (untrained - trained) / untrained))
}

fn empty(style: TableStyle) -> Table {
    let mut table = Table::new();
    table.load_style(style);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!([0, 1023, 1024, 3 << 20].map(bytes), ["0 B", "1023 B", "1.00 KiB", "3.00 MiB"]);
        assert_eq!([0, 999, 1000, 134_515_008].map(count), ["0", "999", "1,000", "134,515,008"]);
    }
}

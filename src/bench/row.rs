//! One measured test as a row: in Markdown with the columns of llama-bench, in CSV and JSON with the names of its fields.
//!
//! Knows no clock but the calendar. Fields that llama-bench has and that mean nothing here (GPUs, batch sizes) are left
//! out; fields of our own follow behind its.

use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{CellAlignment, Table, presets};
use qat_infer::{
    bench::{Bandwidth, Samples, Setup, Work, cpu_name},
    cpu::{CpuDecoder, Matrix, Model},
    files::Activations,
    model::{Param, Role, params},
};
use qat_quant::kernels::Isa;
use serde::Serialize;

use super::Bandwidths;

/// The result of a test. Sizes in bytes, rates per second.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    qat_version: &'static str,
    cpu_info: String,
    backends: &'static str,
    model_filename: String,
    model_type: String,
    model_size: u64,
    model_n_params: u64,
    n_threads: usize,
    type_k: String,
    type_v: String,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    test_time: String,
    avg_ns: u64,
    stddev_ns: u64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
    test: String,
    isa: &'static str,
    activations: String,
    bytes_per_token: Option<f64>,
    bytes_per_second: Option<f64>,
    triad_bytes_per_second: Option<f64>,
    read_bytes_per_second: Option<f64>,
    of_triad: Option<f64>,
    of_read: Option<f64>,
    watts: Option<f64>,
    joules_per_token: Option<f64>,
    energy: String,
}

impl Row {
    /// The row of `samples`, taken on `model` with `isa` just now; `energy` says what was counted, or why nothing was.
    pub fn new(model: &Model, setup: &Setup, samples: &Samples, isa: Isa, energy: &str) -> Self {
        let params = params(&model.decoder.config);
        let elements: usize = params.iter().map(|p| p.shape.iter().product::<usize>()).sum();
        let (n_prompt, n_gen) = match samples.test.work {
            Work::Prompt(n) => (n, 0),
            Work::Generation(n) => (0, n),
        };
        let samples_ts = samples.rates();
        let samples_ns: Vec<u64> = samples.times.iter().map(|time| time.as_nanos() as u64).collect();
        let (avg_ns, stddev_ns) = mean_and_deviation(samples_ns.iter().map(|ns| *ns as f64));
        let (avg_ts, stddev_ts) = mean_and_deviation(samples_ts.iter().copied());
        Self {
            qat_version: env!("CARGO_PKG_VERSION"),
            cpu_info: cpu_name(),
            backends: "CPU",
            model_filename: model.origin.display().to_string(),
            model_type: description(model, &params, elements),
            model_size: (model.size.bits_per_weight * elements as f64 / 8.0).round() as u64,
            model_n_params: elements as u64,
            n_threads: setup.threads.get(),
            type_k: setup.kv.to_string(),
            type_v: setup.kv.to_string(),
            n_prompt,
            n_gen,
            n_depth: samples.test.depth,
            test_time: rfc3339(SystemTime::now()),
            avg_ns: avg_ns.round() as u64,
            stddev_ns: stddev_ns.round() as u64,
            avg_ts,
            stddev_ts,
            samples_ns,
            samples_ts,
            test: samples.test.to_string(),
            isa: isa.name(),
            activations: activations(&model.decoder),
            bytes_per_token: samples.bytes_per_token,
            bytes_per_second: samples.bytes_per_token.map(|bytes| bytes * avg_ts),
            triad_bytes_per_second: None,
            read_bytes_per_second: None,
            of_triad: None,
            of_read: None,
            watts: samples.energy().map(|(watts, _)| watts),
            joules_per_token: samples.energy().map(|(_, joules)| joules),
            energy: energy.to_owned(),
        }
    }

    /// Tokens per second as llama-bench prints them.
    pub fn rate(&self) -> String {
        format!("{:.2} ± {:.2}", self.avg_ts, self.stddev_ts)
    }

    /// Sets what the row moves beside what the machine could.
    pub fn compare(&mut self, memory: &Bandwidths) {
        let found = memory.iter().find(|(threads, _)| threads.get() == self.n_threads);
        let (Some((_, memory)), Some(moved)) = (found, self.bytes_per_second) else { return };
        self.triad_bytes_per_second = Some(memory.triad);
        self.read_bytes_per_second = Some(memory.read);
        self.of_triad = Some(moved / memory.triad);
        self.of_read = Some(moved / memory.read);
    }
}

/// Family, size and formats, such as `llama 134.52M int4-g32, head int8-g32`.
fn description(model: &Model, params: &[Param], elements: usize) -> String {
    let family = model.decoder.config.family.model_type();
    let formats = |wanted: &[Role]| {
        let stored = params.iter().filter(|p| wanted.contains(&p.role));
        let mut names: Vec<String> = stored.filter_map(|param| model.stored_as(param)).collect();
        names.sort();
        names.dedup();
        names.join(" + ")
    };
    let (layers, head) = (formats(&[Role::Projection]), formats(&[Role::Embedding, Role::Head]));
    let size = parameters(elements as u64);
    if layers == head {
        format!("{family} {size} {layers}")
    } else {
        format!("{family} {size} {layers}, head {head}")
    }
}

/// What the inputs of the layers are rounded to, and those of the head if it differs.
fn activations(decoder: &CpuDecoder) -> String {
    let name = |rounded: bool| if rounded { "int8" } else { "float" };
    let int8 = |matrix: &Matrix| matrix.activations() == Activations::Int8Token;
    let layers = decoder.layers.iter().any(|layer| int8(&layer.down.weight));
    let head = int8(decoder.head.as_ref().map_or(&decoder.embed, |head| &head.weight));
    if layers == head { name(layers).to_owned() } else { format!("{}, head {}", name(layers), name(head)) }
}

/// Mean and sample standard deviation; 0 for a single value.
fn mean_and_deviation(values: impl ExactSizeIterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.clone().sum::<f64>() / n;
    let squares: f64 = values.map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// A number of parameters in millions or billions.
fn parameters(n: u64) -> String {
    match n {
        1_000_000_000.. => format!("{:.2}B", n as f64 / 1e9),
        _ => format!("{:.2}M", n as f64 / 1e6),
    }
}

/// Rows as a table in Markdown, with the bandwidth of the memory below it.
pub fn markdown(rows: &[Row], memory: &Bandwidths) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let has_energy = rows.iter().any(|row| row.joules_per_token.is_some());
    let mut header = vec![
        "model",
        "size",
        "params",
        "backend",
        "isa",
        "threads",
        "act",
        "kv",
        "test",
        "t/s",
        "MiB/token",
        "GB/s",
        "of triad",
        "of read",
    ];
    if has_energy {
        header.extend(["W", "per token"]);
    }
    table.set_header(header);
    for row in rows {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        let percent = |share: Option<f64>| or_dash(share.map(|share| format!("{:.1} %", 100.0 * share)));
        let mut cells = vec![
            row.model_type.clone(),
            crate::table::bytes(row.model_size),
            parameters(row.model_n_params),
            row.backends.to_owned(),
            row.isa.to_owned(),
            row.n_threads.to_string(),
            row.activations.clone(),
            row.type_k.clone(),
            row.test.clone(),
            row.rate(),
            or_dash(row.bytes_per_token.map(|bytes| format!("{:.2}", bytes / f64::from(1 << 20)))),
            or_dash(row.bytes_per_second.map(|bytes| format!("{:.2}", bytes / 1e9))),
            percent(row.of_triad),
            percent(row.of_read),
        ];
        if has_energy {
            cells.push(or_dash(row.watts.map(|watts| format!("{watts:.1}"))));
            cells.push(or_dash(row.joules_per_token.map(crate::table::joules)));
        }
        table.add_row(cells);
    }
    for column in [1, 2, 5, 8, 9, 10, 11, 12, 13, 14, 15] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = format!("{table}\n");
    for Bandwidth { threads, array_bytes, triad, read } in memory.values() {
        text += &format!(
            "\nmemory, {threads} threads: triad {:.2} GB/s (3 × 8 bytes per element), read {:.2} GB/s; three arrays of {}\n",
            triad / 1e9,
            read / 1e9,
            crate::table::bytes(*array_bytes as u64),
        );
    }
    if let Some(row) = rows.first() {
        text += &format!("\nenergy: {}\n", row.energy);
    }
    text
}

/// Rows as CSV: every value in quotes, without the single repetitions.
pub fn csv(rows: &[Row]) -> anyhow::Result<String> {
    let mut text = String::new();
    for row in rows {
        let serde_json::Value::Object(fields) = serde_json::to_value(row)? else { continue };
        let single = || fields.iter().filter(|(_, value)| !value.is_array());
        if text.is_empty() {
            text += &single().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",");
            text.push('\n');
        }
        let cell = |value: &serde_json::Value| match value {
            serde_json::Value::Null => "\"\"".to_owned(),
            serde_json::Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
            other => format!("\"{other}\""),
        };
        text += &single().map(|(_, value)| cell(value)).collect::<Vec<_>>().join(",");
        text.push('\n');
    }
    Ok(text)
}

/// `time` as 2026-01-31T23:59:59Z. The calendar is counted from 1 March of year 0, so that the leap day ends a year, in
/// eras of 400 years (H. Hinnant, "chrono-compatible low-level date algorithms").
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), date);
        }
    }

    #[test]
    fn deviations_are_those_of_a_sample() {
        assert_eq!(mean_and_deviation([1.0, 2.0, 3.0].into_iter()), (2.0, 1.0));
        assert_eq!(mean_and_deviation([5.0].into_iter()), (5.0, 0.0));
    }
}

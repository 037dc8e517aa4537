//! The model card: a README.md that says what the files are, where they come from and what they were measured to be.
//!
//! Knows no target; prints nothing. Invariant: says nothing that the manifest, the report or the files don't, and says so where
//! something was not measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::{Export, Requantized, Source, Target};
use crate::eval::Report;
use crate::files::{Activations, Storage};
use crate::model::Role;

/// Name of the card in its directory.
pub(super) const CARD_FILE: &str = "README.md";

/// What the card tells.
pub(super) struct Card<'a> {
    pub job: &'a Export<'a>,
    pub source: &'a Source,
    /// Name of the directory.
    pub name: &'a str,
    pub requantized: Option<&'a Requantized>,
    /// Length and SHA-256 of each file, by name.
    pub files: &'a BTreeMap<String, (u64, String)>,
}

impl Card<'_> {
    /// The card in Markdown.
    pub fn text(&self) -> String {
        let mut text = self.front_matter();
        let origin = &self.source.dir.manifest.source;
        let base = base_name(origin);
        let Self { name, job, .. } = self;
        let of = base.map_or(String::new(), |base| format!(", made of {base}"));
        let _ = write!(text, "# {name}\n\n{} {}{of}.\n\n", article(self.source), job.target.title());
        let _ = write!(text, "## Use\n\n{}\n", job.target.usage(name).trim_end());
        let _ = write!(text, "\n## Origin\n\n{}", self.origin(origin));
        let _ = write!(text, "\n## Numbers\n\n{}", self.formats());
        let _ = write!(text, "\n## Quality\n\n{}", self.quality());
        let _ = write!(text, "\n## Memory\n\n{}", self.memory());
        let _ = write!(text, "\n## Files\n\n| file | bytes | SHA-256 |\n|---|---|---|\n");
        for (name, (bytes, sha256)) in self.files {
            let _ = writeln!(text, "| {} | {bytes} | `{sha256}` |", cell(name));
        }
        text.push_str("\nAfter writing, every tensor was read back from these files, decoded and compared with the trained values: equal.\n");
        text
    }

    /// What model hubs read.
    fn front_matter(&self) -> String {
        let origin = &self.source.dir.manifest.source;
        let mut text = "---\n".to_owned();
        if let Some(base) = base_name(origin) {
            let _ = writeln!(text, "base_model: {}", yaml(&base));
        }
        if let Some(licence) = licence(origin) {
            let _ = writeln!(text, "license: {}", yaml(&licence));
        }
        let library = self.job.target.library();
        let _ = write!(
            text,
            "library_name: {library}\npipeline_tag: text-generation\ntags: [qat, quantized, {}]\n---\n\n",
            self.job.target
        );
        text
    }

    fn origin(&self, origin: &Value) -> String {
        let mut text = String::new();
        let base = base_name(origin).unwrap_or_else(|| "random weights".into());
        let _ = writeln!(text, "- base: {base}");
        let _ = match licence(origin) {
            Some(licence) => writeln!(text, "- licence of the base: {licence}"),
            None => writeln!(text, "- licence of the base: not stated in its files; ask its publisher"),
        };
        match origin["method"].as_str() {
            Some("trained") => {
                let recipe = &origin["recipe"];
                let _ = writeln!(text, "- method: quantization-aware training, {} steps", origin["step"]);
                if let Some(data) = recipe["data"]["train"].as_array() {
                    let list: Vec<_> = data.iter().filter_map(Value::as_str).collect();
                    let _ = writeln!(text, "- training data: {}", list.join(", "));
                }
                if let Some(teacher) = recipe["teacher"]["model"].as_str() {
                    let _ = writeln!(text, "- teacher: {teacher}");
                }
            }
            Some("rounded") => {
                let rule = origin["scales"].as_str().unwrap_or("unknown");
                let _ = writeln!(
                    text,
                    "- method: rounded after training (scales by {rule}), not trained with the quantizer"
                );
            }
            Some(other) => {
                let _ = writeln!(text, "- method: {other}");
            }
            None => {}
        }
        if let Some(requantized) = self.requantized {
            let _ = writeln!(
                text,
                "- **rounded again for this export** ({} of its matrices), since {} lacks the grid they were trained on: {requantized}",
                requantized.changes.len(),
                self.job.target
            );
        }
        text
    }

    fn formats(&self) -> String {
        let manifest = &self.source.dir.manifest;
        let mut by_format: BTreeMap<(String, &str), (usize, usize)> = BTreeMap::new();
        let mut rounded = false;
        for param in self.source.params() {
            let Some(entry) = manifest.tensors.get(&param.name) else { continue };
            rounded |= entry.activations == Activations::Int8Token;
            let format = match entry.storage {
                Storage::Packed(format) => format.to_string(),
                Storage::Float(_) => "float".to_owned(),
            };
            let role = match param.role {
                Role::Embedding if self.source.config.tie_word_embeddings => "embedding and head",
                Role::Embedding => "embedding",
                Role::Head => "head",
                Role::Projection => "layers",
                Role::Norm => "norms",
                Role::Bias => "biases",
                Role::Conv => "convolutions",
            };
            let sum = by_format.entry((format, role)).or_default();
            *sum = (sum.0 + 1, sum.1 + entry.elements());
        }
        let mut text = "| format | tensors | of | weights |\n|---|---|---|---|\n".to_owned();
        for ((format, role), (tensors, weights)) in &by_format {
            let _ = writeln!(text, "| {format} | {role} | {tensors} | {weights} |");
        }
        let _ = write!(
            text,
            "\n{:.3} bits per weight as trained, embeddings, scales and norms included.\n",
            manifest.bits_per_weight
        );
        if rounded {
            text.push_str(
                "\nTrained with the inputs of the layers' matrices rounded to 8 bits per token; a runtime that leaves them float gives \
                 slightly different logits.\n",
            );
        }
        text
    }

    fn quality(&self) -> String {
        let not = |why: &str| format!("Not measured{why}: `qat eval` scores the packed model.\n");
        if self.requantized.is_some() {
            return not(" for these codes, which were rounded again");
        }
        match self.job.report {
            Some(report) => scores(report),
            None => not(""),
        }
    }

    fn memory(&self) -> String {
        let config = &self.source.config;
        let weights: u64 =
            self.files.iter().filter(|(n, _)| is_weights(n)).map(|(_, (bytes, _))| bytes).sum();
        let per_token = 2 * config.layers * config.kv_size() * 2;
        format!(
            "Files of weights: {weights} bytes. KV cache: {per_token} bytes per token in f16, {:.1} MiB for {} tokens.\n",
            (per_token * self.job.context(config)) as f64 / f64::from(1 << 20),
            self.job.context(config)
        )
    }
}

fn scores(report: &Report) -> String {
    let mut text = format!(
        "Of the packed model, whose values these files hold:\n\n- perplexity {:.4} ± {:.4} ({} tokens)\n",
        report.perplexity, report.perplexity_se, report.tokens
    );
    if let (Some(kl), Some(se)) = (report.kl_mean, report.kl_se) {
        let _ = writeln!(text, "- KL(reference ‖ this) {kl:.5} ± {se:.5} nats per token");
    }
    if let Some(same) = report.same_top1 {
        let _ = writeln!(text, "- same most probable token as the reference: {:.2} %", 100.0 * same);
    }
    if let Some(reference) = report.reference_perplexity {
        let _ = writeln!(text, "- perplexity of the reference {reference:.4}");
    }
    let _ = writeln!(text, "- protocol: {}", report.protocol);
    text
}

fn is_weights(name: &str) -> bool {
    [".safetensors", ".gguf", ".data", ".onnx"].iter().any(|end| name.ends_with(end))
}

fn article(source: &Source) -> &'static str {
    match source.dir.manifest.source["method"].as_str() {
        Some("trained") => "A language model trained with its quantizer in the loop,",
        _ => "A quantized language model,",
    }
}

/// The base's name: as the exporter wrote it down, or where the recipe took it from.
pub(super) fn base_name(origin: &Value) -> Option<String> {
    let told = origin["base"]["name"].as_str();
    told.or_else(|| origin["recipe"]["student"]["from"].as_str()).map(cell)
}

/// The licence of the base, if it was written down.
pub(super) fn licence(origin: &Value) -> Option<String> {
    origin["base"]["license"].as_str().map(cell)
}

/// On one line, without what would end a table's cell.
fn cell(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || c == '|' { ' ' } else { c }).collect()
}

/// A YAML string, quoted: JSON's strings are such.
fn yaml(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

impl Target {
    /// A row of the list of targets in messages and cards.
    fn title(self) -> String {
        format!("in the files of {}", self.exporter().runtime())
    }
}

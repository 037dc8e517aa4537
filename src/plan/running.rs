//! What a model will weigh and where it runs: parameters by part, bytes of its files, keys and values, devices.
//!
//! Knows no training. Invariant: sizes come from the writers and from the lists of calls that devices would run.

use std::fmt;

use qat_infer::{
    cpu::KvType,
    export::{self, Target},
    files::Activations,
    metal::{self, longest_context},
    outline::{Outline, Share, decode_bytes},
};
use serde::Serialize;

use super::tiers::{TIERS, Tier};
use crate::table;

/// Tokens in front of the one whose time is predicted, where the context has room for them.
const PAST: usize = 1024;

/// The model. Sizes in bytes.
#[derive(Debug, Serialize)]
pub struct Running {
    parameters: u64,
    bits_per_weight: f64,
    parts: Vec<Share>,
    files: Vec<File>,
    keys_and_values: Vec<Cache>,
    /// Tokens in front of the one that `devices` predict.
    past: usize,
    devices: Vec<Fit>,
    /// Why there are no devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_devices: Option<String>,
}

/// The files of a format.
#[derive(Debug, Serialize)]
struct File {
    format: String,
    /// Of the files that hold tensors; none where they don't follow from the shapes.
    bytes: Option<u64>,
    /// What is not in that number.
    without: &'static str,
}

/// Keys and values of a context.
#[derive(Debug, Serialize)]
struct Cache {
    context: usize,
    f32: u64,
    f16: u64,
    int8: u64,
    int4: u64,
}

/// What a device has room for.
#[derive(Debug, Serialize)]
struct Fit {
    device: &'static str,
    memory_gb: u64,
    limit_bytes: u64,
    /// Longest contexts; none where not even a token fits.
    context_f16: Option<usize>,
    context_int8: Option<usize>,
    gb_per_s: f64,
    /// With keys and values in f16, at most.
    tokens_per_second: Option<f64>,
}

impl Running {
    /// Of a model with these tensors, whose inputs are rounded so, in the files of `targets` beside the packed ones, with keys and values
    /// for these contexts.
    pub fn of(
        outline: &Outline,
        activations: Activations,
        targets: &[Target],
        options: &export::Options,
        contexts: &[usize],
    ) -> anyhow::Result<Self> {
        let packed = File { format: "qat".into(), bytes: Some(outline.packed_bytes()), without: "" };
        let of_target = |target: &Target| File {
            format: target.to_string(),
            bytes: target.bytes(&outline.config, &outline.tensors, options),
            without: if matches!(target, Target::Gguf | Target::Ollama) { "its tokenizer" } else { "" },
        };
        let longest = outline.config.max_position_embeddings;
        let kv = |kv, context| outline.kv_bytes(kv, context);
        let mut contexts: Vec<usize> = contexts.iter().map(|context| *context.min(&longest)).collect();
        contexts.dedup();
        let cache = |context: usize| Cache {
            context,
            f32: kv(KvType::F32, context),
            f16: kv(KvType::F16, context),
            int8: kv(KvType::Int8, context),
            int4: kv(KvType::Int4, context),
        };
        let past = PAST.min(longest - 1);
        let (devices, no_devices) = match devices(&outline.hollow(activations)?, past) {
            Ok(devices) => (devices, None),
            Err(problem) => (Vec::new(), Some(problem.to_string())),
        };
        Ok(Self {
            parameters: outline.parameters(),
            bits_per_weight: outline.bits_per_weight(),
            parts: outline.shares(),
            files: std::iter::once(packed).chain(targets.iter().map(of_target)).collect(),
            keys_and_values: contexts.into_iter().map(cache).collect(),
            past,
            devices,
            no_devices,
        })
    }
}

fn devices(decoder: &metal::Decoder, past: usize) -> qat_infer::Result<Vec<Fit>> {
    let bytes = decode_bytes(decoder, past, KvType::F16)?;
    let fit = |tier: &Tier| {
        let longest = |kv| longest_context(decoder, &metal::Options::new(1).with_kv(kv), tier.room());
        let context_f16 = longest(KvType::F16)?;
        Ok(Fit {
            device: tier.name,
            memory_gb: tier.memory,
            limit_bytes: tier.limit,
            context_f16,
            context_int8: longest(KvType::Int8)?,
            gb_per_s: tier.gb_per_s,
            tokens_per_second: context_f16.map(|_| tier.gb_per_s * 1e9 / bytes as f64),
        })
    };
    TIERS.iter().map(fit).collect()
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut parts = table::with_header(&["part", "parameters", "as stored", "bits/weight"], &[0]);
        let mut row = |what: &str, parameters: u64, bytes: u64| {
            let bits = 8.0 * bytes as f64 / parameters as f64;
            parts.add_row([
                what.to_owned(),
                table::count(parameters),
                table::bytes(bytes),
                format!("{bits:.2}"),
            ]);
        };
        self.parts.iter().for_each(|part| row(&part.what, part.parameters, part.bytes));
        row("all", self.parameters, self.parts.iter().map(|part| part.bytes).sum());
        write!(f, "{parts}\n\n")?;
        let mut files = table::with_header(&["format", "files with the weights", "without"], &[0, 2]);
        for File { format, bytes, without } in &self.files {
            let bytes = bytes.map_or("known when written".to_owned(), |n| {
                format!("{} ({})", table::count(n), table::bytes(n))
            });
            files.add_row([format.clone(), bytes, (*without).to_owned()]);
        }
        write!(f, "{files}\n\n")?;
        let mut caches = table::with_header(&["keys and values", "f32", "f16", "int8", "int4"], &[]);
        for Cache { context, f32, f16, int8, int4 } in &self.keys_and_values {
            let sizes = [f32, f16, int8, int4].map(|n| table::bytes(*n));
            caches.add_row([format!("{} tokens", table::count(*context as u64))].into_iter().chain(sizes));
        }
        write!(f, "{caches}\n\n{}", self.fits())
    }
}

impl Running {
    fn fits(&self) -> String {
        if let Some(problem) = &self.no_devices {
            return format!("Apple's GPUs: {problem}");
        }
        let header = ["device", "may take", "context, f16", "context, int8", "GB/s", "tokens/s, at most"];
        let mut fits = table::with_header(&header, &[0]);
        for fit in &self.devices {
            let context = |n: Option<usize>| n.map_or("does not fit".to_owned(), |n| table::count(n as u64));
            fits.add_row([
                fit.device.to_owned(),
                format!("{:.1} GB", fit.limit_bytes as f64 / 1e9),
                context(fit.context_f16),
                context(fit.context_int8),
                fit.gb_per_s.to_string(),
                fit.tokens_per_second.map_or("–".to_owned(), |rate| format!("{rate:.0}")),
            ]);
        }
        format!(
            "{fits}\n\nContexts: the longest whose buffers fit beside 150 MB of an app. Tokens/s after {} tokens: bytes of the GPU's list of calls\n\
             over the bandwidth of the slowest device of the kind; a bound, not a measurement. Limits of iPhones are developers' reports.",
            table::count(self.past as u64)
        )
    }
}

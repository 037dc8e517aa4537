//! The fixtures that the executor's tests share, and in each file one of its promises.

mod invariance;
mod packed;
mod reference;
mod windows;

use serde_json::Value;

use super::*;
use crate::files::TensorFiles;
use crate::shared::shared;

const FIXTURES: [&str; 5] = ["llama_tied", "llama_untied", "qwen2", "qwen3", "qwen3_tied"];

/// Models with layers of other kinds: ternary ones with 8-bit inputs as codes and as floats, convolutions, heads of which a part turns,
/// and windows.
const OTHERS: [&str; 7] =
    ["llama_ternary", "llama_bitlinear", "bitnet_online", "bitnet_packed", "lfm2", "phi3", "gemma3"];

struct Fixture {
    name: &'static str,
    model: Model,
    expected: TensorFiles,
    texts: Value,
}

impl Fixture {
    fn all() -> Vec<Self> {
        Self::open(&FIXTURES)
    }

    /// Those of every kind of layer.
    fn every() -> Vec<Self> {
        Self::open(&[FIXTURES.as_slice(), &OTHERS].concat())
    }

    fn open(names: &[&'static str]) -> Vec<Self> {
        let Some(root) = shared("fixtures") else { return Vec::new() };
        let open = |name: &'static str| {
            let dir = root.join(name);
            let texts = std::fs::read(dir.join("expected.json")).expect("expected.json");
            Self {
                name,
                model: Model::open(&dir).expect("a fixture opens"),
                expected: TensorFiles::open_file(&dir.join("expected.safetensors")).expect("expected"),
                texts: serde_json::from_slice(&texts).expect("JSON"),
            }
        };
        names.iter().copied().map(open).collect()
    }

    /// `(ids, logits)` of each reference prompt.
    fn prompts(&self) -> Vec<(Vec<u32>, Vec<f32>)> {
        (0..4)
            .map(|i| {
                let bytes = self.expected.bytes(&format!("prompt_{i}")).expect("prompt");
                let ids: Vec<u32> =
                    bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
                let shape = [ids.len(), self.model.decoder.config.vocab_size];
                let logits = self.expected.f32(&format!("logits_{i}"), &shape).expect("logits");
                (ids, logits)
            })
            .collect()
    }
}

/// Keys and values as they are: what the references did.
fn exact(context: usize) -> RunOptions {
    RunOptions::new(context).with_kv(KvType::F32)
}

fn all_logits(decoder: &CpuDecoder, ids: &[u32]) -> Vec<f32> {
    let mut session = Session::new(decoder, &exact(ids.len())).expect("fits");
    let hidden = session.hidden(ids).expect("ids of the vocabulary");
    session.logits(&hidden, 0, ids.len()).expect("logits").to_vec()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.expect("a vocabulary").0 as u32
}

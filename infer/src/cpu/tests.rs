//! The executor against the reference logits of transformers, and against itself.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::files::TensorFiles;

const FIXTURES: [&str; 5] = ["llama_tied", "llama_untied", "qwen2", "qwen3", "qwen3_tied"];

/// A folder beside the repository, or none with a loud line.
fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: {} is not there", path.display());
    None
}

struct Fixture {
    name: &'static str,
    model: Model,
    expected: TensorFiles,
    texts: Value,
}

impl Fixture {
    fn all() -> Vec<Self> {
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
        FIXTURES.into_iter().map(open).collect()
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

fn all_logits(decoder: &CpuDecoder, ids: &[u32]) -> Vec<f32> {
    let mut session = Session::new(decoder, ids.len()).expect("fits");
    let hidden = session.hidden(ids).expect("ids of the vocabulary");
    session.logits(&hidden, 0, ids.len()).expect("logits").to_vec()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.expect("a vocabulary").0 as u32
}

#[test]
fn logits_agree_with_transformers() {
    for fixture in Fixture::all() {
        let mut worst = 0f32;
        for (ids, want) in fixture.prompts() {
            let found = all_logits(&fixture.model.decoder, &ids);
            assert_eq!(found.len(), want.len());
            worst = found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
        }
        println!("{}: {worst:e}", fixture.name);
        // The bound of the task: logits of a few units, f32 sums of at most 512 products on both sides.
        assert!(worst <= 1e-4, "{}: {worst}", fixture.name);
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for fixture in Fixture::all() {
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(fixture.texts[key].clone()).expect(key) };
        let (prompt, want) = (ids("greedy_prompt"), ids("greedy"));
        let mut session = Session::new(&fixture.model.decoder, prompt.len() + want.len()).expect("fits");
        let mut found = vec![argmax(&session.prefill(&prompt).expect("prompt"))];
        while found.len() < want.len() {
            let last = *found.last().expect("one");
            found.push(argmax(&session.step(last).expect("step")));
        }
        assert_eq!(found, want, "{}", fixture.name);
    }
}

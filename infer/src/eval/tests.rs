//! Scores against numbers that were measured elsewhere or can be worked out by hand.

use std::path::{Path, PathBuf};

use super::*;
use crate::cpu::Model;

/// A path beside the repository, or none with a loud line.
fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: {} is not there", path.display());
    None
}

fn score_of(model: &Model, text: &str, protocol: Protocol) -> Score {
    let text = Text::encode(&model.tokenizer().expect("tokenizer"), text).expect("text");
    let windows = Windows::new(&text, protocol).expect("windows");
    score(&model.decoder, None, &windows, &mut |_, _| ()).expect("score")
}

#[test]
fn the_perplexities_of_transformers_are_reproduced() {
    let Some(data) = shared("data") else { return };
    let text = read_texts(&[data.join("text/tinystories_valid.txt")]).expect("text");
    // f32, transformers, the same protocol (shared/data/README.md).
    for (name, want) in [("stories260K", 5.0962), ("tinystories-656k", 39.2590)] {
        let began = std::time::Instant::now();
        let model = Model::open(&data.join("weights").join(name)).expect("model");
        let score = score_of(&model, &text, Protocol { ctx: 512, bos: None });
        let found = score.perplexity();
        println!(
            "{name}: {found:.6} ± {:.4}, {:.4} bpb, {} tokens, {:?}",
            score.perplexity_se(),
            score.bits_per_byte(),
            score.tokens,
            began.elapsed()
        );
        // Four decimals were printed; f32 sums in another order move the mean of 10⁵ tokens by far less than that.
        assert!((found - want).abs() < 1e-4, "{name}: {found}, want {want}");
    }
}

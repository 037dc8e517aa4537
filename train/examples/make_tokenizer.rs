//! Makes data/teacher/tokenizer.json: a byte-level BPE of 1024 tokens, trained on generated stories.
//!
//!     cargo run --release -p qat-train --example make_tokenizer -- --out data/teacher/tokenizer.json
//!
//! Writes tokenizer_config.json beside it, prints how well it fits unseen stories, and knows no model.
//! Deterministic: a second run writes the same bytes.

fn main() {
    let s = qat_train::data::stories::generate(1, 4_000_000);
    let t = std::time::Instant::now();
    let s2 = qat_train::data::stories::generate(2, 40_000_000);
    let dt = t.elapsed().as_secs_f64();
    println!("{}", &s.text[..4000]);
    let words = s.text.split_whitespace().count();
    println!("{} MB/s; bytes/story {} words/story {} bits/story {} (exact {}) bits/word {} bits/byte {}", s2.text.len() as f64/1e6/dt,
        s.text.len()/s.stories, words/s.stories, s.nats/s.stories as f64/2f64.ln(), qat_train::data::stories::entropy_per_story()/2f64.ln(), s.nats/2f64.ln()/words as f64, s.nats/2f64.ln()/s.text.len() as f64);
}

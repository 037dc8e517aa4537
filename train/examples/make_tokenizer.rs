//! Makes data/teacher/tokenizer.json, and tokenizer_config.json beside it, from generated stories:
//!
//!     cargo run --release -p qat-train --example make_tokenizer -- --out data/teacher/tokenizer.json
//!
//! Prints how the tokenizer and the generator's entropy meet on unseen stories. A second run writes the same bytes.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use qat_train::data::stories::{self, SEPARATOR};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [option, out] = arguments.as_slice() else { return Err("want --out FILE".into()) };
    if option != "--out" {
        return Err(format!("want --out FILE, found {option}").into());
    }
    let out = PathBuf::from(out);
    let tokenizer = stories::train_tokenizer()?;
    std::fs::write(&out, tokenizer.to_string(true)? + "\n")?;
    let config = serde_json::to_string_pretty(&stories::tokenizer_config())? + "\n";
    std::fs::write(out.with_file_name("tokenizer_config.json"), config)?;

    let start = Instant::now();
    let unseen = stories::generate(1, 20_000_000);
    let seconds = start.elapsed().as_secs_f64();
    let documents: Vec<&str> = unseen.text.split_terminator(SEPARATOR).take(5_000).collect();
    let tokens: usize = tokenizer.encode_batch(documents.clone(), false)?.iter().map(|e| e.len()).sum();
    let bytes: usize = documents.iter().map(|d| d.len()).sum();
    let words: usize = documents.iter().map(|d| d.split_whitespace().count()).sum();
    let each = |total: usize| total as f64 / documents.len() as f64;
    let nats = stories::entropy_per_story();
    println!("{:.0} MB/s generated", unseen.text.len() as f64 / 1e6 / seconds);
    println!("a story: {:.1} bytes, {:.1} words, {:.1} tokens", each(bytes), each(words), each(tokens));
    println!("a token: {:.3} bytes", each(bytes) / each(tokens));
    println!("entropy: {nats:.3} nats a story, {:.4} a token", nats / each(tokens));
    println!(
        "         {:.4} bits a word, {:.4} a byte",
        nats / 2f64.ln() / each(words),
        nats / 2f64.ln() / each(bytes)
    );
    Ok(())
}

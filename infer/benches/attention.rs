//! Attention of one layer in the shape of SmolLM2-135M (9 heads on 3, width 64): 256 tokens after 256, and one token
//! after 512 and after 4096. An item is a floating-point operation: 4 per head, element and visible position.
//!
//! `cargo bench -p qat-infer --bench attention`

use std::path::Path;

use divan::Bencher;
use divan::counter::ItemsCount;
use qat_infer::cpu::{Attention, KvCache, KvType, Pool};
use qat_infer::model::{Config, Sight};

fn main() {
    divan::main();
}

const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const WIDTH: usize = 64;

fn config() -> Config {
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 576, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": WIDTH,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    Config::from_json(&json, Path::new("config.json")).expect("a config")
}

fn noise(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.618_034).fract() * 2.0 - 1.0).collect()
}

fn attend(bencher: Bencher<'_, '_>, kv: KvType, before: usize, tokens: usize) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Pool::new(threads).expect("threads");
    let mut cache = KvCache::new(&config(), kv, before + tokens).expect("memory");
    cache.extend_to(before + tokens);
    let row = KV_HEADS * WIDTH;
    cache.write(&pool, 0, 0, &noise((before + tokens) * row), &noise((before + tokens) * row));
    let queries = noise(tokens * HEADS * WIDTH);
    let mut out = vec![0.0; queries.len()];
    let mut attention = Attention::new(*cache.shape(), before + tokens, threads);
    let visible: usize = (before..before + tokens).map(|position| position + 1).sum();
    bencher.counter(ItemsCount::new(4 * HEADS * WIDTH * visible)).bench_local(|| {
        attention.attend(&pool, &cache, (0, Sight::all(WIDTH)), before, &queries, &mut out);
    });
}

#[divan::bench(args = KvType::ALL)]
fn prefill_256_after_256(bencher: Bencher<'_, '_>, kv: KvType) {
    attend(bencher, kv, 256, 256);
}

#[divan::bench(args = KvType::ALL)]
fn decode_after_512(bencher: Bencher<'_, '_>, kv: KvType) {
    attend(bencher, kv, 512, 1);
}

#[divan::bench(args = KvType::ALL)]
fn decode_after_4096(bencher: Bencher<'_, '_>, kv: KvType) {
    attend(bencher, kv, 4096, 1);
}

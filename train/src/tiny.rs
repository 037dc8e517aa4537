//! The tiny models that tests run, train and export, and where tests find what is kept beside the repository.
//!
//! Knows no test. Weights are drawn large enough that layers matter, so that no difference drowns in rounding.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use qat_infer::{
    cpu::{CpuDecoder, KvType, RunOptions, Session},
    files::companions,
    model::{Config, Decoder},
};
use serde_json::{Value, json};

use crate::{
    exec::{Matrix, RopeTable, TrainExec},
    student::Floats,
};

/// The folder or file `part` of the data shared between projects, or none with a line that says so.
pub(crate) fn shared(part: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(part);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not there", path.display());
    None
}

/// The folder with the tokenizer of the stories.
pub(crate) fn tokenizer_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/teacher")
}

/// The files that travel along with a model: that tokenizer.
pub(crate) fn tokenizer_files() -> Vec<PathBuf> {
    companions(&tokenizer_folder()).expect("the tokenizer of data/teacher")
}

/// A decoder of two layers with a `config.json` that differs in `changes`.
pub(crate) fn config(changes: Value) -> Config {
    let mut json = json!({
        "model_type": "llama", "vocab_size": 96, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": true,
    });
    let changes = changes.as_object().expect("an object").clone();
    json.as_object_mut().expect("an object").extend(changes);
    Config::from_json(&json, Path::new("config.json")).expect("a valid config")
}

/// The same of a `family` that may have layers of other kinds: of LFM2, every second one convolves, the first among them.
pub(crate) fn family(family: &str, changes: Value) -> Config {
    let layers = changes["num_hidden_layers"].as_u64().unwrap_or(2);
    let mut json = match family {
        "bitnet" => json!({"hidden_act": "relu2"}),
        "lfm2" => json!({
            "norm_eps": 1e-5, "block_auto_adjust_ff_dim": false,
            "layer_types": (0..layers).map(|n| ["conv", "full_attention"][n as usize % 2]).collect::<Vec<_>>(),
        }),
        _ => json!({}),
    };
    json["model_type"] = json!(family);
    json.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
    config(json)
}

/// Random weights with a standard deviation of about 0.1, random biases of that size, and norms around 1.
pub(crate) fn floats(config: Config, seed: u64) -> Floats {
    let mut floats = Floats::random(config, seed);
    let noise = Floats::random(floats.config.clone(), seed + 1);
    let some: Vec<f32> = noise.tensors["model.embed_tokens.weight"].iter().map(|v| 5.0 * v).collect();
    for (name, values) in &mut floats.tensors {
        match name.rsplit('.').next() {
            Some("bias") => values.iter_mut().zip(&some).for_each(|(v, n)| *v = *n),
            _ if name.contains("norm") => values.iter_mut().zip(&some).for_each(|(v, n)| *v += n),
            _ => values.iter_mut().for_each(|v| *v *= 5.0),
        }
    }
    floats
}

/// Token ids below `vocab`, without a pattern that attention could lean on.
pub(crate) fn ids(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 31 + i * 7 + 3) % vocab) as u32).collect()
}

/// Logits `[ids, vocab]` of the trainer's executor, `ids` as one window.
pub(crate) fn trained_logits(decoder: &Decoder<Matrix, Tensor>, ids: &[u32]) -> Vec<f32> {
    let rope = RopeTable::new(&decoder.ropes, ids.len(), &Device::Cpu).expect("rope");
    let mut exec = TrainExec::new(1, ids.len(), &rope);
    let hidden = decoder.forward(&mut exec, ids).expect("forward");
    let logits = decoder.logits(&mut exec, &hidden).expect("logits");
    logits.flatten_all().and_then(|l| l.to_vec1()).expect("values")
}

/// Logits `[ids, vocab]` of the runtime.
pub(crate) fn runtime_logits(decoder: &CpuDecoder, ids: &[u32]) -> Vec<f32> {
    runtime_logits_over(KvType::F32, decoder, ids)
}

/// The same over a cache of type `kv`.
pub(crate) fn runtime_logits_over(kv: KvType, decoder: &CpuDecoder, ids: &[u32]) -> Vec<f32> {
    let options = RunOptions::new(ids.len()).with_kv(kv);
    let mut session = Session::new(decoder, &options).expect("fits");
    let hidden = session.hidden(ids).expect("ids of the vocabulary");
    session.logits(&hidden, 0, ids.len()).expect("logits").to_vec()
}

/// max |a − b|.
pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// √ of the mean square of a − b.
pub(crate) fn root_mean_square(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

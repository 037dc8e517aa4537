//! Models to make lists of: the fixtures that the CPU runtime was checked with, and random ones in every format.

use std::path::{Path, PathBuf};

use qat_infer::files::Activations;
use qat_infer::model::{Param, Role};
use qat_quant::Format;
use serde_json::{Value, json};

use crate::random_model::RandomModel;

/// Directories of the fixtures, by name; none, with a line that says so, in a checkout without them.
pub fn fixtures() -> Vec<(&'static str, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    if !root.exists() {
        eprintln!("SKIPPED: {} is not there", root.display());
        return Vec::new();
    }
    ["llama_tied", "llama_untied", "qwen2", "qwen3", "qwen3_tied"].map(|name| (name, root.join(name))).into()
}

/// The same with layers of other kinds: norms behind attention and gate with ReLU², convolutions, heads of which a part turns,
/// windows.
pub fn others() -> Vec<(&'static str, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    if !root.exists() {
        eprintln!("SKIPPED: {} is not there", root.display());
        return Vec::new();
    }
    ["bitnet_packed", "lfm2", "phi3", "gemma3"].map(|name| (name, root.join(name))).into()
}

/// `config.json` of a small model: two layers, four query heads to two keys, rows that every format fits.
pub fn tiny() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 301, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "hidden_act": "silu", "tie_word_embeddings": true,
    })
}

pub fn format(spelling: &str) -> Format {
    spelling.parse().expect("a format")
}

/// A small model in which hardly two neighbours are stored alike: q and k differ from v, gate from up, some inputs are
/// rounded, and the head is float.
pub fn mixed() -> RandomModel {
    let mut config = tiny();
    config["model_type"] = json!("qwen2");
    config["tie_word_embeddings"] = json!(false);
    RandomModel::with(&config, mixed_storage)
}

fn mixed_storage(Param { name, role, .. }: &Param) -> Option<(Format, Activations)> {
    let (spelling, activations) = match name.trim_end_matches(".weight").rsplit('.').next() {
        Some("q_proj" | "k_proj") => ("int4-g32", Activations::Float),
        Some("v_proj") => ("int8-g32", Activations::Int8Token),
        Some("o_proj") => ("ternary-tensor", Activations::Int8Token),
        Some("gate_proj") => ("int3-affine-g64-bf16", Activations::Float),
        Some("up_proj") => ("int2-affine-g32", Activations::Float),
        Some("down_proj") => ("ternary-g256", Activations::Float),
        _ => ("int8-affine-g128", Activations::Float),
    };
    (*role != Role::Head).then(|| (format(spelling), activations))
}

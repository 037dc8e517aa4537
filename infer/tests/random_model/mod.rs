//! A packed Llama of random weights in a temporary folder, for tests of what running one costs.

use std::path::{Path, PathBuf};

use qat_infer::files::{Activations, PackedWriter};
use qat_infer::model::{Config, Param, params};
use qat_quant::kernels::FloatType;
use qat_quant::{Format, ScaleRule, Scales, pack};
use serde_json::{Value, json};

/// The folder, which goes with the value, and the packed model in it.
pub struct RandomModel {
    pub path: PathBuf,
    _folder: tempfile::TempDir,
}

/// `config.json` of a Llama with a tied head: heads of 64, three queries to a key, gates three times as wide as the stream.
pub fn llama(vocab: usize, kv_heads: usize, layers: usize) -> Value {
    let hidden = 3 * 64 * kv_heads;
    json!({
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers, "num_attention_heads": 3 * kv_heads, "num_key_value_heads": kv_heads,
        "head_dim": 64, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "hidden_act": "silu", "tie_word_embeddings": true,
    })
}

impl RandomModel {
    /// A model with every matrix in `format`.
    pub fn new(config: &Value, format: Format, activations: Activations) -> Self {
        Self::with(config, |_| Some((format, activations)))
    }

    /// A model with each matrix as `choose` says, or in f32.
    pub fn with(config: &Value, choose: impl Fn(&Param) -> Option<(Format, Activations)>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, tokenizer) = (folder.path().join("packed"), folder.path().join("tokenizer.json"));
        std::fs::write(&tokenizer, "{}").expect("a tokenizer that nobody opens");
        let mut writer =
            PackedWriter::create(&path, config, &[tokenizer], json!("random")).expect("a writer");
        let plan = Config::from_json(config, Path::new("config.json")).expect("a config");
        let mut state = 1u32;
        for param in params(&plan) {
            let chosen = choose(&param);
            let Param { name, shape, .. } = param;
            let mut noise = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| noise()).collect();
            let written = match (&*shape, chosen) {
                (&[rows, cols], Some((format, activations))) => {
                    let scales = Scales::choose(format, ScaleRule::Absmax, &values, rows, cols);
                    let packed = pack(&name, format, &values, rows, cols, &scales).expect("fits");
                    writer.packed(&name, packed.as_ref(), activations)
                }
                _ => writer.float(&name, FloatType::F32, &shape, &values),
            };
            written.expect("written");
        }
        writer.finish().expect("complete");
        Self { path, _folder: folder }
    }
}

//! Tiny models and recipes for the tool to work on.
//!
//! Knows nothing of the tool. Invariant: the same call makes the same bytes, on any machine.

use std::{collections::BTreeMap, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use crate::workshop::Workshop;

/// Tokens of [`tokenizer`]: one for each byte, and the end of a text.
pub const VOCAB: usize = 257;
/// Longest context of [`config`].
pub const CONTEXT: usize = 128;

/// A Llama of two layers.
pub fn config() -> Value {
    json!({
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
        "eos_token_id": 256,
    })
}

/// Byte-level BPE without merges: a token for each byte.
pub fn tokenizer() -> Value {
    let vocab: serde_json::Map<_, _> =
        byte_alphabet().into_iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{"id": 256, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    })
}

/// GPT-2's printable stand-ins of the 256 bytes: bytes that print are themselves, the others follow from U+0100 on.
fn byte_alphabet() -> Vec<char> {
    let prints = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    (0..256)
        .map(|byte| if prints(byte) { byte } else { others.next().expect("endless") })
        .map(|code| char::from_u32(code).expect("a character"))
        .collect()
}

/// The tensors of a model of [`config`]'s kind: name, shape, values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Seeded weights for `config`: matrices in ±0.15, norms of ones.
pub fn tensors(config: &Value) -> Tensors {
    let size = |key: &str| config[key].as_u64().expect("a size") as usize;
    let (hidden, mlp) = (size("hidden_size"), size("intermediate_size"));
    let kv = hidden / size("num_attention_heads") * size("num_key_value_heads");
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![size("vocab_size"), hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..size("num_hidden_layers") {
        let of = |name: &str| format!("model.layers.{layer}.{name}.weight");
        shapes.extend([
            (of("input_layernorm"), vec![hidden]),
            (of("post_attention_layernorm"), vec![hidden]),
            (of("self_attn.q_proj"), vec![hidden, hidden]),
            (of("self_attn.k_proj"), vec![kv, hidden]),
            (of("self_attn.v_proj"), vec![kv, hidden]),
            (of("self_attn.o_proj"), vec![hidden, hidden]),
            (of("mlp.gate_proj"), vec![mlp, hidden]),
            (of("mlp.up_proj"), vec![mlp, hidden]),
            (of("mlp.down_proj"), vec![hidden, mlp]),
        ]);
    }
    let mut state = 1_u64;
    let mut uniform = || {
        // Knuth's MMIX generator; the upper bits are the good ones.
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1_u64 << 24) as f32 * 0.3 - 0.15
    };
    let mut values = |shape: &[usize]| match shape {
        [n] => vec![1.0; *n],
        _ => (0..shape.iter().product()).map(|_| uniform()).collect(),
    };
    shapes.into_iter().map(|(name, shape)| (name, (shape.clone(), values(&shape)))).collect()
}

/// Writes `tensors` as a safetensors file.
pub fn save(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<&String, Vec<u8>> =
        tensors.iter().map(|(n, (_, v))| (n, v.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).expect("shape and values agree"))
    });
    safetensors::serialize_to_file(views, None, path).expect("written");
}

impl Workshop {
    /// Writes the model directory `name`, as `change` leaves it.
    pub fn model_with(&self, name: &str, change: impl FnOnce(&mut Value, &mut Tensors)) {
        let mut config = config();
        let mut tensors = tensors(&config);
        change(&mut config, &mut tensors);
        self.write(&format!("{name}/config.json"), config.to_string());
        self.write(&format!("{name}/tokenizer.json"), tokenizer().to_string());
        save(&self.path(name).join("model.safetensors"), &tensors);
    }

    /// Writes the model directory `name`.
    pub fn model(&self, name: &str) {
        self.model_with(name, |_, _| ());
    }

    /// Writes `name`, a text with something to learn in it.
    pub fn text(&self, name: &str, sentences: usize) {
        let (who, what) =
            (["The fox", "A child", "Old Anna", "My friend"], ["sees", "likes", "follows", "paints"]);
        let whom = ["the moon", "a red kite", "the long river", "seven small birds", "the baker"];
        let text: String = (0..sentences)
            .map(|i| format!("{} {} {}.\n", who[i * 7 % 4], what[i * i % 4], whom[(i * 3 + i / 5) % 5]))
            .collect();
        self.write(name, text);
    }

    /// Writes what most tests need: the model `teacher`, `train.txt`, `valid.txt` and the recipe `tiny.toml`.
    pub fn furnished() -> Self {
        let shop = Self::new();
        shop.model("teacher");
        shop.text("train.txt", 400);
        shop.text("valid.txt", 40);
        shop.write("tiny.toml", RECIPE);
        shop
    }
}

/// Distils `teacher` into four bits, in a second.
pub const RECIPE: &str = r#"seed = 5
[student]
from = "teacher"
[teacher]
model = "teacher"
[quant]
weights = "int4-g32"
[data]
train = ["train.txt"]
ctx = 32
[loss]
forward_kl = 1.0
[optim]
lr = 1e-3
[train]
steps = 6
batch = 4
log_every = 2
checkpoint_every = 3
"#;

/// Goes on to a packed model and its score.
pub const SHIPPED: &str = r#"
[export]
format = "qat"
[eval]
data = ["valid.txt"]
against = "teacher"
"#;

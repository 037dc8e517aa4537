//! What Phi-3 and Gemma 3 have beside other families: windows, heads of which a part turns, two sets of frequencies.
//!
//! llama.cpp takes some of it for granted: of Gemma 3 that one layer in six sees everything unless the file says otherwise, and what
//! scores are divided by; of Phi-3 that nothing sees a window, whatever the file says.

use super::Keys;
use crate::Result;
use crate::gguf::names::{ROPE_LONG, ROPE_SHORT};
use crate::gguf::reader::Gguf;
use crate::gguf::value::{Array, Metadata, Value};
use crate::model::{Config, Family, RopeScaling, Sliding};

/// One layer of Gemma 3 in so many sees everything, where the file doesn't say.
const PATTERN: usize = 6;
/// Base of the frequencies in layers that see a window, where the file doesn't say.
const LOCAL_THETA: f64 = 10_000.0;
/// Layers of the one Gemma 3 whose scores llama.cpp divides by another number than the root of a head's width.
const LAYERS_27B: usize = 62;

/// Writes what these families have.
pub(super) fn write(config: &Config, arch: &str, metadata: &mut Metadata) {
    let mut set = |key: &str, value: Value| metadata.set(format!("{arch}.{key}"), value);
    let size = |n: usize| Value::U32(n as u32);
    let window = config.sliding.as_ref().map_or(0, |sliding| sliding.window);
    match config.family {
        Family::Phi3 => {
            let original = match &config.rope_scaling {
                RopeScaling::LongRope { original_context, .. } => *original_context,
                _ => config.max_position_embeddings,
            };
            set("rope.scaling.original_context_length", size(original));
            set("rope.dimension_count", size(config.rotary_dim));
            if matches!(config.rope_scaling, RopeScaling::LongRope { .. }) {
                set("rope.scaling.attn_factor", Value::F32(config.attention_factor() as f32));
            }
            set("attention.sliding_window", size(window));
        }
        Family::Gemma3 if window > 0 => {
            set("attention.sliding_window", size(window));
            set("rope.freq_base_swa", Value::F32(config.local_rope_theta.unwrap_or(LOCAL_THETA) as f32));
            match (config.sliding_pattern(), &config.sliding) {
                (Some(pattern), _) => set("attention.sliding_window_pattern", size(pattern)),
                (None, Some(sliding)) => {
                    let layers = sliding.layers.iter().map(|slides| i32::from(*slides)).collect();
                    set("attention.sliding_window_pattern", Value::Array(Array::I32(layers)));
                }
                (None, None) => {}
            }
        }
        _ => {}
    }
}

/// What llama.cpp divides the scores of a Gemma 3 by the root of.
pub(crate) fn query_scalar([hidden, heads, head_dim, layers]: [usize; 4]) -> usize {
    if layers == LAYERS_27B { hidden / heads.max(1) } else { head_dim }
}

impl Keys<'_> {
    pub(super) fn query_scalar(&self, hidden: usize, heads: usize, head_dim: usize, layers: usize) -> usize {
        match self.family {
            Family::Gemma3 => query_scalar([hidden, heads, head_dim, layers]),
            _ => head_dim,
        }
    }

    /// Elements of a head that turn.
    pub(super) fn rotary_dim(&self, head_dim: usize) -> Result<usize> {
        const KEY: &str = "rope.dimension_count";
        let found = self.optional(KEY)?.unwrap_or(head_dim);
        if found != head_dim && self.family != Family::Phi3 {
            return Err(self.metadata.wrong(&self.key(KEY), &format!("{head_dim}, the width of a head")));
        }
        Ok(found)
    }

    pub(super) fn local_rope_theta(&self) -> Result<Option<f64>> {
        match self.family {
            Family::Gemma3 => Ok(Some(self.number("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA))),
            _ => Ok(None),
        }
    }

    /// The layers that see a window.
    pub(super) fn sliding(&self, layers: usize) -> Result<Option<Sliding>> {
        const KEY: &str = "attention.sliding_window";
        const PATTERN_KEY: &str = "attention.sliding_window_pattern";
        let Some(window) = self.optional(KEY)?.filter(|window| *window > 0) else { return Ok(None) };
        let layers = match self.family {
            Family::Phi3 => vec![true; layers.min(1 << 12)],
            Family::Gemma3 => match self.metadata.get(&self.key(PATTERN_KEY)) {
                Some(Value::Array(Array::I32(each))) => each.iter().map(|slides| *slides != 0).collect(),
                Some(Value::Array(Array::U32(each))) => each.iter().map(|slides| *slides != 0).collect(),
                Some(Value::Array(Array::Bool(each))) => each.clone(),
                _ => {
                    let pattern = self.optional(PATTERN_KEY)?.unwrap_or(PATTERN).max(1);
                    (1..=layers.min(1 << 12)).map(|layer| !layer.is_multiple_of(pattern)).collect()
                }
            },
            _ => return Err(self.metadata.wrong(&self.key(KEY), "0, or no such key")),
        };
        Ok(Some(Sliding { window, layers }))
    }

    /// Phi-3's scaling, whose factors are tensors.
    pub(super) fn long_rope(&self, file: &Gguf, config: &Config) -> Result<Option<RopeScaling>> {
        if self.family != Family::Phi3 || file.get(ROPE_LONG).is_none() {
            return Ok(None);
        }
        let factors = |name| -> Result<Vec<f64>> {
            let values = crate::gguf::model::values_of(file, name, [1, config.rotary_dim / 2])?;
            Ok(values.iter().map(|value| shortest(*value)).collect())
        };
        let scaling = |attention_factor| -> Result<RopeScaling> {
            Ok(RopeScaling::LongRope {
                short: factors(ROPE_SHORT)?,
                long: factors(ROPE_LONG)?,
                original_context: self
                    .optional("rope.scaling.original_context_length")?
                    .unwrap_or(config.max_position_embeddings),
                attention_factor,
            })
        };
        let implied = scaling(None)?;
        let follows = Config { rope_scaling: implied.clone(), ..config.clone() }.attention_factor() as f32;
        match self.number("rope.scaling.attn_factor")?.map(|factor| factor as f32) {
            Some(factor) if factor != follows => Ok(Some(scaling(Some(shortest(factor)))?)),
            _ => Ok(Some(implied)),
        }
    }
}

/// The f64 with the fewest digits that is the same f32.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

//! Rotary frequencies: how fast each pair of a head turns per position.
//!
//! Knows no tensors; executors keep the angles that it gives. Frequencies are computed in the steps of
//! transformers' `modeling_rope_utils` (f32 exponent, f32 quotient), so that angles agree to f32 rounding even far
//! into a context, where a relative error is multiplied by the position.

use std::f64::consts::TAU;

use super::{Config, RopeScaling};

/// Rotation of query and key heads (RoFormer, arXiv 2104.09864) in the half-split order of Hugging Face checkpoints: of the first
/// `rotary_dim` elements of a head, element `i` pairs with `i + rotary_dim/2`, and both turn by `position · frequency[i]`. The others
/// stay as they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position, `[rotary_dim / 2]`, after scaling.
    inv_freq: Vec<f32>,
    /// The context beyond which others take their place, and these.
    long: Option<(usize, Vec<f32>)>,
    /// What cosines and sines are multiplied by.
    factor: f32,
}

/// The rotations of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Ropes {
    /// Of layers that see everything.
    global: Rope,
    /// Of layers that see a window, where it is another one.
    local: Option<Rope>,
}

impl Ropes {
    /// The rotations that `config` asks for.
    pub fn new(config: &Config) -> Self {
        let plain = |theta| Rope::with(config.rotary_dim, theta, |freq| freq);
        Self { global: Rope::new(config), local: config.local_rope_theta.map(plain) }
    }

    /// That of layer `index`.
    pub fn of(&self, config: &Config, index: usize) -> &Rope {
        let slides = config.sliding.as_ref().is_some_and(|sliding| sliding.layers.get(index) == Some(&true));
        self.local.as_ref().filter(|_| slides).unwrap_or(&self.global)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Rope> {
        std::iter::once(&self.global).chain(&self.local)
    }
}

impl Rope {
    /// The frequencies of the layers of a model that see everything.
    pub fn new(config: &Config) -> Self {
        let with = |scale: &dyn Fn(f32) -> f32| Self::with(config.rotary_dim, config.rope_theta, scale);
        match &config.rope_scaling {
            RopeScaling::None => with(&|freq| freq),
            RopeScaling::Linear { factor } => with(&|freq| freq / *factor as f32),
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let context = original_context as f64;
                with(&|freq| {
                    llama3(f64::from(freq), factor, low_freq_factor, high_freq_factor, context) as f32
                })
            }
            RopeScaling::LongRope { short, long, original_context, .. } => {
                // transformers multiplies before it takes the reciprocal.
                let divided = |by: &[f64]| {
                    let power = |pair| power(config.rope_theta, config.rotary_dim, pair);
                    (0..by.len()).map(|pair| 1.0 / (by[pair] as f32 * power(pair))).collect()
                };
                let factor = config.attention_factor() as f32;
                Self { inv_freq: divided(short), long: Some((*original_context, divided(long))), factor }
            }
        }
    }

    fn with(dim: usize, theta: f64, scale: impl Fn(f32) -> f32) -> Self {
        let inv_freq = (0..dim / 2).map(|pair| scale(1.0 / power(theta, dim, pair))).collect();
        Self { inv_freq, long: None, factor: 1.0 }
    }

    /// Radians per position of each pair in a context of so many tokens: those that a session has room for, not those that it has read.
    pub fn frequencies(&self, context: usize) -> &[f32] {
        match &self.long {
            Some((beyond, long)) if context > *beyond => long,
            _ => &self.inv_freq,
        }
    }

    /// Pairs of a head that turn.
    pub fn pairs(&self) -> usize {
        self.inv_freq.len()
    }

    /// What cosines and sines are multiplied by.
    pub fn factor(&self) -> f32 {
        self.factor
    }

    /// Cosine and sine of the angle of each pair at `position` in a context of `context` tokens, both times the factor.
    pub fn angles(&self, position: usize, context: usize) -> impl Iterator<Item = (f32, f32)> {
        self.frequencies(context).iter().map(move |freq| {
            // The product is rounded to f32, as in transformers; the functions of it are not.
            let (sin, cos) = f64::from(position as f32 * freq).sin_cos();
            (cos as f32 * self.factor, sin as f32 * self.factor)
        })
    }
}

impl Config {
    /// What cosines and sines are multiplied by: 1 but with [long rope](RopeScaling::LongRope), where it follows from how much longer
    /// the context became, unless the config says it.
    pub fn attention_factor(&self) -> f64 {
        let &RopeScaling::LongRope { original_context, attention_factor, .. } = &self.rope_scaling else {
            return 1.0;
        };
        let original = original_context as f64;
        let stretched = self.max_position_embeddings as f64 / original;
        let from_contexts =
            if stretched <= 1.0 { 1.0 } else { (1.0 + stretched.ln() / original.ln()).sqrt() };
        attention_factor.unwrap_or(from_contexts)
    }
}

/// The wavelength of a pair over 2π.
fn power(theta: f64, dim: usize, pair: usize) -> f32 {
    theta.powf(f64::from((2 * pair) as f32 / dim as f32)) as f32
}

/// transformers' `_compute_llama3_parameters` for one frequency.
fn llama3(freq: f64, factor: f64, low: f64, high: f64, context: f64) -> f64 {
    let wavelength = TAU / freq;
    if wavelength > context / low {
        return freq / factor;
    }
    if wavelength < context / high {
        return freq;
    }
    let kept = (context / wavelength - low) / (high - low);
    (1.0 - kept) * freq / factor + kept * freq
}

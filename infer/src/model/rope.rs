//! Rotary frequencies: how fast each pair of a head turns per position.
//!
//! Knows no tensors; executors keep the angles that it gives. Frequencies are computed in the steps of
//! transformers' `modeling_rope_utils` (f32 exponent, f32 quotient), so that angles agree to f32 rounding even far
//! into a context, where a relative error is multiplied by the position.

use std::f64::consts::TAU;

use super::{Config, RopeScaling};

/// Rotation of query and key heads (RoFormer, arXiv 2104.09864) in the half-split order of Hugging Face checkpoints:
/// element `i` pairs with `i + head_dim/2`, and both turn by `position · inv_freq[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position, `[head_dim / 2]`, after scaling.
    pub inv_freq: Vec<f32>,
}

impl Rope {
    /// The frequencies of a model.
    pub fn new(config: &Config) -> Self {
        let dim = config.head_dim as f32;
        let base = |pair: usize| {
            let exponent = (2 * pair) as f32 / dim;
            1.0 / config.rope_theta.powf(f64::from(exponent)) as f32
        };
        let scale = |freq: f32| match config.rope_scaling {
            RopeScaling::None => freq,
            RopeScaling::Linear { factor } => freq / factor as f32,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                llama3(f64::from(freq), factor, low_freq_factor, high_freq_factor, original_context as f64)
                    as f32
            }
        };
        Self { inv_freq: (0..config.head_dim / 2).map(|pair| scale(base(pair))).collect() }
    }

    /// Cosine and sine of the angle of each pair at `position`.
    pub fn angles(&self, position: usize) -> impl Iterator<Item = (f32, f32)> {
        self.inv_freq.iter().map(move |freq| {
            // The product is rounded to f32, as in transformers; the functions of it are not.
            let (sin, cos) = f64::from(position as f32 * freq).sin_cos();
            (cos as f32, sin as f32)
        })
    }
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

//! Quantization noise (arXiv 2004.07320): in each step a random share of the weights is rounded, the others pass as they are.
//!
//! Which ones is a function of seed, step, tensor and place alone, by a hash that the kernels compute as well: nothing is drawn one after
//! the other, and nothing is remembered from the forward to the backward pass.

use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Which weights of one tensor are rounded in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    /// Of the tensor in this step.
    pub(super) key: [u32; 2],
    /// Weights whose hash is below it are rounded.
    pub(super) threshold: u32,
}

impl Noise {
    /// A `share` (above 0, below 1) of the weights of tensor number `tensor` in step `step` of a run with seed `seed`.
    pub fn of(seed: u64, step: usize, tensor: usize, share: f64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(step as u64);
        rng.set_word_pos(2 * tensor as u128);
        let key = [rng.next_u32(), rng.next_u32()];
        // Saturates below 1.
        Self { key, threshold: (share * 2f64.powi(32)) as u32 }
    }

    /// Whether weight `i` is rounded.
    #[inline(always)]
    pub fn rounds(self, i: u32) -> bool {
        mix(mix(i ^ self.key[0]) ^ self.key[1]) < self.threshold
    }

    /// Sets each of `out` whose weight is not rounded to that of `x` in its place.
    pub(super) fn spare(self, x: &[f32], out: &mut [f32]) {
        self.each(out, |i, out| {
            if let Some(x) = x.get(i) {
                *out = *x;
            }
        });
    }

    /// The elements of `grad` whose weights are rounded, and 0 in the place of the others.
    pub(super) fn masked(self, grad: &[f32]) -> Vec<f32> {
        let mut masked = grad.to_vec();
        self.each(&mut masked, |_, g| *g = 0.0);
        masked
    }

    /// Calls `f` with the place and the element of each weight that is not rounded.
    fn each(self, values: &mut [f32], f: impl Fn(usize, &mut f32) + Sync) {
        const TASK: usize = 1 << 14;
        values.par_chunks_mut(TASK).enumerate().for_each(|(task, values)| {
            for (i, value) in (task * TASK..).zip(values) {
                if !self.rounds(i as u32) {
                    f(i, value);
                }
            }
        });
    }
}

/// A hash of 32 bits by two multiplications, in which every input bit reaches every output bit (C. Wellons' `lowbias32`).
#[inline(always)]
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_met_and_steps_tensors_and_seeds_draw_independently() {
        const N: u32 = 1 << 18;
        let drawn = |noise: Noise| (0..N).map(|i| noise.rounds(i)).collect::<Vec<bool>>();
        // Five standard deviations of a mean of N draws.
        let near = |share: f64, p: f64| (share - p).abs() < 5.0 * (p * (1.0 - p) / f64::from(N)).sqrt();
        for p in [0.05, 0.5, 0.9] {
            let first = drawn(Noise::of(1, 7, 3, p));
            let share = |draws: &[bool]| draws.iter().filter(|&&d| d).count() as f64 / f64::from(N);
            assert!(near(share(&first), p), "{p}: {}", share(&first));
            assert_eq!(first, drawn(Noise::of(1, 7, 3, p)));
            for other in [Noise::of(2, 7, 3, p), Noise::of(1, 8, 3, p), Noise::of(1, 7, 4, p)] {
                let both: Vec<bool> = first.iter().zip(drawn(other)).map(|(a, b)| *a && b).collect();
                assert!(near(share(&both), p * p), "{p}: {} rounded twice", share(&both));
            }
            // Nor does a weight follow the one before it.
            let pairs: Vec<bool> = first.windows(2).map(|w| w[0] && w[1]).collect();
            assert!((share(&pairs) - p * p).abs() < 0.01, "{p}: {} pairs", share(&pairs));
        }
    }
}

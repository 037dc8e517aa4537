//! Short convolutions: what they remember of the text, and the sums over it.
//!
//! Knows no projections. Invariant: a token's output depends on the tokens before it alone, not on how they were cut into
//! calls: what is remembered are the products that a longer call would have made, as f32.

use qat_quant::vectorized;

use super::pool::{Chunks, Pool};
use crate::model::Config;

/// The last gated inputs of every layer that convolves.
#[derive(Debug)]
pub(super) struct Recent {
    width: usize,
    /// `[taps − 1, width]` of each layer, oldest first; empty where a layer attends.
    layers: Vec<Vec<f32>>,
}

impl Recent {
    /// What a model remembers at the beginning of a text: nothing.
    pub(super) fn new(config: &Config) -> Self {
        let width = config.hidden_size;
        let of_layer = |index| vec![0.0; config.taps(index).map_or(0, |taps| (taps - 1) * width)];
        Self { width, layers: (0..config.layers).map(of_layer).collect() }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.fill(0.0));
    }

    /// Whether no layer convolves, so that there is never anything to remember.
    pub(super) fn is_nothing(&self) -> bool {
        self.layers.iter().all(Vec::is_empty)
    }

    /// Bytes of all that is remembered.
    pub(super) fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| size_of_val(layer.as_slice())).sum()
    }

    /// Appends all that is remembered.
    pub(super) fn append_to(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.layers.iter().flatten().flat_map(|value| value.to_le_bytes()));
    }

    /// Remembers what [`append_to`](Self::append_to) gave.
    pub(super) fn restore(&mut self, bytes: &[u8]) {
        for (value, bytes) in self.layers.iter_mut().flatten().zip(bytes.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
    }

    /// `out[t] = c[t] · Σⱼ kernel[j] · (b·u)[t − (taps − 1) + j]` for the rows `[b, c, u]` of `x` `[tokens, 3 · width]`, and
    /// the layer remembers the last of them. `kernel`: `[width, taps]`.
    pub(super) fn convolve(&mut self, pool: &Pool, layer: usize, x: &[f32], kernel: &[f32], out: &mut [f32]) {
        let (width, recent) = (self.width, &mut self.layers[layer]);
        let taps = kernel.len() / width;
        let before = &*recent;
        pool.each(Chunks::new(out, width), |token, out| {
            vectorized(
                #[inline(always)]
                || {
                    out.fill(0.0);
                    for tap in 0..taps {
                        let weights = kernel[tap..].iter().step_by(taps);
                        // Counted from the oldest of the remembered rows.
                        match (token + tap).checked_sub(taps - 1) {
                            Some(token) => {
                                let [b, _, u] = thirds(&x[token * 3 * width..][..3 * width]);
                                for (((out, w), b), u) in out.iter_mut().zip(weights).zip(b).zip(u) {
                                    *out += w * (b * u);
                                }
                            }
                            None => {
                                let row = &before[(token + tap) * width..][..width];
                                for ((out, w), kept) in out.iter_mut().zip(weights).zip(row) {
                                    *out += w * kept;
                                }
                            }
                        }
                    }
                    let [_, c, _] = thirds(&x[token * 3 * width..][..3 * width]);
                    out.iter_mut().zip(c).for_each(|(out, c)| *out *= c);
                },
            );
        });
        remember(recent, x, width);
    }
}

/// Moves the newest rows of `b·u` into `recent`, and the oldest out.
fn remember(recent: &mut [f32], x: &[f32], width: usize) {
    let (rows, tokens) = (recent.len() / width, x.len() / (3 * width));
    let gone = tokens.min(rows) * width;
    recent.copy_within(gone.., 0);
    let first = tokens.saturating_sub(rows);
    for (row, x) in recent[rows * width - gone..]
        .chunks_exact_mut(width)
        .zip(x[first * 3 * width..].chunks_exact(3 * width))
    {
        let [b, _, u] = thirds(x);
        for ((kept, b), u) in row.iter_mut().zip(b).zip(u) {
            *kept = b * u;
        }
    }
}

/// The three parts of a row.
#[inline(always)]
fn thirds(row: &[f32]) -> [&[f32]; 3] {
    let width = row.len() / 3;
    [&row[..width], &row[width..2 * width], &row[2 * width..]]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u32, len: usize) -> Vec<f32> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(next).collect()
    }

    #[test]
    fn a_convolution_is_its_definition_however_the_text_is_cut() {
        let pool = Pool::new(2).expect("threads");
        for (width, taps, tokens) in [(1, 2, 1), (5, 3, 9), (32, 4, 7), (3, 7, 4)] {
            let (x, kernel) = (noise(1, tokens * 3 * width), noise(2, width * taps));
            let gated = |token: usize, channel: usize| {
                f64::from(x[token * 3 * width + channel])
                    * f64::from(x[token * 3 * width + 2 * width + channel])
            };
            let mut whole = vec![f32::NAN; tokens * width];
            let recent = || Recent { width, layers: vec![Vec::new(), vec![0.0; (taps - 1) * width]] };
            recent().convolve(&pool, 1, &x, &kernel, &mut whole);
            for (at, found) in whole.iter().enumerate() {
                let (token, channel) = (at / width, at % width);
                let sum: f64 = (0..taps)
                    .filter_map(|tap| Some((tap, (token + tap).checked_sub(taps - 1)?)))
                    .map(|(tap, from)| f64::from(kernel[channel * taps + tap]) * gated(from, channel))
                    .sum();
                let want = sum * f64::from(x[token * 3 * width + width + channel]);
                // Products of at most 1, each rounded twice, and as many sums: 3·taps roundings of 6e-8.
                assert!((f64::from(*found) - want).abs() < 2e-6, "{found} for {want}");
            }
            for step in [1, 2, 3] {
                let (mut again, mut kept) = (Vec::new(), recent());
                for x in x.chunks(step * 3 * width) {
                    let mut out = vec![f32::NAN; x.len() / 3];
                    kept.convolve(&pool, 1, x, &kernel, &mut out);
                    again.extend(out);
                }
                assert!(again == whole, "{width} channels, {taps} taps, in steps of {step}");
            }
        }
    }
}

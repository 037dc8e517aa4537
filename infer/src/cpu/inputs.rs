//! What products read: activations normed, rounded to int8 and summed, one step per token for all matrices that share
//! them.
//!
//! Knows no matrix. Invariant: a token's row is prepared from its own values only.

use qat_quant::vectorized;

use super::lanes;
use super::matrix::Needs;
use super::pool::{Chunks, Pool};
use crate::plan::Norm;
use qat_quant::kernels::{CHUNK, FloatTokens, Int8Tokens, Tokens, float_sums, round_int8};

/// The inputs of one product, and the memory of the largest so far.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    tokens: usize,
    cols: usize,
    is_normed: bool,
    /// `[tokens, cols]`, normed; not written when there is no norm.
    normed: Vec<f32>,
    /// `[tokens, cols]`: what the codes stand for.
    rounded: Vec<f32>,
    /// `[tokens, cols]`
    codes: Vec<i8>,
    /// `[tokens, ceil(cols / CHUNK)]`
    code_sums: Vec<i32>,
    /// The same, of floats.
    sums: Vec<f32>,
    /// `[tokens]`
    scales: Vec<f32>,
}

impl Inputs {
    /// Memory for `tokens` rows of `cols`.
    pub(super) fn fit(&mut self, tokens: usize, cols: usize) {
        let (len, sums) = (tokens * cols, tokens * cols.div_ceil(CHUNK));
        grow(&mut self.normed, len);
        grow(&mut self.rounded, len);
        grow(&mut self.codes, len);
        grow(&mut self.code_sums, sums);
        grow(&mut self.sums, sums);
        grow(&mut self.scales, tokens);
    }

    /// Prepares `x` `[tokens, cols]` for what the products with it need. Memory must [`fit`](Self::fit).
    pub(super) fn prepare(
        &mut self,
        pool: &Pool,
        x: &[f32],
        cols: usize,
        norm: Option<Norm<'_>>,
        needs: Needs,
    ) {
        (self.tokens, self.cols, self.is_normed) = (x.len() / cols, cols, norm.is_some());
        if norm.is_none() && needs == Needs::default() {
            return;
        }
        let (len, chunks) = (x.len(), cols.div_ceil(CHUNK));
        let parts = (
            (Chunks::new(&mut self.normed[..len], cols), Chunks::new(&mut self.rounded[..len], cols)),
            (
                Chunks::new(&mut self.codes[..len], cols),
                Chunks::new(&mut self.code_sums[..self.tokens * chunks], chunks),
            ),
            Chunks::new(&mut self.sums[..self.tokens * chunks], chunks),
            Chunks::new(&mut self.scales[..self.tokens], 1),
        );
        pool.each(parts, |token, ((normed, rounded), (codes, code_sums), sums, scale)| {
            let x = &x[token * cols..][..cols];
            let x = match norm {
                Some(Norm { weight, eps }) => {
                    vectorized(
                        #[inline(always)]
                        || lanes::rms_norm(x, weight, eps, normed),
                    );
                    &*normed
                }
                None => x,
            };
            if needs.int8 {
                scale[0] = round_int8(x, codes, code_sums);
            }
            if needs.rounded {
                rounded.iter_mut().zip(&*codes).for_each(|(v, code)| *v = scale[0] * f32::from(*code));
            }
            if needs.sums {
                float_sums(x, sums);
            }
        });
    }

    /// The 8-bit codes.
    pub(super) fn int8(&self) -> Tokens<'_> {
        Tokens::Int8(Int8Tokens {
            codes: &self.codes[..self.tokens * self.cols],
            sums: &self.code_sums[..self.tokens * self.cols.div_ceil(CHUNK)],
            scales: &self.scales[..self.tokens],
        })
    }

    /// The floats, with their sums.
    pub(super) fn float<'a>(&'a self, x: &'a [f32]) -> Tokens<'a> {
        let sums = &self.sums[..self.tokens * self.cols.div_ceil(CHUNK)];
        Tokens::Float(FloatTokens { values: self.values(x), sums })
    }

    /// What the 8-bit codes stand for.
    pub(super) fn rounded(&self) -> &[f32] {
        &self.rounded[..self.tokens * self.cols]
    }

    /// The floats: `x` itself where there is no norm.
    pub(super) fn values<'a>(&'a self, x: &'a [f32]) -> &'a [f32] {
        if self.is_normed { &self.normed[..self.tokens * self.cols] } else { x }
    }
}

fn grow<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        *buffer = vec![T::default(); len];
    }
}

//! The scale and the bias of each group, and the rules that choose them.
//!
//! Knows no bytes and no gradients. What it returns is already rounded to the format's storage type, so everything
//! downstream works on the grid that ships.

mod absmax;
mod mse;
mod ternary;

use std::{fmt, str::FromStr};

use rayon::prelude::*;

use crate::{
    Error, Format,
    grid::{TASK, assert_shape},
    simd::vectorized,
};

/// Scales and biases of a matrix, in row-major group order, rounded to the format's storage type.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scales {
    /// One per group ([`Format::groups`]).
    pub scale: Vec<f32>,
    /// One per group, or empty when the format is symmetric.
    pub bias: Vec<f32>,
}

/// How scales are chosen from the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// The rule of the runtime that the format comes from.
    ///
    /// - `int4-g32`, as llama.cpp: the element of largest magnitude, with its sign, lies on code −8.
    /// - `int8-g32`, as llama.cpp: the largest magnitude lies on code 127.
    /// - affine, as MLX: the codes span min..max, the end of larger magnitude and zero lie on the grid.
    /// - ternary, as BitNet b1.58 (arXiv 2402.17764): the scale is the mean magnitude.
    Absmax,
    /// The least squared error found by a search that starts from [`ScaleRule::Absmax`] and so is never worse than
    /// it; for ternary the exact optimum, found before the scale is rounded.
    Mse,
    /// As [`ScaleRule::Mse`] with the levels of an affine grid held evenly around zero (SEQ, ParetoQ, arXiv 2502.02631): its bias is
    /// −[`Format::middle`] times its scale, so that 2-bit codes stand for ±1/2 and ±3/2 scales. Other grids as `Mse`.
    Seq,
}

impl fmt::Display for ScaleRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absmax => "absmax",
            Self::Mse => "mse",
            Self::Seq => "seq",
        })
    }
}

impl FromStr for ScaleRule {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "absmax" => Ok(Self::Absmax),
            "mse" => Ok(Self::Mse),
            "seq" => Ok(Self::Seq),
            _ => {
                let there_are = "there are \"absmax\", \"mse\" and \"seq\"";
                Err(Error::Format(format!("{s:?} is no rule for scales; {there_are}")))
            }
        }
    }
}

impl Scales {
    /// Chooses a scale (and a bias) for each group of the `[rows, cols]` matrix `w` of finite weights.
    ///
    /// The result doesn't depend on the number of threads.
    ///
    /// # Panics
    /// When the format doesn't fit `cols` or `w` has another length than `rows·cols`.
    pub fn choose(format: Format, rule: ScaleRule, w: &[f32], rows: usize, cols: usize) -> Self {
        assert_shape(format, w.len(), rows, cols);
        match format.group_len() {
            Some(len) => Self::per_group(format, rule, w, len),
            None => {
                let scale = match rule {
                    ScaleRule::Absmax => ternary::absmean_tensor(w),
                    ScaleRule::Mse | ScaleRule::Seq => ternary::optimum_tensor(w),
                };
                Self::rounded(format, &[scale], &[])
            }
        }
    }

    fn per_group(format: Format, rule: ScaleRule, w: &[f32], len: usize) -> Self {
        use {Format as F, ScaleRule as R};
        let steps = format.levels().1 as f32;
        match (format, rule) {
            (F::TernaryG64 | F::TernaryG256 | F::TernaryTensor, R::Absmax) => each_group(
                format,
                w,
                len,
                #[inline(always)]
                |w| (ternary::absmean(w), 0.0),
            ),
            (F::TernaryG64 | F::TernaryG256 | F::TernaryTensor, R::Mse | R::Seq) => {
                each_group(format, w, len, |w| (ternary::optimum(w), 0.0))
            }
            (F::Int4G32, R::Absmax) => each_group(
                format,
                w,
                len,
                #[inline(always)]
                |w| (absmax::q4_0(w), 0.0),
            ),
            (F::Int8G32, R::Absmax) => each_group(
                format,
                w,
                len,
                #[inline(always)]
                |w| (absmax::q8_0(w), 0.0),
            ),
            (F::Affine(_), R::Absmax) => each_group(
                format,
                w,
                len,
                #[inline(always)]
                |w| absmax::mlx(w, steps),
            ),
            (F::Int4G32 | F::Int8G32, R::Mse | R::Seq) => each_group(
                format,
                w,
                len,
                #[inline(always)]
                |w| mse::symmetric(format, w),
            ),
            (F::Affine(_), R::Mse) => each_group(
                format,
                w,
                len,
                #[inline(always)]
                |w| mse::affine(format, w),
            ),
            (F::Affine(_), R::Seq) => each_group(
                format,
                w,
                len,
                #[inline(always)]
                |w| mse::even(format, w),
            ),
        }
    }

    /// Learned scales (and biases, empty for a symmetric format) as they will be stored: rounded to the storage type,
    /// saturating, so that finite numbers stay finite.
    pub fn rounded(format: Format, scale: &[f32], bias: &[f32]) -> Self {
        let kind = format.scale_type();
        let round = |v: &[f32]| v.par_iter().with_min_len(TASK).map(|&v| kind.round(v)).collect();
        Self { scale: round(scale), bias: round(bias) }
    }
}

/// Applies `choose` (weights of a group → scale, bias) to every group of `len` and rounds the results.
fn each_group(format: Format, w: &[f32], len: usize, choose: impl Fn(&[f32]) -> (f32, f32) + Sync) -> Scales {
    let kind = format.scale_type();
    let groups = w.len() / len;
    let (mut scale, mut bias) = (vec![0.0; groups], vec![0.0; groups]);
    let in_task = TASK / len;
    let tasks =
        scale.par_chunks_mut(in_task).zip(bias.par_chunks_mut(in_task)).zip(w.par_chunks(in_task * len));
    tasks.for_each(|((scale, bias), w)| {
        vectorized(
            #[inline(always)]
            || {
                for ((scale, bias), w) in scale.iter_mut().zip(bias).zip(w.chunks_exact(len)) {
                    let (s, b) = choose(w);
                    (*scale, *bias) = (kind.round(s), kind.round(b));
                }
            },
        );
    });
    if !format.has_bias() {
        bias.clear();
    }
    Scales { scale, bias }
}

//! Losses against a teacher of whom only the most probable tokens of each row are known, and what the rest has together.
//!
//! The student's logits are gathered into one outcome for each of those tokens and one for all others; divergences between such
//! rows are those of [`super::evaluate`], and their gradient is spread over the vocabulary again. With p and q over these outcomes
//! the forward KL is Σ p ln(p/q) over the tokens + p_rest ln(p_rest/q_rest): never more than that over the whole vocabulary, and
//! nothing is renormalised.

use candle_core::{Result, Tensor};
use qat_quant::vectorized;
use rayon::prelude::*;

use super::{NAME, Rows, Term, evaluate, kernels::gradient_onto};
use crate::ops::{
    Floats,
    gpu::{Bind, Grid, Path, Typed, Work, path, typed, word},
    lanes, rows_per_chunk,
};

const LIBRARY: Typed = typed!("buckets", "../ops/gpu/common.metal", "buckets.metal");

/// The rest's share of a softmax is taken to be at least e^−80, so that its logarithm stays finite.
const LEAST: f32 = 1.804_851_4e-35;

/// What is known of a teacher's rows.
#[derive(Debug, Clone)]
pub struct TopRows {
    /// Token ids, ascending in each row: u32 `[n, k]`.
    pub ids: Tensor,
    /// Logarithms of their probabilities at the temperature of the losses, and last that of all others together: `[n, k + 1]`.
    pub logs: Tensor,
}

impl TopRows {
    /// Those of `rows` alone.
    ///
    /// # Errors
    /// A row that isn't there; a device out of memory.
    pub fn only(&self, rows: &[u32]) -> Result<Self> {
        let rows = Tensor::new(rows, self.ids.device())?;
        Ok(Self { ids: self.ids.index_select(&rows, 0)?, logs: self.logs.index_select(&rows, 0)? })
    }

    /// Rows `start..start + len`.
    pub(super) fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        Ok(Self { ids: self.ids.narrow(0, start, len)?, logs: self.logs.narrow(0, start, len)? })
    }
}

/// [`super::evaluate`] with divergences from `top`.
pub(super) fn evaluate_top(
    logits: &Tensor,
    terms: &[(Term, f64)],
    (text, top, temperature): (&[u32], &TopRows, f32),
    with_gradient: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let squared = f64::from(temperature).powi(2);
    let buckets = Buckets::gather(logits, &top.ids, 1.0 / temperature)?;
    let (mut sums, mut gradient, mut slopes) = (Vec::new(), None, None);
    // Both kinds of rows, each with its own terms, in the order of the terms.
    for &(term, factor) in terms {
        let (sum, found) = match term {
            Term::CrossEntropy => {
                let against = Rows { text, teacher: None, temperature };
                evaluate(logits, &[(term, factor)], &against, with_gradient)?
            }
            Term::Divergence(_) => {
                let against = Rows { text: &[], teacher: Some(&top.logs), temperature: 1.0 };
                let (sum, found) =
                    evaluate(&buckets.logs, &[(term, factor * squared)], &against, with_gradient)?;
                ((sum * squared)?, found)
            }
        };
        sums.push(sum);
        let to = if term == Term::CrossEntropy { &mut gradient } else { &mut slopes };
        *to = match (to.take(), found) {
            (Some(sum), Some(found)) => Some((sum + found)?),
            (sum, found) => sum.or(found),
        };
    }
    if let Some(slopes) = slopes {
        gradient = Some(buckets.spread(logits, &slopes, gradient)?);
    }
    Ok((Tensor::cat(&sums, 0)?, gradient))
}

/// A student's rows over the outcomes that are known of the teacher.
struct Buckets<'a> {
    ids: &'a Tensor,
    /// 1/τ.
    sharpness: f32,
    /// `[n, k + 1]`: (logit − largest)/τ of each token, and the logarithm of Σ exp of that over all others.
    logs: Tensor,
    /// `[n, 2]`: the largest logit, and that sum.
    kept: Tensor,
}

impl<'a> Buckets<'a> {
    fn gather(logits: &Tensor, ids: &'a Tensor, sharpness: f32) -> Result<Self> {
        let ((n, vocab), (of, k)) = (logits.dims2()?, ids.dims2()?);
        if of != n || k == 0 || k >= vocab {
            candle_core::bail!(
                "{NAME}: ids: want [{n}, k] with k from 1 to below {vocab}, found {:?}",
                ids.dims()
            );
        }
        let [logs, kept] = match path(logits.device()) {
            Path::Cpu => gather_on_cpu(logits, ids, sharpness)?,
            Path::Kernels => {
                let mut work = Work::default();
                let (logs, kept) = (work.output((n, k + 1)), work.output((n, 2)));
                let binds = [Bind::Input(0), Bind::Input(1), Bind::Output(logs), Bind::Output(kept)];
                let shape = [word(vocab)?, word(k)?, sharpness.to_bits(), 0];
                let library = LIBRARY.of(logits.dtype())?;
                work.add(library, "gather", Grid::Rows { rows: n, width: vocab }, binds, &shape)?;
                work.run(NAME, &[logits, ids])?
            }
        };
        Ok(Self { ids, sharpness, logs, kept })
    }

    /// `to` + the gradient by the logits, from that by [`Self::logs`].
    fn spread(&self, logits: &Tensor, slopes: &Tensor, to: Option<Tensor>) -> Result<Tensor> {
        if path(logits.device()) == Path::Cpu {
            return self.spread_on_cpu(logits, slopes, to);
        }
        let shape = [word(logits.dim(1)?)?, word(self.ids.dim(1)?)?, self.sharpness.to_bits()];
        gradient_onto(to, (LIBRARY, "spread"), [logits, self.ids, &self.kept, slopes], &shape)
    }

    fn spread_on_cpu(&self, logits: &Tensor, slopes: &Tensor, to: Option<Tensor>) -> Result<Tensor> {
        let ((n, vocab), k) = (logits.dims2()?, self.ids.dim(1)?);
        let ids: Vec<u32> = self.ids.flatten_all()?.to_vec1()?;
        let mut gradient = match &to {
            Some(to) => Floats::of(NAME, to)?.to_vec(),
            None => vec![0f32; n * vocab],
        };
        let (x, kept, slopes) =
            (Floats::of(NAME, logits)?, Floats::of(NAME, &self.kept)?, Floats::of(NAME, slopes)?);
        let (x, kept, slopes): (&[f32], &[f32], &[f32]) = (&x, &kept, &slopes);
        let (rows, sharpness) = (rows_per_chunk(vocab), self.sharpness);
        gradient.par_chunks_mut(rows * vocab).enumerate().for_each(|(chunk, gradient)| {
            vectorized(
                #[inline(always)]
                || {
                    for (row, gradient) in (chunk * rows..).zip(gradient.chunks_exact_mut(vocab)) {
                        let (x, ids) = (&x[row * vocab..][..vocab], &ids[row * k..][..k]);
                        let slopes = &slopes[row * (k + 1)..][..k + 1];
                        spread_row(x, ids, sharpness, [kept[2 * row], kept[2 * row + 1]], slopes, gradient);
                    }
                },
            );
        });
        Tensor::from_vec(gradient, (n, vocab), logits.device())
    }
}

/// The results of `gather` for operands on the CPU.
fn gather_on_cpu(logits: &Tensor, ids: &Tensor, sharpness: f32) -> Result<[Tensor; 2]> {
    let ((n, vocab), k) = (logits.dims2()?, ids.dim(1)?);
    let all_ids: Vec<u32> = ids.flatten_all()?.to_vec1()?;
    let held = Floats::of(NAME, logits)?;
    let x: &[f32] = &held;
    let (mut logs, mut kept) = (vec![0f32; n * (k + 1)], vec![0f32; 2 * n]);
    let rows = rows_per_chunk(vocab);
    let outputs = logs.par_chunks_mut(rows * (k + 1)).zip(kept.par_chunks_mut(2 * rows));
    outputs.enumerate().for_each(|(chunk, (logs, kept))| {
        let mut scratch = vec![0f32; vocab];
        vectorized(
            #[inline(always)]
            || {
                let outputs = logs.chunks_exact_mut(k + 1).zip(kept.chunks_exact_mut(2));
                for (row, (logs, kept)) in (chunk * rows..).zip(outputs) {
                    let (x, ids) = (&x[row * vocab..][..vocab], &all_ids[row * k..][..k]);
                    gather_row(x, ids, sharpness, &mut scratch, logs, kept);
                }
            },
        );
    });
    Ok([
        Tensor::from_vec(logs, (n, k + 1), logits.device())?,
        Tensor::from_vec(kept, (n, 2), logits.device())?,
    ])
}

#[inline(always)]
fn gather_row(
    x: &[f32],
    ids: &[u32],
    sharpness: f32,
    scratch: &mut [f32],
    logs: &mut [f32],
    kept: &mut [f32],
) {
    let top = lanes::max(x);
    lanes::map_sum(x, scratch, |x| lanes::exp((x - top) * sharpness));
    for (log, &id) in logs.iter_mut().zip(ids) {
        *log = (x[id as usize] - top) * sharpness;
        scratch[id as usize] = 0.0;
    }
    let rest = lanes::sum_map(scratch, |v| v);
    // Comparing so keeps a NaN.
    let rest = if rest < LEAST { LEAST } else { rest };
    logs[ids.len()] = rest.ln();
    (kept[0], kept[1]) = (top, rest);
}

#[inline(always)]
fn spread_row(
    x: &[f32],
    ids: &[u32],
    sharpness: f32,
    [top, rest]: [f32; 2],
    slopes: &[f32],
    gradient: &mut [f32],
) {
    // What stands at the known tokens is put back before their own slope is added.
    let before: Vec<f32> = ids.iter().map(|&id| gradient[id as usize]).collect();
    let share = slopes[ids.len()] * sharpness / rest;
    for (g, &x) in gradient.iter_mut().zip(x) {
        *g += share * lanes::exp((x - top) * sharpness);
    }
    for ((&id, before), slope) in ids.iter().zip(before).zip(slopes) {
        gradient[id as usize] = before + slope * sharpness;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};

    use super::*;
    use crate::{
        loss::{Divergence, tests::attached},
        ops::{
            check::{assert_close, assert_matches, flat, uniform},
            gpu::host::{self, Care},
        },
    };

    const TAU: f32 = 2.5;

    /// The two most probable of five tokens in three rows, and what a teacher says of them.
    fn top() -> Result<TopRows> {
        let ids = Tensor::new(&[[0u32, 3], [2, 4], [1, 2]], &Device::Cpu)?;
        let logs = Tensor::new(&[[0.5f32, 0.3, 0.2], [0.05, 0.9, 0.05], [0.25, 0.25, 0.5]], &Device::Cpu)?;
        Ok(TopRows { ids, logs: logs.log()? })
    }

    fn loss(logits: &Tensor, top: &TopRows, terms: &[(Term, f64)], text: &[u32]) -> Result<Tensor> {
        let found = evaluate_top(&logits.detach(), terms, (text, top, TAU), true)?;
        attached(logits, found, terms)
    }

    fn assert_agrees(kind: Divergence) -> Result<()> {
        let top = top()?;
        let p = top.logs.to_dtype(DType::F64)?.exp()?;
        let reference = |t: &[Tensor]| {
            let q = candle_nn::ops::softmax(&(&t[0] / f64::from(TAU))?, 1)?;
            let known = q.gather(&top.ids, 1)?;
            let rest = known.sum_keepdim(D::Minus1)?.affine(-1.0, 1.0)?;
            let q = Tensor::cat(&[known, rest], 1)?;
            let found = match kind {
                Divergence::ForwardKl => p.mul(&(p.log()? - q.log()?)?)?,
                _ => q.mul(&(q.log()? - p.log()?)?)?,
            };
            found.sum_all()? * f64::from(TAU).powi(2)
        };
        // Values, exp and ln as in the divergences; logits of 6 at a temperature of 2.5.
        let found = |t: &[Tensor]| loss(&t[0], &top, &[(Term::Divergence(kind), 1.0)], &[]);
        assert_matches(found, reference, &[uniform(3, 6.0, &[3, 5])?], 4e-6)
    }

    #[test]
    fn value_and_gradient_agree_with_finite_differences_on_the_cpu_and_in_the_kernels() -> Result<()> {
        for kind in [Divergence::ForwardKl, Divergence::ReverseKl] {
            assert_agrees(kind)?;
            if host::available() {
                host::emulating(Care::EveryMode, || assert_agrees(kind))?;
            }
        }
        Ok(())
    }

    /// Where all tokens but one are known the loss is the whole divergence; with cross entropy beside it the gradients add up.
    fn all_but_one() -> Result<()> {
        let (student, teacher) = (uniform(5, 4.0, &[4, 300])?, uniform(6, 4.0, &[4, 300])?);
        let ids: Vec<u32> = (0..4).flat_map(|row| (0..300).filter(move |id| *id != 70 * row + 1)).collect();
        let ids = Tensor::from_vec(ids, (4, 299), &Device::Cpu)?;
        let rest = Tensor::new(&[1u32, 71, 141, 211], &Device::Cpu)?.unsqueeze(1)?;
        let logs = candle_nn::ops::log_softmax(&(&teacher / f64::from(TAU))?, 1)?;
        let logs = Tensor::cat(&[logs.gather(&ids, 1)?, logs.gather(&rest, 1)?], 1)?;
        let terms = [(Term::CrossEntropy, 0.5), (Term::Divergence(Divergence::Jsd { beta: 0.3 }), 2.0)];
        let text = [0, 71, 5, 299];
        let against = Rows { text: &text, teacher: Some(&teacher), temperature: TAU };
        let (want, want_gradient) = evaluate(&student, &terms, &against, true)?;
        let top = TopRows { ids, logs };
        let (sums, gradient) = evaluate_top(&student, &terms, (&text, &top, TAU), true)?;
        assert_close("sums", &sums, &flat(&want)?, 4e-6)?;
        assert_close("gradient", &gradient.unwrap(), &flat(&want_gradient.unwrap())?, 4e-6)
    }

    #[test]
    fn where_all_tokens_but_one_are_known_the_loss_is_the_whole_divergence() -> Result<()> {
        all_but_one()?;
        if host::available() {
            host::emulating(Care::EveryMode, all_but_one)?;
        }
        Ok(())
    }

    #[test]
    fn a_rest_that_underflows_stays_finite_and_a_nan_shows() -> Result<()> {
        let top = top()?.narrow(0, 1)?;
        for (rest, finite) in [(-1000.0, true), (f32::NAN, false)] {
            let logits = Tensor::new(&[[3f32, rest, rest, 2.0, rest]], &Device::Cpu)?;
            let terms = [(Term::Divergence(Divergence::ForwardKl), 1.0)];
            let (sum, gradient) = evaluate_top(&logits, &terms, (&[], &top, 1.0), true)?;
            assert_eq!(flat(&sum)?[0].is_finite(), finite);
            assert!(!finite || flat(&gradient.unwrap())?.iter().all(|g| g.is_finite()));
        }
        Ok(())
    }

    #[test]
    fn in_bf16_the_kernels_give_the_sums_of_f32_and_round_the_gradient_once() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        let student = uniform(5, 4.0, &[3, 300])?.to_dtype(DType::BF16)?;
        let ids = Tensor::new(&[[0u32, 3], [2, 4], [1, 299]], &Device::Cpu)?;
        let top = TopRows { ids, ..top()? };
        let terms = [(Term::Divergence(Divergence::ForwardKl), 1.0)];
        let found = |dtype| {
            let logits = student.to_dtype(dtype)?;
            host::emulating(Care::EveryMode, || evaluate_top(&logits, &terms, (&[], &top, TAU), true))
        };
        let ((sums, narrow), (want, wide)) = (found(DType::BF16)?, found(DType::F32)?);
        assert_eq!(flat(&sums)?, flat(&want)?);
        let (narrow, wide) = (narrow.unwrap(), wide.unwrap());
        assert_eq!(narrow.dtype(), DType::BF16);
        assert_eq!(flat(&narrow)?, flat(&wide.to_dtype(DType::BF16)?)?);
        Ok(())
    }
}

//! Losses on the CPU: one parallel pass over the rows, in which each row is read for all terms while it is near.
//!
//! Each row is summed in f32 lanes, the rows in f64 and in their order. Knows no particular loss.

use candle_core::{Result, Tensor};
use qat_quant::vectorized;
use rayon::prelude::*;

use super::{NAME, Rows, Term, cross_entropy, divergence};
use crate::ops::{Floats, lanes, rows_per_chunk};

/// [`super::evaluate`] for operands that were checked.
pub(super) fn evaluate(
    logits: &Tensor,
    terms: &[(Term, f64)],
    against: &Rows,
    with_gradient: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (n, vocab) = logits.dims2()?;
    let teacher = against.teacher.map(|teacher| Floats::of(NAME, teacher)).transpose()?;
    let pass = Pass {
        terms,
        text: against.text,
        teacher: teacher.as_deref().unwrap_or_default(),
        temperature: against.temperature,
    };
    let mut values = vec![0f64; n * terms.len()];
    let mut gradient = vec![0f32; if with_gradient { n * vocab } else { 0 }];
    pass.run(&Floats::of(NAME, logits)?, vocab, &mut gradient, &mut values);
    let sum = |term| values.iter().skip(term).step_by(terms.len()).sum::<f64>() as f32;
    let sums: Vec<f32> = (0..terms.len()).map(sum).collect();
    let sums = Tensor::from_vec(sums, terms.len(), logits.device())?;
    let gradient = with_gradient.then(|| Tensor::from_vec(gradient, (n, vocab), logits.device()));
    Ok((sums, gradient.transpose()?))
}

struct Pass<'a> {
    terms: &'a [(Term, f64)],
    text: &'a [u32],
    teacher: &'a [f32],
    temperature: f32,
}

impl Pass<'_> {
    /// Fills `values` `[n, terms]` and, unless it is empty, `gradient` `[n, vocab]`.
    fn run(&self, logits: &[f32], vocab: usize, gradient: &mut [f32], values: &mut [f64]) {
        let rows = rows_per_chunk(vocab);
        let mut gradients = gradient.chunks_mut(rows * vocab);
        let chunks = values.chunks_mut(rows * self.terms.len()).zip(logits.chunks(rows * vocab));
        let chunks: Vec<_> = chunks.map(|chunk| (chunk, gradients.next().unwrap_or_default())).collect();
        chunks.into_par_iter().enumerate().for_each(|(chunk, ((values, logits), gradient))| {
            let mut scratch = vec![0f32; (1 + divergence::SCRATCH) * vocab];
            vectorized(
                #[inline(always)]
                || {
                    let mut gradients = gradient.chunks_exact_mut(vocab);
                    let rows_of = values.chunks_exact_mut(self.terms.len()).zip(logits.chunks_exact(vocab));
                    for (i, (values, row)) in rows_of.enumerate() {
                        let gradient = gradients.next().unwrap_or_default();
                        self.row(chunk * rows + i, row, &mut scratch, gradient, values);
                    }
                },
            );
        });
    }

    /// The values of all terms for row `index`, and Σ factor·gradient unless `gradient` is empty.
    #[inline(always)]
    fn row(
        &self,
        index: usize,
        logits: &[f32],
        scratch: &mut [f32],
        gradient: &mut [f32],
        values: &mut [f64],
    ) {
        let vocab = logits.len();
        let (further, scratch) = scratch.split_at_mut(vocab);
        for (place, (&(term, factor), value)) in self.terms.iter().zip(values).enumerate() {
            let slope = match place {
                0 => &mut *gradient,
                _ => &mut further[..gradient.len()],
            };
            *value = match term {
                Term::CrossEntropy => cross_entropy::row(self.text[index], logits, slope),
                Term::Divergence(kind) => {
                    let teacher = &self.teacher[index * vocab..][..vocab];
                    divergence::row(kind, self.temperature, teacher, logits, scratch, slope)
                }
            };
            lanes::scale(slope, factor as f32);
            if place > 0 && !gradient.is_empty() {
                lanes::add(gradient, &further[..vocab]);
            }
        }
    }
}

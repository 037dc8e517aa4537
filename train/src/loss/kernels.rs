//! Losses on a GPU: for each a kernel that gives a value for each row and keeps numbers of it, and one that makes the gradient of
//! the sum from them, added to what the terms before it made. Knows no particular loss.

use candle_core::{Error, Result, Tensor};

use super::{NAME, Rows, Term, cross_entropy, divergence};
use crate::ops::gpu::{Bind, Grid, SUM, Typed, Work, word};

/// A loss as a pair of kernels.
pub(super) struct RowKernels {
    pub library: Typed,
    pub forward: &'static str,
    pub backward: &'static str,
    /// The first fields of the kernels' `Shape`; whether to add to the gradient that is there is the last.
    pub shape: Vec<u32>,
    /// Numbers kept of a row.
    pub kept: usize,
}

/// [`super::evaluate`] for operands that were checked.
pub(super) fn evaluate(
    logits: &Tensor,
    terms: &[(Term, f64)],
    against: &Rows,
    with_gradient: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (mut sums, mut gradient) = (Vec::new(), None);
    for &(term, factor) in terms {
        let (kernels, other) = match term {
            Term::CrossEntropy => {
                (cross_entropy::kernels(logits)?, Tensor::new(against.text, logits.device())?)
            }
            Term::Divergence(kind) => {
                let teacher = against.teacher.ok_or_else(|| Error::Msg(format!("{NAME}: no teacher")))?;
                (divergence::kernels(logits, against.temperature, kind)?, teacher.clone())
            }
        };
        let (sum, kept) = kernels.sum(logits, &other)?;
        sums.push(sum);
        if with_gradient {
            gradient = Some(kernels.gradient(logits, &other, &kept, factor, gradient)?);
        }
    }
    Ok((Tensor::stack(&sums, 0)?, gradient))
}

impl RowKernels {
    /// The sum over the rows, and what was kept of each.
    fn sum(&self, logits: &Tensor, other: &Tensor) -> Result<(Tensor, Tensor)> {
        let (n, vocab) = logits.dims2()?;
        let mut work = Work::default();
        let (losses, kept, sum) = (work.output(n), work.output((n, self.kept)), work.output(()));
        let binds = [Bind::Input(0), Bind::Input(1), Bind::Output(losses), Bind::Output(kept)];
        let grid = Grid::Rows { rows: n, width: vocab };
        work.add(
            self.library.of(logits.dtype())?,
            self.forward,
            grid,
            binds,
            &with_last(&self.shape, false),
        )?;
        let binds = [Bind::Made(losses), Bind::Output(sum)];
        let grid = Grid::Rows { rows: 1, width: n };
        work.add(SUM.f32, "sum_all", grid, binds, &[word(n)?, 1, 1f32.to_bits()])?;
        let [_, kept, sum] = work.run(NAME, &[logits, other])?;
        Ok((sum, kept))
    }

    /// `to` + `factor` · the gradient of the sum; `to` may be overwritten.
    fn gradient(
        &self,
        logits: &Tensor,
        other: &Tensor,
        kept: &Tensor,
        factor: f64,
        to: Option<Tensor>,
    ) -> Result<Tensor> {
        let upstream = Tensor::new(factor as f32, logits.device())?;
        let operands = [logits, other, kept, &upstream];
        gradient_onto(to, (self.library, self.backward), operands, &self.shape)
    }
}

/// What `kernel` makes of rows of logits and three more operands: the gradient of the logits, or that added to what is in `to`. Its
/// `Shape` has the fields `shape`, and last whether it adds.
pub(super) fn gradient_onto(
    to: Option<Tensor>,
    (library, kernel): (Typed, &'static str),
    operands: [&Tensor; 4],
    shape: &[u32],
) -> Result<Tensor> {
    let logits = operands[0];
    let (rows, width) = logits.dims2()?;
    let mut work = Work::default();
    let gradient = match to {
        Some(_) => Bind::InOut(4),
        None => Bind::Output(work.output_like(logits)),
    };
    let binds = [Bind::Input(0), Bind::Input(1), Bind::Input(2), Bind::Input(3), gradient];
    let shape = with_last(shape, to.is_some());
    work.add(library.of(logits.dtype())?, kernel, Grid::Rows { rows, width }, binds, &shape)?;
    let operands: Vec<&Tensor> = operands.into_iter().chain(&to).collect();
    let made = work.run_all(NAME, &operands)?.pop();
    made.or(to).ok_or_else(|| Error::Msg(format!("{NAME}: no gradient was made")).bt())
}

fn with_last(shape: &[u32], add: bool) -> Vec<u32> {
    shape.iter().copied().chain([u32::from(add)]).collect()
}

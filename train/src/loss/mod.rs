//! Losses as sums over rows of logits `[n, vocab]`: the caller divides once, where it knows the number of tokens.
//!
//! A loss is a pure function of one row, giving its value and, on demand, its gradient; what turns that into a
//! differentiable operation is written once, below and in `head`. The backward pass recomputes from the logits, so that a loss
//! keeps no `[n, vocab]` buffer between the passes and allocates one, the gradient, in the second. Knows no model.
//!
//! A NaN or +∞ among the logits makes the sum NaN (and never panics): that is how a diverged run is noticed.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cross_entropy;
mod divergence;
mod head;

pub use cross_entropy::{cross_entropy, cross_entropy_sum};
pub use divergence::{Divergence, divergence, divergence_sum};
pub use head::Head;

use candle_core::{Device, Result, Tensor, Var};
use qat_quant::vectorized;
use rayon::prelude::*;

use crate::ops::gpu::{Backward, Bind, Grid, Library, SUM, Work, attach, word};
use crate::ops::{Floats, lanes, rows_per_chunk};

/// A loss of some logits, outside their graph: its sum over the rows, and the way to the gradient of that.
pub struct Term {
    sum: Tensor,
    gradient: Box<dyn LogitsGradient>,
}

impl Term {
    /// The sum over the rows, in nats.
    ///
    /// # Errors
    /// The device failed.
    pub fn sum(&self) -> Result<f64> {
        self.sum.to_scalar::<f32>().map(f64::from)
    }

    /// The sum as a scalar in the graph of the `logits` that this is a loss of.
    fn attached(self, logits: &Tensor) -> Result<Tensor> {
        attach(self.sum, &[logits], OfLogits(self.gradient))
    }
}

struct OfLogits(Box<dyn LogitsGradient>);

impl Backward for OfLogits {
    const NAME: &'static str = "loss";

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.0.gradient(inputs[0], grad, None)?)])
    }
}

/// How a sum over rows changes with the logits.
trait LogitsGradient: Send + Sync + 'static {
    /// `to` + `upstream` · the gradient, as large as `logits` `[n, vocab]`; `upstream` is a scalar. `to` may be overwritten.
    fn gradient(&self, logits: &Tensor, upstream: &Tensor, to: Option<Tensor>) -> Result<Tensor>;
}

fn sum_of(gradient: Tensor, to: Option<Tensor>) -> Result<Tensor> {
    match to {
        Some(to) => to + gradient,
        None => Ok(gradient),
    }
}

/// One row of a loss.
trait RowLoss: Sync {
    /// Buffers of `vocab` floats that a row needs besides its gradient.
    const SCRATCH: usize;

    /// The loss of row `index` with these `logits`. If a gradient is asked for, `gradient` has the length of `logits`
    /// and receives the derivative; it is empty otherwise. `scratch` holds [`Self::SCRATCH`]·`logits.len()` floats.
    fn row(&self, index: usize, logits: &[f32], scratch: &mut [f32], gradient: &mut [f32]) -> f64;
}

/// Refuses logits that are no `[n, vocab]` with at least one element.
fn check_logits(name: &'static str, logits: &Tensor) -> Result<(usize, usize)> {
    match *logits.dims() {
        [n, vocab] if n * vocab > 0 => Ok((n, vocab)),
        _ => candle_core::bail!("{name}: logits: want [n, vocab], not empty, found {:?}", logits.dims()),
    }
}

/// Σ over rows, as a scalar.
///
/// Each row is summed in f32 lanes, the rows in f64 and in their order.
fn sum_rows<L: RowLoss>(name: &'static str, loss: &L, logits: &Tensor) -> Result<Tensor> {
    let (n, vocab) = logits.dims2()?;
    let held = Floats::of(name, logits)?;
    let logits: &[f32] = &held;
    let mut values = vec![0f64; n];
    let rows = rows_per_chunk(vocab);
    let chunks = values.par_chunks_mut(rows).zip(logits.par_chunks(rows * vocab));
    chunks.enumerate().for_each(|(chunk, (values, logits))| {
        let mut scratch = vec![0f32; L::SCRATCH * vocab];
        vectorized(
            #[inline(always)]
            || {
                for (i, (value, row)) in values.iter_mut().zip(logits.chunks_exact(vocab)).enumerate() {
                    *value = loss.row(chunk * rows + i, row, &mut scratch, &mut []);
                }
            },
        );
    });
    Tensor::new(values.iter().sum::<f64>() as f32, &Device::Cpu)
}

/// The gradient of [`sum_rows`] times the scalar `upstream`.
fn gradient_rows<L: RowLoss>(
    name: &'static str,
    loss: &L,
    logits: &Tensor,
    upstream: &Tensor,
) -> Result<Tensor> {
    let (n, vocab) = logits.dims2()?;
    let upstream = upstream.to_scalar::<f32>()?;
    let mut gradient = vec![0f32; n * vocab];
    let values = Floats::of(name, logits)?;
    let rows = rows_per_chunk(vocab);
    let chunks = gradient.par_chunks_mut(rows * vocab).zip(values.par_chunks(rows * vocab));
    chunks.enumerate().for_each(|(chunk, (gradient, logits))| {
        let mut scratch = vec![0f32; L::SCRATCH * vocab];
        vectorized(
            #[inline(always)]
            || {
                let pairs = gradient.chunks_exact_mut(vocab).zip(logits.chunks_exact(vocab));
                for (i, (gradient, row)) in pairs.enumerate() {
                    loss.row(chunk * rows + i, row, &mut scratch, gradient);
                    lanes::scale(gradient, upstream);
                }
            },
        );
    });
    Tensor::from_vec(gradient, (n, vocab), logits.device())
}

/// A loss as a pair of kernels: one that gives a value for each row and numbers to be kept of it, and one that makes the
/// gradient of the sum from them.
struct RowKernels {
    name: &'static str,
    library: Library,
    forward: &'static str,
    backward: &'static str,
    /// The first fields of the kernels' `Shape`; whether to add to the gradient that is there is the last.
    shape: Vec<u32>,
    /// Numbers kept of a row.
    kept: usize,
}

impl RowKernels {
    /// The loss of `logits`, compared with `other`.
    fn term(self, logits: &Tensor, other: Tensor) -> Result<Term> {
        let (n, vocab) = logits.dims2()?;
        let mut work = Work::default();
        let (losses, kept, sum) = (work.output(n), work.output((n, self.kept)), work.output(()));
        let binds = [Bind::Input(0), Bind::Input(1), Bind::Output(losses), Bind::Output(kept)];
        let grid = Grid::Rows { rows: n, width: vocab };
        work.add(self.library, self.forward, grid, binds, &self.shape(false))?;
        let binds = [Bind::Made(losses), Bind::Output(sum)];
        let grid = Grid::Rows { rows: 1, width: n };
        work.add(SUM, "sum_all", grid, binds, &[word(n)?, 1, 1f32.to_bits()])?;
        let [_, kept, sum] = work.run(self.name, &[&logits.detach(), &other])?;
        Ok(Term { sum, gradient: Box::new(KernelGradient { kernels: self, other, kept }) })
    }

    fn shape(&self, add: bool) -> Vec<u32> {
        self.shape.iter().copied().chain([u32::from(add)]).collect()
    }
}

struct KernelGradient {
    kernels: RowKernels,
    other: Tensor,
    kept: Tensor,
}

impl LogitsGradient for KernelGradient {
    fn gradient(&self, logits: &Tensor, upstream: &Tensor, to: Option<Tensor>) -> Result<Tensor> {
        let RowKernels { name, library, backward, .. } = self.kernels;
        let (n, vocab) = logits.dims2()?;
        let mut work = Work::default();
        let mut operands = vec![logits, &self.other, &self.kept, upstream];
        let gradient = match &to {
            Some(to) => {
                operands.push(to);
                Bind::InOut(4)
            }
            None => Bind::Output(work.output(logits.shape())),
        };
        let binds = [Bind::Input(0), Bind::Input(1), Bind::Input(2), Bind::Input(3), gradient];
        let grid = Grid::Rows { rows: n, width: vocab };
        work.add(library, backward, grid, binds, &self.kernels.shape(to.is_some()))?;
        let made = work.run_all(name, &operands)?.pop();
        made.or(to).ok_or_else(|| candle_core::Error::Msg(format!("{name}: no gradient was made")).bt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_close, bits, flat, uniform};
    use candle_core::Var;

    #[test]
    fn sums_and_gradients_do_not_depend_on_the_number_of_threads() -> Result<()> {
        let (student, teacher) =
            (Var::from_tensor(&uniform(1, 4.0, &[700, 90])?)?, uniform(2, 4.0, &[700, 90])?);
        let targets: Vec<u32> = (0..700).map(|i| i % 90).collect();
        let on = |threads: usize| -> Result<Vec<Vec<u32>>> {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .map_err(candle_core::Error::wrap)?;
            pool.install(|| {
                let cross_entropy = cross_entropy_sum(&student, &targets)?;
                let divergence = divergence_sum(&student, &teacher, 2.0, Divergence::Jsd { beta: 0.3 })?;
                let mut all = vec![bits(&cross_entropy)?, bits(&divergence)?];
                for loss in [cross_entropy, divergence] {
                    all.extend(loss.backward()?.get(&student).map(bits).transpose()?);
                }
                Ok(all)
            })
        };
        let one = on(1)?;
        assert_eq!(one.len(), 4);
        assert!(one == on(5)?);
        Ok(())
    }

    #[test]
    fn empty_logits_are_refused() -> Result<()> {
        let none = Tensor::zeros((0, 5), candle_core::DType::F32, &candle_core::Device::Cpu)?;
        let message = divergence_sum(&none, &none, 1.0, Divergence::ForwardKl).unwrap_err().to_string();
        assert!(message.contains("want [n, vocab], not empty, found [0, 5]"), "{message}");
        Ok(())
    }
}

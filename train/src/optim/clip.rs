//! The gradient's norm, and the share of the gradient that clipping by it leaves.
//!
//! Scales are clipped by themselves: a group's worth of gradient adds up in one number, and would drown the rest. On a GPU the
//! shares stay there, where the update reads them: nobody waits for the norm before it is needed for the log.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::of_grid;
use crate::{
    Result,
    ops::{
        Floats,
        gpu::{Bind, Grid, Library, Path, Work, library, path, word},
        lanes, rows_per_chunk,
    },
    ranks::Ranks,
    student::Kind,
};

const NAME: &str = "clip";
const LIBRARY: Library = library!("clip", "../ops/gpu/common.metal", "clip.metal");

/// Elements that one threadgroup sums.
const CHUNK: usize = 2 * 1024;

/// Four numbers on the device: the norm over weights and norms, that over what belongs to grids, and the two shares left.
pub(super) struct Clip(Tensor);

impl Clip {
    /// Of contiguous gradients of variables that are such `kinds`, which lie on `device`, over all `ranks`, with norms of at most `limit`
    /// where there is one.
    ///
    /// # Errors
    /// The device is out of memory; another rank has failed.
    pub fn measure(
        (kinds, gradients): (&[Kind], &[Tensor]),
        limit: Option<f64>,
        (ranks, device): (&Ranks, &Device),
    ) -> Result<Self> {
        if path(device) == Path::Kernels {
            return Ok(Self(by_kernels((kinds, gradients), limit, (ranks, device))?));
        }
        let mut squares = [0f64; 2];
        for (kind, gradient) in kinds.iter().zip(gradients) {
            squares[usize::from(of_grid(*kind))] += sum_of_squares(gradient)?;
        }
        let squares = ranks.sum(&squares)?;
        let norms = [squares[0], squares[1]].map(f64::sqrt);
        let kept = norms.map(|norm| limit.filter(|&limit| norm > limit).map_or(1.0, |limit| limit / norm));
        let numbers = [norms[0], norms[1], kept[0], kept[1]].map(|v| v as f32);
        Ok(Self(Tensor::new(&numbers, device)?))
    }

    /// Share of a gradient that is left.
    pub fn kept(&self, of_grid: bool) -> Result<f32> {
        Ok(self.share(of_grid)?.to_scalar()?)
    }

    /// What is left of the `gradient` of a variable that is a `kind`.
    pub fn apply(&self, kind: Kind, gradient: &Tensor) -> Result<Tensor> {
        Ok(gradient.broadcast_mul(&self.share(of_grid(kind))?)?)
    }

    /// All four numbers, where the kernels read them.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    fn share(&self, of_grid: bool) -> Result<Tensor> {
        Ok(self.0.get(2 + usize::from(of_grid))?)
    }
}

/// Chunks are summed in f32 lanes, their sums in f64 and in order: the same bits for every number of threads.
fn sum_of_squares(gradient: &Tensor) -> Result<f64> {
    let values = Floats::of(NAME, gradient)?;
    let chunk = |values: &[f32]| {
        qat_quant::vectorized(
            #[inline(always)]
            || f64::from(lanes::sum_map(values, |v| v * v)),
        )
    };
    let sums: Vec<f64> = values.par_chunks(rows_per_chunk(1)).map(chunk).collect();
    Ok(sums.iter().sum())
}

/// The four numbers, made where the gradients are; the host waits for nothing.
fn by_kernels(
    (kinds, gradients): (&[Kind], &[Tensor]),
    limit: Option<f64>,
    (ranks, device): (&Ranks, &Device),
) -> Result<Tensor> {
    // Partial sums of weights and norms stand in front of those of grids.
    let in_order = [false, true].map(|wanted| {
        let of = move |(kind, _): &(&Kind, &Tensor)| of_grid(**kind) == wanted;
        kinds.iter().zip(gradients).filter(of).map(|(_, gradient)| gradient).collect::<Vec<_>>()
    });
    let chunks =
        |gradients: &[&Tensor]| gradients.iter().map(|g| g.elem_count().div_ceil(CHUNK)).sum::<usize>();
    let counts = in_order.each_ref().map(|gradients| chunks(gradients));
    let partial = Tensor::zeros((counts[0] + counts[1]).max(1), DType::F32, device)?;
    let mut operands = vec![&partial];
    let mut work = Work::default();
    let mut at = 0;
    for gradient in in_order.iter().flatten() {
        let n = gradient.elem_count();
        let rows = n.div_ceil(CHUNK);
        let binds = [Bind::Input(operands.len()), Bind::InOut(0)];
        let shape = [word(n)?, word(CHUNK)?, word(at)?];
        work.add(LIBRARY, "square_sums", Grid::Rows { rows, width: CHUNK.min(n) }, binds, &shape)?;
        operands.push(gradient);
        at += rows;
    }
    let own = norms(work, &operands, counts, limit.filter(|_| ranks.size() == 1))?;
    if ranks.size() == 1 {
        return Ok(own);
    }
    let all = ranks.everyones(&own.narrow(0, 0, 2)?.sqr()?)?;
    let squares = Tensor::stack(&all, 1)?.flatten_all()?;
    norms(Work::default(), &[&squares], [ranks.size(); 2], limit)
}

/// Does the `work`, and then makes the four numbers of the sums in the first of its `operands`, so many of weights and of grids.
fn norms(mut work: Work, operands: &[&Tensor], counts: [usize; 2], limit: Option<f64>) -> Result<Tensor> {
    let clip = work.output(4);
    let shape = [word(counts[0])?, word(counts[1])?, (limit.unwrap_or(0.0) as f32).to_bits()];
    let grid = Grid::Rows { rows: 1, width: (counts[0] + counts[1]).max(1) };
    work.add(LIBRARY, "clip", grid, [Bind::Input(0), Bind::Output(clip)], &shape)?;
    let [clip] = work.run(NAME, operands)?;
    Ok(clip)
}

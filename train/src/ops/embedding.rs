//! Rows of a table by id.
//!
//! Knows no text. The gradient of a row is the sum over its occurrences in the order in which they occur, whatever the
//! number of threads: occurrences are sorted by id first, then each row of the table is summed by one task.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::gpu::{Backward, Bind, Grid, Path, Typed, Work, attach, path, typed, word};
use super::{Floats, cast, floats, floats_out, lanes, rows_per_chunk, scale, tape};

const NAME: &str = "embedding";
const LIBRARY: Typed = typed!("embedding", "gpu/common.metal", "embedding.metal");

/// The rows of `table` `[vocab, d]` that `ids` name, times `factor`, as `[ids, d]`.
///
/// # Errors
/// An id that is not below `vocab`; tables other than f32 on the CPU.
pub fn embedding(table: &Tensor, ids: &[u32], factor: f32) -> Result<Tensor> {
    let (vocab, _) = table.dims2()?;
    if let Some(position) = ids.iter().position(|&id| id as usize >= vocab) {
        candle_core::bail!("{NAME}: ids[{position}]: want an id below {vocab}, found {}", ids[position]);
    }
    match path(table.device()) {
        Path::Cpu => tape::apply1(&table.contiguous()?, Embedding { ids: ids.to_vec(), factor }),
        Path::Kernels => on_gpu(table, ids, factor),
    }
}

/// The rows of `x` `[n, d]` that `rows` name, as `[rows, d]`, with a gradient of the type of `x`.
///
/// # Errors
/// A row that is not below `n`; types other than f32 on the CPU.
pub fn pick_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    if x.dtype() == DType::F32 {
        return embedding(x, rows, 1.0);
    }
    // The sums are f32; what made `x` wants its gradient as it made it.
    cast(&embedding(&cast(x, DType::F32)?, rows, 1.0)?, x.dtype())
}

/// candle's lookup with a gradient of our own, f32 for every type: candle's adds one position after the other.
fn on_gpu(table: &Tensor, ids: &[u32], factor: f32) -> Result<Tensor> {
    let mut rows = table.detach().index_select(&Tensor::new(ids, table.device())?, 0)?;
    if factor != 1.0 {
        rows = scale(&rows, &Tensor::new(&[factor], table.device())?)?;
    }
    attach(rows, &[table], GpuEmbedding { occurrences: Occurrences::of(ids, table.dim(0)?), factor })
}

struct GpuEmbedding {
    occurrences: Occurrences,
    factor: f32,
}

impl Backward for GpuEmbedding {
    const NAME: &'static str = NAME;

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (vocab, d) = inputs[0].dims2()?;
        let ends = Tensor::new(self.occurrences.ends.as_slice(), grad.device())?;
        let positions = Tensor::new(self.occurrences.positions.as_slice(), grad.device())?;
        let mut work = Work::default();
        let sums = work.output((vocab, d));
        let binds = [Bind::Input(0), Bind::Input(1), Bind::Input(2), Bind::Output(sums)];
        let grid = Grid::Plane { rows: vocab, width: d };
        let library = LIBRARY.of(grad.dtype())?;
        let shape = [word(vocab)?, word(d)?, self.factor.to_bits()];
        work.add(library, "embedding_backward", grid, binds, &shape)?;
        let [sums] = work.run(NAME, &[grad, &ends, &positions])?;
        Ok(vec![Some(sums)])
    }
}

struct Embedding {
    /// All below the number of table rows.
    ids: Vec<u32>,
    /// What rows are multiplied by.
    factor: f32,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, d) = layout.shape().dims2()?;
        let table = floats(NAME, table, layout)?;
        let mut rows = vec![0f32; self.ids.len() * d];
        if d > 0 {
            rows.par_chunks_mut(d).zip(&self.ids).with_min_len(rows_per_chunk(d)).for_each(|(row, &id)| {
                row.copy_from_slice(&table[id as usize * d..][..d]);
                if self.factor != 1.0 {
                    lanes::scale(row, self.factor);
                }
            });
        }
        floats_out(rows, (self.ids.len(), d))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (vocab, d) = table.dims2()?;
        let grad = grad.contiguous()?;
        let mut sums = vec![0f32; vocab * d];
        if d > 0 {
            let grad = Floats::of(NAME, &grad)?;
            let grad: &[f32] = &grad;
            let occurrences = Occurrences::of(&self.ids, vocab);
            sums.par_chunks_mut(d).enumerate().with_min_len(rows_per_chunk(d)).for_each(|(id, sum)| {
                for &i in occurrences.of_id(id) {
                    lanes::add(sum, &grad[i as usize * d..][..d]);
                }
                if self.factor != 1.0 {
                    lanes::scale(sum, self.factor);
                }
            });
        }
        Tensor::from_vec(sums, (vocab, d), table.device()).map(Some)
    }
}

/// The positions of each id, ascending: a counting sort of `ids`.
struct Occurrences {
    /// The positions of id k are `positions[ends[k − 1]..ends[k]]`.
    ends: Vec<u32>,
    positions: Vec<u32>,
}

impl Occurrences {
    fn of(ids: &[u32], vocab: usize) -> Self {
        let mut ends = vec![0u32; vocab];
        ids.iter().for_each(|&id| ends[id as usize] += 1);
        let mut total = 0;
        for end in &mut ends {
            total += *end;
            *end = total - *end;
        }
        // `ends` holds the starts now; filling moves each start to its end.
        let mut positions = vec![0u32; ids.len()];
        for (i, &id) in ids.iter().enumerate() {
            positions[ends[id as usize] as usize] = i as u32;
            ends[id as usize] += 1;
        }
        Self { ends, positions }
    }

    fn of_id(&self, id: usize) -> &[u32] {
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.positions[start as usize..self.ends[id] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{
        assert_matches, assert_rounds_once, backward, bits, uniform, value_and_gradients,
    };
    use crate::ops::gpu::host;

    #[test]
    fn value_and_gradient_agree_with_finite_differences() -> Result<()> {
        let ids = [3u32, 0, 3, 4, 3, 0];
        let inputs = [uniform(11, 1.0, &[6, 5])?];
        let reference = |t: &[Tensor]| t[0].index_select(&Tensor::new(&ids, t[0].device())?, 0)? * 2.5;
        // At most three additions and a product.
        assert_matches(|t| embedding(&t[0], &ids, 2.5), reference, &inputs, 3e-7)
    }

    #[test]
    fn the_kernel_gives_the_cpus_gradient_to_the_bit() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        let ids: Vec<u32> = (0..200).map(|i| i * i % 37).collect();
        for d in [1, 5, 300] {
            let table = candle_core::Var::from_tensor(&uniform(11, 1.0, &[38, d])?)?;
            let weights = uniform(12, 1.0, &[200, d])?;
            let (_, ours) = backward(|| on_gpu(&table, &ids, 2.5), &weights)?;
            let (_, cpus) = backward(|| embedding(&table, &ids, 2.5), &weights)?;
            let [ours, cpus] = [ours, cpus].map(|grads| bits(grads.get(&table).expect("a gradient")));
            assert_eq!(ours?, cpus?, "{d}");
        }
        Ok(())
    }

    #[test]
    fn no_ids_give_no_rows_and_a_zero_gradient() -> Result<()> {
        let table = candle_core::Var::from_tensor(&uniform(11, 1.0, &[6, 5])?)?;
        let rows = embedding(&table, &[], 2.0)?;
        assert_eq!(rows.dims(), [0, 5]);
        Ok(())
    }

    #[test]
    fn an_id_outside_the_table_is_refused_by_position() -> Result<()> {
        let message = embedding(&uniform(11, 1.0, &[6, 5])?, &[1, 6], 1.0).unwrap_err().to_string();
        assert!(message.contains("ids[1]: want an id below 6, found 6"), "{message}");
        Ok(())
    }

    #[test]
    fn in_bf16_rows_are_the_tables_and_the_kernel_sums_its_gradient_in_f32() -> Result<()> {
        if !host::available() {
            return Ok(());
        }
        let ids: Vec<u32> = (0..200).map(|i| i * i % 37).collect();
        let table = uniform(11, 1.0, &[38, 5])?;
        assert_rounds_once(|t| embedding(&t[0], &ids, 2.5), std::slice::from_ref(&table), &[])?;
        let table = table.to_dtype(DType::BF16)?;
        let gradient = value_and_gradients(|t| embedding(&t[0], &ids, 2.5), &[table])?.remove(1);
        assert_eq!(gradient.expect("a gradient").dtype(), DType::F32);
        Ok(())
    }
}

//! Rows of a table by id.
//!
//! Knows no text. The gradient of a row is the sum over its occurrences in the order in which they occur, whatever the
//! number of threads: occurrences are sorted by id first, then each row of the table is summed by one task.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{Floats, floats, floats_out, lanes, rows_per_chunk};

const NAME: &str = "embedding";

/// The rows of `table` `[vocab, d]` that `ids` (u32, `[n]`) name, as `[n, d]`. `ids` get no gradient.
///
/// # Errors
/// An id that is not below `vocab` (elsewhere than on the CPU the device reports it); ids that are not u32 `[n]`; tables other than f32 on the CPU.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (vocab, _) = table.dims2()?;
    if ids.dtype() != DType::U32 || ids.rank() != 1 {
        candle_core::bail!("{NAME}: ids: want u32 [n], found {:?} {:?}", ids.dtype(), ids.dims());
    }
    if !table.device().is_cpu() {
        return table.index_select(ids, 0);
    }
    let ids = ids.to_vec1::<u32>()?;
    if let Some(position) = ids.iter().position(|&id| id as usize >= vocab) {
        candle_core::bail!("{NAME}: ids[{position}]: want an id below {vocab}, found {}", ids[position]);
    }
    table.contiguous()?.apply_op1(Embedding { ids })
}

struct Embedding {
    /// All below the number of table rows.
    ids: Vec<u32>,
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
    use crate::ops::check::{assert_matches, uniform};
    use candle_core::Device;

    #[test]
    fn value_and_gradient_agree_with_finite_differences() -> Result<()> {
        let ids = Tensor::new(&[3u32, 0, 3, 4, 3, 0], &Device::Cpu)?;
        let inputs = [uniform(11, 1.0, &[6, 5])?];
        // At most three additions.
        assert_matches(|t| embedding(&t[0], &ids), |t| t[0].index_select(&ids, 0), &inputs, 2e-7)
    }

    #[test]
    fn no_ids_give_no_rows_and_a_zero_gradient() -> Result<()> {
        let table = candle_core::Var::from_tensor(&uniform(11, 1.0, &[6, 5])?)?;
        let rows = embedding(&table, &Tensor::from_vec(Vec::<u32>::new(), 0, &Device::Cpu)?)?;
        assert_eq!(rows.dims(), [0, 5]);
        Ok(())
    }

    #[test]
    fn an_id_outside_the_table_is_refused_by_position() -> Result<()> {
        let ids = Tensor::new(&[1u32, 6], &Device::Cpu)?;
        let message = embedding(&uniform(11, 1.0, &[6, 5])?, &ids).unwrap_err().to_string();
        assert!(message.contains("ids[1]: want an id below 6, found 6"), "{message}");
        Ok(())
    }
}

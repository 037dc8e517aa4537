//! Which rows of each variable are whose: what a rank sums, remembers and moves (ZeRO-1, arXiv 1910.02054).
//!
//! A variable is cut into ranges of rows as equal as rows allow, so that large tables are spread too, and a grid's bias lies beside its scale.
//! Variables that can't be cut belong whole to one rank. Invariant: a function of shapes and the number of ranks alone.

use std::{cmp::Reverse, ops::Range};

use crate::student::Variable;

/// The rows of each variable by rank.
#[derive(Debug, Clone)]
pub(crate) struct Shares(Vec<Vec<Range<usize>>>);

impl Shares {
    /// Of `variables` among `ranks`; those that are `whole` are not cut.
    pub fn new(variables: &[Variable], whole: impl Fn(&Variable) -> bool, ranks: usize) -> Self {
        let owners = owners(variables, whole, ranks);
        let cut = |(variable, owner): (&Variable, Option<usize>)| {
            let rows = variable.var.dims().first().copied().unwrap_or(1);
            let range = |rank| match owner {
                None => super::share(rows, rank, ranks),
                Some(owner) if owner == rank => 0..rows,
                Some(_) => 0..0,
            };
            (0..ranks).map(range).collect()
        };
        Self(variables.iter().zip(owners).map(cut).collect())
    }

    /// The rows of the variable number `index` that are `rank`'s.
    pub fn rows(&self, index: usize, rank: usize) -> Range<usize> {
        self.0[index][rank].clone()
    }
}

/// To whom variables belong that are not cut: the largest first, each to the rank with least so far.
fn owners(variables: &[Variable], whole: impl Fn(&Variable) -> bool, ranks: usize) -> Vec<Option<usize>> {
    let mut order: Vec<usize> = (0..variables.len()).filter(|&index| whole(&variables[index])).collect();
    let size = |index: usize| variables[index].var.elem_count();
    order.sort_by_key(|&index| Reverse(size(index)));
    let (mut owners, mut loads) = (vec![None; variables.len()], vec![0; ranks]);
    for index in order {
        let lightest = (0..ranks).min_by_key(|&rank| loads[rank]).unwrap_or(0);
        loads[lightest] += size(index);
        owners[index] = Some(lightest);
    }
    owners
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::student::Kind;

    fn variables(shapes: &[&[usize]]) -> Vec<Variable> {
        let variable = |shape: &&[usize]| {
            let var = Var::zeros(*shape, DType::F32, &Device::Cpu).expect("a variable");
            Variable { name: format!("{shape:?}"), kind: Kind::Weight, var }
        };
        shapes.iter().map(variable).collect()
    }

    #[test]
    fn every_row_belongs_to_one_rank_and_none_has_more_than_a_row_too_much() {
        let variables = variables(&[&[7, 3], &[2], &[100, 4], &[1]]);
        for ranks in [1, 2, 3, 8] {
            let shares = Shares::new(&variables, |_| false, ranks);
            for (index, variable) in variables.iter().enumerate() {
                let all = variable.var.dims()[0];
                let ranges: Vec<_> = (0..ranks).map(|rank| shares.rows(index, rank)).collect();
                assert_eq!((ranges[0].start, ranges[ranks - 1].end), (0, all));
                assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
                assert!(ranges.iter().all(|range| range.len() <= all.div_ceil(ranks)), "{ranges:?}");
            }
        }
    }

    #[test]
    fn matrices_that_are_not_cut_are_spread_by_their_sizes() {
        let variables = variables(&[&[4, 4], &[10, 10], &[6, 4], &[8, 8], &[5]]);
        let shares = Shares::new(&variables, |v| v.var.dims().len() == 2, 2);
        let owner = |index| (0..2).filter(|&rank| !shares.rows(index, rank).is_empty()).collect::<Vec<_>>();
        // 100 | 64 + 24 + 16: the largest alone, the others together.
        assert_eq!((0..5).map(owner).collect::<Vec<_>>(), [vec![1], vec![0], vec![1], vec![1], vec![0, 1]]);
        assert_eq!(shares.rows(1, 0), 0..10);
    }
}

//! Ranks that are threads, held to sums that are exact.

use candle_core::{Device, Var};

use super::{threads::together, *};
use crate::{
    ops::gpu::host::{self, Care},
    optim::Optimizer,
    recipe::{MuonPlan, OptimPlan, Schedule},
    student::Kind,
};

const SHAPES: [(Kind, &[usize]); 7] = [
    (Kind::Table, &[11, 4]),
    (Kind::Weight, &[4, 6]),
    (Kind::Scale, &[9]),
    (Kind::GridBias, &[9]),
    (Kind::Weight, &[6, 6]),
    (Kind::Norm, &[2]),
    (Kind::Weight, &[6, 4]),
];

/// Whole numbers from −3 to 3, of which sums and sums of squares are exact.
fn whole(seed: usize, dims: &[usize]) -> Tensor {
    let n: usize = dims.iter().product();
    let value = |i: usize| ((i * 31 + seed * 17 + i * i * seed) % 7) as f32 - 3.0;
    Tensor::from_vec((0..n).map(value).collect(), dims, &Device::Cpu).expect("a tensor")
}

fn variables() -> Vec<Variable> {
    let variable = |(index, (kind, dims)): (usize, &(Kind, &[usize]))| {
        let value = (whole(index + 50, dims) + 0.5).expect("a tensor");
        Variable { name: format!("{index}"), kind: *kind, var: Var::from_tensor(&value).expect("a variable") }
    };
    SHAPES.iter().enumerate().map(variable).collect()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

fn plan(muon: bool) -> OptimPlan {
    OptimPlan {
        muon: muon.then_some(MuonPlan { lr: 0.02, momentum: 0.95 }),
        lr: 0.1,
        scale_lr: 0.01,
        norm_lr: 0.05,
        betas: [0.9, 0.99],
        eps: 1e-8,
        weight_decay: 0.1,
        clip: Some(1.0),
        schedule: Schedule::Constant,
        warmup_steps: 0,
        final_lr: 1.0,
    }
}

/// The gradient of variable `index` that `rank` finds in step `step`.
fn gradient(step: usize, rank: usize, index: usize) -> Tensor {
    whole(100 * step + 10 * rank + index, SHAPES[index].1)
}

/// Values and state by name after three steps, and the last norm.
type Ended = (Vec<Vec<f32>>, std::collections::BTreeMap<String, Vec<f32>>, f64);

fn ended(variables: &[Variable], optimizer: &Optimizer, norm: f64) -> Ended {
    let state = optimizer.state().expect("a state").iter().map(|(name, t)| (name.clone(), flat(t))).collect();
    (variables.iter().map(|v| flat(v.var.as_tensor())).collect(), state, norm)
}

/// One process that steps on what `size` ranks would add up to.
fn alone(size: usize, muon: bool) -> Ended {
    let variables = variables();
    let mut optimizer = Optimizer::new(plan(muon), &variables, &Ranks::alone()).expect("state");
    let mut norm = 0.0;
    for step in 0..3 {
        let sum = |index| {
            let add = |sum: Tensor, rank| (sum + gradient(step, rank, index)).expect("a sum");
            (1..size).fold(gradient(step, 0, index), add)
        };
        let sums: Vec<Tensor> = (0..SHAPES.len()).map(sum).collect();
        norm = optimizer.step(&sums, 0.7).expect("a step");
    }
    ended(&variables, &optimizer, norm)
}

fn as_one_of(ranks: &Ranks, muon: bool) -> Ended {
    let variables = variables();
    let mut optimizer = Optimizer::new(plan(muon), &variables, ranks).expect("state");
    let mut norm = 0.0;
    for step in 0..3 {
        let mut sent = optimizer.buckets().expect("several ranks").collect();
        // The order in which gradients come is the same on all ranks, and any.
        for index in [6, 2, 5, 4, 3, 1, 0] {
            sent.add(index, gradient(step, ranks.rank(), index)).expect("sent");
        }
        norm = optimizer.step(&sent.finish().expect("sums"), 0.7).expect("a step");
    }
    ended(&variables, &optimizer, norm)
}

#[test]
fn sharded_steps_end_with_the_values_and_the_state_of_one_process() {
    for muon in [false, true] {
        for size in [2, 3, 5] {
            let want = alone(size, muon);
            for (rank, found) in together(size, |ranks| as_one_of(&ranks, muon)).into_iter().enumerate() {
                assert_eq!(found.0, want.0, "values of rank {rank} of {size}");
                assert_eq!(found.2, want.2, "norm");
                // Others remember only what is theirs.
                assert!(
                    if rank == 0 { found.1 == want.1 } else { found.1.is_empty() },
                    "state, {size} ranks"
                );
            }
        }
    }
}

#[test]
fn on_gpus_norms_travel_as_tensors_and_all_ranks_clip_alike() {
    if !host::available() {
        return;
    }
    for size in [2, 5] {
        let want = alone(size, false);
        let found = together(size, |ranks| host::emulating(Care::Values, || as_one_of(&ranks, false)));
        assert!((found[0].2 / want.2 - 1.0).abs() < 1e-6, "norm: {} and {}", found[0].2, want.2);
        for (values, want) in found[0].0.iter().zip(&want.0) {
            assert!(values.iter().zip(want).all(|(v, w)| (v - w).abs() < 1e-5), "{values:?} and {want:?}");
        }
        assert!(found.iter().all(|of_rank| of_rank.0 == found[0].0 && of_rank.2 == found[0].2));
    }
}

#[test]
fn buckets_of_every_size_sum_the_same() {
    let sums = |elements: usize| {
        together(3, |ranks| {
            let variables = variables();
            let shares = Shares::new(&variables, |v| v.var.dims() == [6, 6], 3);
            let buckets = Buckets::with(elements, &variables, shares, &ranks);
            let mut sent = buckets.collect();
            (0..SHAPES.len())
                .rev()
                .for_each(|index| sent.add(index, gradient(1, ranks.rank(), index)).expect("sent"));
            sent.finish().expect("sums").iter().map(flat).collect::<Vec<_>>()
        })
    };
    let one = sums(usize::MAX);
    assert!([1, 20, 60].iter().all(|elements| sums(*elements) == one));
    // Rank 2 has the last rows of the table, 8 to 11, and no row of the norm but one.
    let last_rows: Vec<f32> = (0..3).fold(vec![0.0; 16], |sum, rank| {
        let rows = flat(&gradient(1, rank, 0));
        sum.iter().zip(&rows[28..]).map(|(a, b)| a + b).collect()
    });
    assert_eq!(one[2][0], last_rows);
}

#[test]
fn what_the_ranks_tell_each_other_comes_in_their_order() {
    let told = together(3, |ranks| {
        let rank = ranks.rank();
        let sum = ranks.sum(&[rank as f64, 1.0]).expect("a sum");
        let ids = ranks.concat(Ok(vec![rank as u32; rank])).expect("ids");
        let first: String = ranks.from_first(|| Ok(format!("of {rank}"))).expect("told");
        let own = Var::from_tensor(&whole(rank, &[2, 3])).expect("a variable");
        let variable = Variable { name: "v".into(), kind: Kind::Weight, var: own };
        ranks.align(std::slice::from_ref(&variable)).expect("aligned");
        let part = ranks.part_of_sum(&whole(rank, &[2, 5])).expect("a part");
        (
            sum,
            ids,
            first,
            ranks.any(rank == 1).expect("an answer"),
            flat(variable.var.as_tensor()),
            flat(&part),
        )
    });
    let sum = (0..3).fold(vec![0.0; 10], |sum: Vec<f32>, rank| {
        sum.iter().zip(flat(&whole(rank, &[2, 5]))).map(|(a, b)| a + b).collect()
    });
    assert_eq!(told.iter().flat_map(|told| told.5.clone()).collect::<Vec<_>>(), sum);
    for (sum, ids, first, any, aligned, _) in told {
        assert_eq!((sum, ids, first, any), (vec![3.0, 3.0], vec![1, 2, 2], "of 0".to_owned(), true));
        assert_eq!(aligned, flat(&whole(0, &[2, 3])));
    }
}

#[test]
fn a_rank_that_fails_is_heard_by_all_whatever_they_wait_for() {
    let ends = together(3, |ranks| {
        let error = match ranks.rank() {
            0 => ranks.sum(&[1.0]).map(|_| ()).expect_err("told"),
            1 => ranks.agree::<()>(Err(Error::Data("the disk is full".into()))).expect_err("its own"),
            _ => ranks.first_then_others(|| Ok(())).expect_err("told"),
        };
        // They part once, and nobody waits for an answer any more.
        ranks.part(&error);
        (error.to_string(), ranks.any(false).expect("nobody is asked"))
    });
    let want = ["rank 1: the disk is full", "the disk is full", "rank 1: the disk is full"];
    assert_eq!(ends.iter().map(|(error, _)| error.as_str()).collect::<Vec<_>>(), want);
    let stopped = together(2, |ranks| {
        let own = if ranks.is_first() { Ok(()) } else { Err(Error::Interrupted) };
        matches!(ranks.agree(own), Err(Error::Interrupted))
    });
    assert_eq!(stopped, [true, true]);
}

//! The optimizer as a whole, held to its equations and, on a GPU's path, to the CPU's bits.

use candle_core::{Device, Var};

use super::*;
use crate::{
    ops::{
        check::uniform,
        gpu::host::{self, Care},
    },
    recipe::{MuonPlan, Schedule},
};

fn plan() -> OptimPlan {
    OptimPlan {
        muon: None,
        lr: 0.1,
        scale_lr: 0.01,
        norm_lr: 0.05,
        betas: [0.9, 0.99],
        eps: 1e-8,
        weight_decay: 0.1,
        clip: None,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        final_lr: 1.0,
    }
}

fn variable(kind: Kind, values: &[f32]) -> Variable {
    let var = Var::from_tensor(&tensor(values)).expect("var");
    Variable { name: format!("{kind:?}"), kind, var }
}

fn tensor(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).expect("tensor")
}

fn values(v: &Variable) -> Vec<f32> {
    v.var.as_tensor().flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

#[test]
fn two_steps_agree_with_the_equations_worked_in_f64() {
    let vars = [variable(Kind::Weight, &[1.0, -2.0])];
    let mut adam = Optimizer::new(plan(), &vars, &Ranks::alone()).expect("state");
    let (mut p, mut m, mut v) = ([1.0f64, -2.0], [0f64; 2], [0f64; 2]);
    for (t, g) in [[0.5f64, -0.25], [-1.0, 0.125]].into_iter().enumerate() {
        adam.step(&[tensor(&g.map(|g| g as f32))], 1.0).expect("step");
        for i in 0..2 {
            m[i] = 0.9 * m[i] + 0.1 * g[i];
            v[i] = 0.99 * v[i] + 0.01 * g[i] * g[i];
            let t = t as i32 + 1;
            let update = (m[i] / (1.0 - 0.9f64.powi(t))) / ((v[i] / (1.0 - 0.99f64.powi(t))).sqrt() + 1e-8);
            p[i] = p[i] * (1.0 - 0.1 * 0.1) - 0.1 * update;
        }
    }
    for (ours, theirs) in values(&vars[0]).iter().zip(p) {
        assert!((f64::from(*ours) - theirs).abs() < 1e-6, "{ours} against {theirs}");
    }
}

/// Takes three steps on `device`, each by `step`, and holds values and state to the CPU's: to the bit, or relative to the largest.
fn assert_steps_are_the_cpus(
    device: &Device,
    plan: OptimPlan,
    tolerance: f32,
    step: impl Fn(&mut Optimizer, &[Tensor]) -> Result<f64>,
) {
    // More than one chunk of a norm.
    let sizes = [(Kind::Weight, [130, 150]), (Kind::Table, [3, 100]), (Kind::Norm, [1, 300])]
        .into_iter()
        .chain([(Kind::Scale, [1, 300]), (Kind::GridBias, [1, 300])]);
    let on = |t: &Tensor, device: &Device| t.to_device(device).expect("moved");
    let variables = |device: &Device| {
        let variable = |(seed, (kind, size)): (u64, (Kind, [usize; 2]))| {
            let values = uniform(seed, 1.0, &size).expect("tensor");
            let var = Var::from_tensor(&on(&values, device)).expect("var");
            Variable { name: format!("{kind:?}"), kind, var }
        };
        (0..).zip(sizes.clone()).map(variable).collect::<Vec<_>>()
    };
    let (ours, theirs) = (variables(device), variables(&Device::Cpu));
    let mut on_gpu = Optimizer::new(plan.clone(), &ours, &Ranks::alone()).expect("state");
    let mut on_cpu = Optimizer::new(plan, &theirs, &Ranks::alone()).expect("state");
    for taken in 0..3 {
        let gradient = |(seed, v): (u64, &Variable)| uniform(seed, 0.5, v.var.dims()).expect("tensor");
        let gradients: Vec<Tensor> = (10 * (taken + 1)..).zip(&theirs).map(gradient).collect();
        let moved: Vec<Tensor> = gradients.iter().map(|g| on(g, device)).collect();
        let norm = step(&mut on_gpu, &moved).expect("steps");
        let want = on_cpu.step(&gradients, 0.7).expect("steps");
        // Two sums of 20,000 squares.
        assert!((norm / want - 1.0).abs() < 1e-5, "{norm} and {want}");
    }
    let same = |name: &str, ours: &Tensor, theirs: &Tensor| {
        let flat = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values");
        let (ours, theirs) = (flat(ours), flat(theirs));
        let bound = tolerance * theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
        let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(apart <= bound, "{name}: {apart} apart, at most {bound}");
    };
    for (ours, theirs) in ours.iter().zip(&theirs) {
        same(&ours.name, ours.var.as_tensor(), theirs.var.as_tensor());
    }
    let want = on_cpu.state().expect("a state");
    for (name, tensor) in on_gpu.state().expect("a state") {
        same(&name, &tensor, &want[&name]);
    }
}

#[test]
fn the_kernels_take_the_same_steps_in_place_with_the_same_roundings() {
    if host::available() {
        let emulated = |adam: &mut Optimizer, gradients: &[Tensor]| {
            host::emulating(Care::EveryMode, || adam.step(gradients, 0.7))
        };
        assert_steps_are_the_cpus(&Device::Cpu, plan(), 0.0, emulated);
        // Clipping depends on a norm, whose sum has an order of its own.
        assert_steps_are_the_cpus(&Device::Cpu, OptimPlan { clip: Some(1.0), ..plan() }, 2e-6, emulated);
        let muon = Some(MuonPlan { lr: 0.02, momentum: 0.95 });
        assert_steps_are_the_cpus(
            &Device::Cpu,
            OptimPlan { muon, clip: Some(1.0), ..plan() },
            2e-5,
            emulated,
        );
    }
}

#[test]
fn the_gpu_takes_the_same_steps() {
    if let Some(gpu) = crate::device::tests::gpu() {
        assert_steps_are_the_cpus(&gpu, plan(), 0.0, |adam, gradients| adam.step(gradients, 0.7));
    }
}

#[test]
fn scales_move_relative_to_their_size_and_never_decay() {
    let vars = [variable(Kind::Scale, &[0.01, -4.0]), variable(Kind::GridBias, &[0.5, 0.5])];
    let mut adam = Optimizer::new(plan(), &vars, &Ranks::alone()).expect("state");
    let one = || tensor(&[1.0, 1.0]);
    adam.step(&[one(), one()], 1.0).expect("step");
    let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-5 * b.abs(), "{a} against {b}");
    near(values(&vars[0])[0], 0.01 - 0.01 * 0.01);
    near(values(&vars[0])[1], -4.0 - 0.01 * 4.0);
    // The scale was updated first; the bias moves by a hundredth of its new size.
    near(values(&vars[1])[0], 0.5 - 0.01 * 0.0099);
}

#[test]
fn clipping_bounds_the_norm_of_each_group_by_itself() {
    let gradients = [tensor(&[3.0, 4.0]), tensor(&[0.3, 0.4])];
    let kinds = [Kind::Weight, Kind::Scale];
    let measure =
        |limit| Clip::measure((&kinds, &gradients), limit, (&Ranks::alone(), &Device::Cpu)).expect("norms");
    let clip = measure(Some(1.0));
    assert_eq!(clip.tensor().to_vec1::<f32>().expect("four numbers")[0], 5.0);
    assert_eq!([false, true].map(|of_grid| clip.kept(of_grid).expect("a share")), [0.2, 1.0]);
    let never = measure(None);
    assert_eq!([false, true].map(|of_grid| never.kept(of_grid).expect("a share")), [1.0, 1.0]);
}

#[test]
fn muon_moves_the_matrices_inside_the_layers_and_adamw_the_rest() {
    let matrix = |kind| {
        let var = Var::from_tensor(&uniform(1, 1.0, &[4, 8]).expect("tensor")).expect("var");
        Variable { name: format!("{kind:?}"), kind, var }
    };
    let vars = [matrix(Kind::Weight), matrix(Kind::Table)];
    let before = values(&vars[0]);
    let muon = Some(MuonPlan { lr: 0.02, momentum: 0.95 });
    let plan = OptimPlan { muon, weight_decay: 0.0, ..plan() };
    let mut optimizer = Optimizer::new(plan, &vars, &Ranks::alone()).expect("state");
    let gradient = || uniform(2, 1.0, &[4, 8]).expect("tensor");
    optimizer.step(&[gradient(), gradient()], 1.0).expect("step");
    let moved = |v: &Variable| {
        let squares = values(v).iter().zip(&before).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        (squares / 32.0).sqrt()
    };
    // Four singular values near one over 32 entries: 0.02·√(4/32); AdamW's first step is lr in every entry.
    assert!((0.8..1.2).contains(&(moved(&vars[0]) / (0.02 * 0.125f64.sqrt()))), "{}", moved(&vars[0]));
    assert!((moved(&vars[1]) / 0.1 - 1.0).abs() < 1e-3, "{}", moved(&vars[1]));
    let names: Vec<String> = optimizer.state().expect("a state").into_keys().collect();
    assert_eq!(names, ["first.Table", "momentum.Weight", "second.Table"]);
}

//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) with f32 moments, parameter groups and a clipped gradient.
//!
//! Knows no model. The moments are public to checkpoints, so that a resumed run continues to the same bits. Scales and
//! grid biases move relative to the size of their scale: a learning rate of 1e-3 moves a scale by at most about 0.1 % a step,
//! whatever its magnitude. On Metal a step is one kernel a variable, in place (`adamw.metal`), with the CPU's roundings.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

use crate::{
    Error, Result,
    ops::gpu::{Bind, Grid, Library, Path, Work, library, path, word},
    recipe::OptimPlan,
    student::{Kind, Variable},
};

const LIBRARY: Library = library!("adamw", "ops/gpu/common.metal", "adamw.metal");

/// Optimizer state: first and second moment of each variable's gradient, in the variables' order.
#[derive(Debug)]
pub struct AdamW {
    plan: OptimPlan,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    /// Steps taken; the bias correction depends on it.
    taken: usize,
}

impl AdamW {
    /// A fresh state for `variables`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(plan: OptimPlan, variables: &[Variable]) -> Result<Self> {
        let zeros = || variables.iter().map(|v| v.var.zeros_like()).collect::<candle_core::Result<Vec<_>>>();
        Ok(Self { plan, first: zeros()?, second: zeros()?, taken: 0 })
    }

    /// Takes a step with `gradients` at share `rate` of the peak learning rates; returns the gradient's norm over weights and
    /// norms before clipping.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn step(&mut self, variables: &[Variable], gradients: &[Tensor], rate: f64) -> Result<f64> {
        let norms = norms(variables, gradients)?;
        self.taken += 1;
        let [beta1, beta2] = self.plan.betas;
        let corrections = [1.0 - beta1.powi(self.taken as i32), 1.0 - beta2.powi(self.taken as i32)];
        for (index, (variable, gradient)) in variables.iter().zip(gradients).enumerate() {
            let lr = rate * self.peak(variable.kind);
            let decays = variable.kind == Kind::Weight && self.plan.weight_decay > 0.0;
            let change = Change {
                kept: self.kept(norms[usize::from(variable.kind.of_grid())]),
                corrections,
                lr,
                decay: decays.then_some(1.0 - lr * self.plan.weight_decay),
            };
            match path(gradient.device()) {
                Path::Kernels => self.update_on_gpu(variables, index, gradient, &change)?,
                Path::Cpu => self.update(variables, index, gradient, &change)?,
            }
        }
        Ok(norms[0])
    }

    fn update(
        &mut self,
        variables: &[Variable],
        index: usize,
        gradient: &Tensor,
        change: &Change,
    ) -> Result<()> {
        let [beta1, beta2] = self.plan.betas;
        let [correction1, correction2] = change.corrections;
        let clipped = change.kept.map(|kept| gradient * kept).transpose()?;
        let gradient = clipped.as_ref().unwrap_or(gradient);
        let first = ((&self.first[index] * beta1)? + (gradient * (1.0 - beta1))?)?;
        let second = ((&self.second[index] * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let denominator = ((&second / correction2)?.sqrt()? + self.plan.eps)?;
        let mut update = ((&first / correction1)? / denominator)?;
        if let Some(unit) = unit(variables, index)? {
            update = (update * unit.as_tensor().detach().abs()?)?;
        }
        let value = variables[index].var.as_tensor().detach();
        let kept = match change.decay {
            Some(decay) => (&value * decay)?,
            None => value,
        };
        variables[index].var.set(&(kept - (update * change.lr)?)?)?;
        self.first[index] = first;
        self.second[index] = second;
        Ok(())
    }

    /// As `update`, in place and in one pass, with the same roundings.
    fn update_on_gpu(
        &mut self,
        variables: &[Variable],
        index: usize,
        gradient: &Tensor,
        change: &Change,
    ) -> Result<()> {
        let [beta1, beta2] = self.plan.betas;
        let [correction1, correction2] = change.corrections;
        let value = variables[index].var.as_tensor();
        let n = value.elem_count();
        let (relative, unit) = match unit(variables, index)? {
            None => (0, Bind::Input(3)),
            Some(_) if variables[index].kind == Kind::Scale => (1, Bind::Input(3)),
            Some(_) => (2, Bind::Input(4)),
        };
        let numbers = [
            change.kept.unwrap_or(1.0),
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            1.0 / correction1,
            1.0 / correction2,
            self.plan.eps,
            change.lr,
            change.decay.unwrap_or(1.0),
        ];
        let numbers = numbers.map(|v| (v as f32).to_bits());
        let shape: Vec<u32> = std::iter::once(word(n)?).chain(numbers).chain([relative]).collect();
        let gradient = gradient.contiguous()?;
        let mut operands = vec![value, &self.first[index], &self.second[index], &gradient];
        if relative == 2 {
            operands.push(variables[index - 1].var.as_tensor());
        }
        let binds = [Bind::InOut(0), Bind::InOut(1), Bind::InOut(2), Bind::Input(3), unit];
        let mut work = Work::default();
        work.add(LIBRARY, "adamw", Grid::Each(n), binds, &shape)?;
        let [] = work.run("adamw", &operands)?;
        Ok(())
    }

    fn peak(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Weight => self.plan.lr,
            Kind::Norm => self.plan.norm_lr,
            Kind::Scale | Kind::GridBias => self.plan.scale_lr,
        }
    }

    /// Share of a gradient of `norm` that clipping leaves, where it leaves not all of it.
    fn kept(&self, norm: f64) -> Option<f64> {
        self.plan.clip.filter(|&limit| norm > limit).map(|limit| limit / norm)
    }

    /// The state by name, for a checkpoint.
    pub fn state(&self, variables: &[Variable]) -> BTreeMap<String, Tensor> {
        let named = |prefix: &str, moments: &[Tensor]| {
            let pairs =
                variables.iter().zip(moments).map(|(v, t)| (format!("{prefix}.{}", v.name), t.clone()));
            pairs.collect::<Vec<_>>()
        };
        named("first", &self.first).into_iter().chain(named("second", &self.second)).collect()
    }

    /// Puts a state back that was taken after `taken` steps.
    ///
    /// # Errors
    /// A moment that is missing or has another shape.
    pub fn restore(
        &mut self,
        variables: &[Variable],
        mut read: impl FnMut(&str, &Tensor) -> Result<Tensor>,
        taken: usize,
    ) -> Result<()> {
        for (index, variable) in variables.iter().enumerate() {
            self.first[index] = read(&format!("first.{}", variable.name), &self.first[index])?;
            self.second[index] = read(&format!("second.{}", variable.name), &self.second[index])?;
        }
        self.taken = taken;
        Ok(())
    }
}

/// What a step does to one variable, besides the constants of the plan.
struct Change {
    /// Share of the gradient that clipping leaves; none: all of it.
    kept: Option<f64>,
    /// Of both moments, for their start at zero.
    corrections: [f64; 2],
    lr: f64,
    /// Share of the value that weight decay leaves; none: all of it.
    decay: Option<f64>,
}

/// The gradient's norm over weights and norms, and over what belongs to grids.
///
/// Scales are clipped by themselves: a group's worth of gradient adds up in one number, and would drown the rest.
fn norms(variables: &[Variable], gradients: &[Tensor]) -> Result<[f64; 2]> {
    // Read together, because each reading waits for the device.
    let sums = gradients.iter().map(|g| g.sqr()?.sum_all()).collect::<candle_core::Result<Vec<_>>>()?;
    let sums = if sums.is_empty() { Vec::new() } else { Tensor::stack(&sums, 0)?.to_vec1::<f32>()? };
    let mut squares = [0f64; 2];
    for (variable, sum) in variables.iter().zip(sums) {
        squares[usize::from(variable.kind.of_grid())] += f64::from(sum);
    }
    Ok(squares.map(f64::sqrt))
}

/// Whose magnitude a unit of the learning rate is: the scale's for what belongs to a grid, else none: 1.
fn unit(variables: &[Variable], index: usize) -> Result<Option<&Var>> {
    let scale = match variables[index].kind {
        Kind::Weight | Kind::Norm => return Ok(None),
        Kind::Scale => index,
        // A grid's bias stands right behind its scale.
        Kind::GridBias => index.saturating_sub(1),
    };
    if variables[scale].kind != Kind::Scale {
        return Err(Error::Config(format!("{}: has no scale before it", variables[index].name)));
    }
    Ok(Some(&variables[scale].var))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{
        ops::{
            check::uniform,
            gpu::host::{self, Care},
        },
        recipe::Schedule,
    };

    fn plan() -> OptimPlan {
        OptimPlan {
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
        let var = Var::from_tensor(&Tensor::new(values, &Device::Cpu).expect("tensor")).expect("var");
        Variable { name: format!("{kind:?}"), kind, var }
    }

    fn values(v: &Variable) -> Vec<f32> {
        v.var.as_tensor().to_vec1().expect("values")
    }

    #[test]
    fn two_steps_agree_with_the_equations_worked_in_f64() {
        let vars = [variable(Kind::Weight, &[1.0, -2.0])];
        let mut adam = AdamW::new(plan(), &vars).expect("state");
        let (mut p, mut m, mut v) = ([1.0f64, -2.0], [0f64; 2], [0f64; 2]);
        for (t, g) in [[0.5f64, -0.25], [-1.0, 0.125]].into_iter().enumerate() {
            let grads = [Tensor::new(&[g[0] as f32, g[1] as f32], &Device::Cpu).expect("gradient")];
            adam.step(&vars, &grads, 1.0).expect("step");
            for i in 0..2 {
                m[i] = 0.9 * m[i] + 0.1 * g[i];
                v[i] = 0.99 * v[i] + 0.01 * g[i] * g[i];
                let t = t as i32 + 1;
                let update =
                    (m[i] / (1.0 - 0.9f64.powi(t))) / ((v[i] / (1.0 - 0.99f64.powi(t))).sqrt() + 1e-8);
                p[i] = p[i] * (1.0 - 0.1 * 0.1) - 0.1 * update;
            }
        }
        for (ours, theirs) in values(&vars[0]).iter().zip(p) {
            assert!((f64::from(*ours) - theirs).abs() < 1e-6, "{ours} against {theirs}");
        }
    }

    /// Takes three steps on `device`, each by `step`, and holds values and moments to the CPU's, to the bit.
    fn assert_steps_are_the_cpus(
        device: &Device,
        clip: Option<f64>,
        step: impl Fn(&mut AdamW, &[Variable], &[Tensor]) -> Result<f64>,
    ) {
        let n = 300;
        let random = |seed: u64, range: f32| uniform(seed, range, &[n]).expect("tensor");
        let on = |t: &Tensor, device: &Device| t.to_device(device).expect("moved");
        let variables = |device: &Device| {
            let kinds = [Kind::Weight, Kind::Norm, Kind::Scale, Kind::GridBias];
            let variable = |(seed, kind): (u64, Kind)| {
                let var = Var::from_tensor(&on(&random(seed, 1.0), device)).expect("var");
                Variable { name: format!("{kind:?}"), kind, var }
            };
            (0..).zip(kinds).map(variable).collect::<Vec<_>>()
        };
        let plan = OptimPlan { clip, ..plan() };
        let (ours, theirs) = (variables(device), variables(&Device::Cpu));
        let mut on_gpu = AdamW::new(plan.clone(), &ours).expect("state");
        let mut on_cpu = AdamW::new(plan, &theirs).expect("state");
        for taken in 0..3 {
            let gradients: Vec<Tensor> = (0..4).map(|i| random(10 + 4 * taken + i, 0.5)).collect();
            let moved: Vec<Tensor> = gradients.iter().map(|g| on(g, device)).collect();
            step(&mut on_gpu, &ours, &moved).expect("steps");
            on_cpu.step(&theirs, &gradients, 0.7).expect("steps");
        }
        for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(values(ours), values(theirs), "{}", ours.name);
            let moment = |t: &Tensor| t.to_vec1::<f32>().expect("values");
            assert_eq!(moment(&on_gpu.first[index]), moment(&on_cpu.first[index]), "{}", ours.name);
            assert_eq!(moment(&on_gpu.second[index]), moment(&on_cpu.second[index]), "{}", ours.name);
        }
    }

    #[test]
    fn the_kernel_takes_the_same_steps_in_place_with_the_same_roundings() {
        if host::available() {
            assert_steps_are_the_cpus(&Device::Cpu, Some(1.0), |adam, variables, gradients| {
                host::emulating(Care::EveryMode, || adam.step(variables, gradients, 0.7))
            });
        }
    }

    #[cfg(target_os = "macos")]
    #[test]
    fn the_metal_device_takes_the_same_steps() {
        match "metal".parse::<crate::device::Choice>().and_then(|choice| choice.open()) {
            // Clipping depends on a norm, whose sum has an order of its own on each device.
            Ok(metal) => assert_steps_are_the_cpus(&metal.device, None, |adam, variables, gradients| {
                adam.step(variables, gradients, 0.7)
            }),
            Err(why) => eprintln!("SKIPPED: {why}"),
        }
    }

    #[test]
    fn scales_move_relative_to_their_size_and_never_decay() {
        let vars = [variable(Kind::Scale, &[0.01, -4.0]), variable(Kind::GridBias, &[0.5, 0.5])];
        let mut adam = AdamW::new(plan(), &vars).expect("state");
        let one = || Tensor::new(&[1f32, 1.0], &Device::Cpu).expect("gradient");
        adam.step(&vars, &[one(), one()], 1.0).expect("step");
        let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-5 * b.abs(), "{a} against {b}");
        near(values(&vars[0])[0], 0.01 - 0.01 * 0.01);
        near(values(&vars[0])[1], -4.0 - 0.01 * 4.0);
        // The scale was updated first; the bias moves by a hundredth of its new size.
        near(values(&vars[1])[0], 0.5 - 0.01 * 0.0099);
    }

    #[test]
    fn clipping_bounds_the_norm_of_each_group_by_itself() {
        let vars = [variable(Kind::Weight, &[1.0, 1.0]), variable(Kind::Scale, &[1.0, 1.0])];
        let adam = AdamW::new(OptimPlan { clip: Some(1.0), ..plan() }, &vars).expect("state");
        let gradient = |v: [f32; 2]| Tensor::new(&v, &Device::Cpu).expect("gradient");
        let norms = norms(&vars, &[gradient([3.0, 4.0]), gradient([0.3, 0.4])]).expect("norms");
        assert_eq!(norms[0], 5.0);
        assert_eq!(norms.map(|norm| adam.kept(norm)), [Some(0.2), None]);
    }
}

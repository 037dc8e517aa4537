//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) with f32 moments, parameter groups and a clipped gradient.
//!
//! Knows no model. The moments are public to checkpoints, so that a resumed run continues to the same bits. Scales and
//! grid biases move relative to the size of their scale: a learning rate of 1e-3 moves a scale by at most about 0.1 % a step,
//! whatever its magnitude.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{
    Error, Result,
    recipe::OptimPlan,
    student::{Kind, Variable},
};

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

    /// Takes a step with `gradients` (clipped in place) at share `rate` of the peak learning rates; returns the gradient's
    /// norm over weights and norms before clipping.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn step(&mut self, variables: &[Variable], gradients: &mut [Tensor], rate: f64) -> Result<f64> {
        let norm = self.clip(variables, gradients)?;
        self.taken += 1;
        let [beta1, beta2] = self.plan.betas;
        let correction1 = 1.0 - beta1.powi(self.taken as i32);
        let correction2 = 1.0 - beta2.powi(self.taken as i32);
        for (index, (variable, gradient)) in variables.iter().zip(gradients.iter()).enumerate() {
            let first = ((&self.first[index] * beta1)? + (gradient * (1.0 - beta1))?)?;
            let second = ((&self.second[index] * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let denominator = ((&second / correction2)?.sqrt()? + self.plan.eps)?;
            let mut update = ((&first / correction1)? / denominator)?;
            if let Some(unit) = unit(variables, index)? {
                update = (update * unit)?;
            }
            let value = variable.var.as_tensor().detach();
            let lr = rate * self.peak(variable.kind);
            let kept = match variable.kind {
                Kind::Weight if self.plan.weight_decay > 0.0 => {
                    (&value * (1.0 - lr * self.plan.weight_decay))?
                }
                _ => value,
            };
            variable.var.set(&(kept - (update * lr)?)?)?;
            self.first[index] = first;
            self.second[index] = second;
        }
        Ok(norm)
    }

    fn peak(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Weight => self.plan.lr,
            Kind::Norm => self.plan.norm_lr,
            Kind::Scale | Kind::GridBias => self.plan.scale_lr,
        }
    }

    /// Scales are clipped by themselves: a group's worth of gradient adds up in one number, and would drown the rest.
    fn clip(&self, variables: &[Variable], gradients: &mut [Tensor]) -> Result<f64> {
        let grid = |kind| matches!(kind, Kind::Scale | Kind::GridBias);
        let mut squares = [0f64; 2];
        for (variable, gradient) in variables.iter().zip(gradients.iter()) {
            squares[usize::from(grid(variable.kind))] +=
                f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let norms = squares.map(f64::sqrt);
        if let Some(limit) = self.plan.clip {
            for (variable, gradient) in variables.iter().zip(gradients) {
                let norm = norms[usize::from(grid(variable.kind))];
                if norm > limit {
                    *gradient = (&*gradient * (limit / norm))?;
                }
            }
        }
        Ok(norms[0])
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

/// Size of one learning-rate unit: the magnitude of the scale for what belongs to a grid, else 1.
fn unit(variables: &[Variable], index: usize) -> Result<Option<Tensor>> {
    let scale = match variables[index].kind {
        Kind::Weight | Kind::Norm => return Ok(None),
        Kind::Scale => index,
        // A grid's bias stands right behind its scale.
        Kind::GridBias => index - 1,
    };
    if variables[scale].kind != Kind::Scale {
        return Err(Error::Config(format!("{}: has no scale before it", variables[index].name)));
    }
    Ok(Some(variables[scale].var.as_tensor().detach().abs()?))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::recipe::Schedule;

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
            let mut grads = [Tensor::new(&[g[0] as f32, g[1] as f32], &Device::Cpu).expect("gradient")];
            adam.step(&vars, &mut grads, 1.0).expect("step");
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

    #[test]
    fn scales_move_relative_to_their_size_and_never_decay() {
        let vars = [variable(Kind::Scale, &[0.01, -4.0]), variable(Kind::GridBias, &[0.5, 0.5])];
        let mut adam = AdamW::new(plan(), &vars).expect("state");
        let one = || Tensor::new(&[1f32, 1.0], &Device::Cpu).expect("gradient");
        adam.step(&vars, &mut [one(), one()], 1.0).expect("step");
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
        let mut grads = [gradient([3.0, 4.0]), gradient([0.3, 0.4])];
        assert_eq!(adam.clip(&vars, &mut grads).expect("clips"), 5.0);
        assert_eq!(grads[0].to_vec1::<f32>().expect("values"), [0.6, 0.8]);
        assert_eq!(grads[1].to_vec1::<f32>().expect("values"), [0.3, 0.4]);
    }
}

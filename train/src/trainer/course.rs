//! What is trained when: everything at once, or one layer after the other and then the scales of all.
//!
//! A pure function of the plan and the step. Knows no tensors.

use crate::{Error, Result, recipe::Plan, schedule};

/// What a step moves, and by which loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Every variable, by the recipe's loss.
    Whole,
    /// The variables of one layer, by the distance from the float model behind it.
    Layer(usize),
    /// Scales and biases of grids, by the recipe's loss.
    Scales,
}

/// Steps in a row with one target, under one schedule of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What they move.
    pub target: Target,
    /// The first of them, counted from 0.
    pub first: usize,
    /// How many.
    pub steps: usize,
}

impl Part {
    /// The part that `step` belongs to, in a run on a student of `layers` layers.
    pub fn at(plan: &Plan, layers: usize, step: usize) -> Self {
        let steps = plan.recipe.train.steps;
        let Some(blocks) = plan.blocks else { return Self { target: Target::Whole, first: 0, steps } };
        let of_layers = steps - blocks.scale_steps;
        if step >= of_layers {
            return Self { target: Target::Scales, first: of_layers, steps: blocks.scale_steps };
        }
        let begin = |layer: usize| layer * of_layers / layers;
        // The last layer that has begun.
        let layer = (0..layers).rev().find(|layer| begin(*layer) <= step).unwrap_or(0);
        Self { target: Target::Layer(layer), first: begin(layer), steps: begin(layer + 1) - begin(layer) }
    }

    /// Share of the peak learning rates at `step` of the run.
    pub fn rate(&self, plan: &Plan, step: usize) -> f64 {
        schedule::learning_rate(&plan.optim, step - self.first, self.steps)
    }
}

/// Refuses a run with more layers than steps for them.
///
/// # Errors
/// Fewer steps than layers.
pub fn check(plan: &Plan, layers: usize) -> Result<()> {
    let Some(blocks) = plan.blocks else { return Ok(()) };
    let steps = plan.recipe.train.steps - blocks.scale_steps;
    if steps < layers {
        return Err(Error::Config(format!(
            "train.mode = \"blocks\": {steps} steps (train.steps less train.scale_steps) for {layers} layers; want one each at least"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe;

    fn plan(train: &str) -> Plan {
        let text = format!(
            "[student]\nfrom = \"x\"\n[quant]\nweights = \"int4-g32\"\n[data]\ntrain = [\"x\"]\nctx = 8\n[loss]\n\
             cross_entropy = 1.0\n[optim]\nwarmup_steps = 0\n[train]\nbatch = 1\n{train}"
        );
        let named = recipe::parse(&text, Path::new("test.toml"), &[]).expect("a recipe");
        Plan::new(&named[0].recipe).expect("a plan")
    }

    #[test]
    fn every_step_belongs_to_one_part_and_every_part_has_the_whole_schedule() {
        let plan = plan("steps = 10\nmode = \"blocks\"\nscale_steps = 3");
        let targets: Vec<Target> = (0..10).map(|step| Part::at(&plan, 2, step).target).collect();
        let [first, second] = [Target::Layer(0), Target::Layer(1)];
        let scales = Target::Scales;
        assert_eq!(targets, [first, first, first, second, second, second, second, scales, scales, scales]);
        for step in 0..10 {
            let part = Part::at(&plan, 2, step);
            assert!((part.first..part.first + part.steps).contains(&step));
            let rate = part.rate(&plan, step);
            assert_eq!(rate == 1.0, step == part.first, "step {step}: {rate}");
        }
    }

    #[test]
    fn without_blocks_there_is_one_part() {
        let plan = plan("steps = 10");
        let whole = Part { target: Target::Whole, first: 0, steps: 10 };
        assert!((0..10).all(|step| Part::at(&plan, 3, step) == whole));
    }
}

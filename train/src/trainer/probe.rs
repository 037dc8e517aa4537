//! How long a step will take, from steps of a smaller student: one and two layers of the same widths, on one window and on two.
//!
//! Reads no weights and no text. A step's time is taken to be linear in the layers, in the windows and in their product, so that four short
//! measurements give that of the whole. Knows no recipe file.

use candle_core::Device;

use super::{
    learner::Learner,
    measure::{RandomTokens, take},
    teacher::Teacher,
};
use crate::{
    Result,
    forecast::Shapes,
    ranks::Ranks,
    recipe::{Plan, TeacherPlan},
    student::Floats,
};

/// Steps before the one that counts.
const WARM_UP: usize = 1;
/// Steps of which the fastest counts.
const STEPS: usize = 2;

/// Seconds that an optimizer step of `plan` will take on `device`, with models of these shapes. A teacher is asked in each step, also one
/// that has a cache; layers are trained all at once.
///
/// # Errors
/// Rules for tensors that a student of two layers lacks; a device out of memory.
pub fn probe(plan: &Plan, shapes: &Shapes, device: &Device) -> Result<f64> {
    let settings = &plan.recipe.train;
    let layers = shapes.student.layers;
    let wide = settings.batch > 1;
    let [one, two] = [1, 2.min(layers)];
    let measure = |layers, windows| sample(plan, shapes, (layers, windows), device);
    let corners = [measure(one, 1)?, measure(two, 1)?];
    let wider = if wide { [measure(one, 2)?, measure(two, 2)?] } else { corners };
    let at_windows = |corner: usize| {
        let ([base, _], [next, _]) = (corners[corner], wider[corner]);
        base + (next - base).max(0.0) * (settings.batch - 1) as f64
    };
    let all = |of_one: f64, of_two: f64| of_one + (of_two - of_one).max(0.0) * (layers - 1) as f64;
    let gradients = all(at_windows(0), at_windows(1));
    let update = all(corners[0][1], corners[1][1]);
    Ok(settings.accumulate as f64 * gradients + update)
}

/// Seconds of gradients and of the update, with so many layers on so many windows.
fn sample(
    plan: &Plan,
    shapes: &Shapes,
    (layers, windows): (usize, usize),
    device: &Device,
) -> Result<[f64; 2]> {
    let mut plan = plan.clone();
    plan.recipe.train.batch = windows;
    plan.recipe.train.accumulate = 1;
    (plan.loss.features, plan.on_policy, plan.blocks) = (None, None, None);
    let (ctx, seed) = (plan.recipe.data.ctx, plan.recipe.seed);
    let of_shape = |config: &qat_infer::model::Config| {
        let mut config = config.clone();
        config.layers = config.layers.min(layers);
        Floats::random(config, seed)
    };
    let floats = of_shape(&shapes.student);
    let teacher = match &plan.teacher {
        TeacherPlan::Model(_) => {
            Teacher::frozen(&of_shape(shapes.teacher.as_ref().unwrap_or(&shapes.source)), ctx, device)?
        }
        _ => Teacher::new(&plan, &floats, device)?,
    };
    let mut learner =
        Learner::new(&plan, &floats, plan.quantization.clone(), teacher, (device, &Ranks::alone()))?;
    drop(floats);
    // In the last step rounding is there in full.
    let last = plan.recipe.train.steps - 1;
    let mut tokens = RandomTokens::new(seed, shapes.student.vocab_size);
    let mut fastest = [f64::INFINITY; 2];
    for step in 0..WARM_UP + STEPS {
        let took = take(&mut learner, &plan, last, vec![tokens.batch(windows, ctx)], device)?;
        if step >= WARM_UP {
            let took = [took.gradients, took.update].map(|time| time.as_secs_f64());
            fastest = std::array::from_fn(|part| fastest[part].min(took[part]));
        }
    }
    Ok(fastest)
}

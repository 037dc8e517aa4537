//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) with f32 moments, in place: value and both moments are read and written once.
//!
//! Knows no schedule. One pass a variable on the CPU, one kernel a variable elsewhere (`adamw.metal`), with the same roundings.

use candle_core::Tensor;

use super::clip::Clip;
use crate::{
    Error, Result,
    ops::{
        Floats, for_each_chunk,
        gpu::{Bind, Grid, Library, Path, Work, library, path, word},
        in_place,
    },
    recipe::OptimPlan,
    student::Kind,
};

const NAME: &str = "adamw";
const LIBRARY: Library = library!("adamw", "../ops/gpu/common.metal", "adamw.metal");

/// Running means of a variable's gradient and of its square.
#[derive(Debug)]
pub(super) struct Moments {
    pub first: Tensor,
    pub second: Tensor,
}

/// What one step does to one variable.
pub(super) struct Update<'a> {
    pub value: &'a Tensor,
    pub moments: &'a Moments,
    /// Contiguous.
    pub gradient: &'a Tensor,
    /// Whether it is clipped with the scales and biases of grids.
    pub of_grid: bool,
    pub numbers: Numbers,
    pub unit: Unit<'a>,
}

/// What the learning rate is relative to.
#[derive(Clone, Copy)]
pub(super) enum Unit<'a> {
    One,
    /// The magnitude of the value itself.
    Own,
    /// That of another variable, as it is when the update comes to it.
    Of(&'a Tensor),
}

/// The constants of an update, in the order of `struct Step` in `adamw.metal`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    correction1: f32,
    correction2: f32,
    eps: f32,
    rate: f32,
    decay: f32,
}

impl Numbers {
    /// Of step `taken`, counted from 1, at share `rate` of the peak.
    pub fn new(plan: &OptimPlan, taken: usize, kind: Kind, rate: f64) -> Self {
        let [beta1, beta2] = plan.betas;
        let peak = match kind {
            Kind::Weight | Kind::Table => plan.lr,
            Kind::Norm => plan.norm_lr,
            Kind::Scale | Kind::GridBias => plan.scale_lr,
        };
        let decays = matches!(kind, Kind::Weight | Kind::Table);
        let decay = if decays { 1.0 - rate * peak * plan.weight_decay } else { 1.0 };
        // The moments began at zero.
        let correction = |beta: f64| 1.0 / (1.0 - beta.powi(taken as i32));
        Self {
            beta1: beta1 as f32,
            rest1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            rest2: (1.0 - beta2) as f32,
            correction1: correction(beta1) as f32,
            correction2: correction(beta2) as f32,
            eps: plan.eps as f32,
            rate: (rate * peak) as f32,
            decay: decay as f32,
        }
    }

    fn words(&self) -> [u32; 9] {
        let Self { beta1, rest1, beta2, rest2, correction1, correction2, eps, rate, decay } = *self;
        [beta1, rest1, beta2, rest2, correction1, correction2, eps, rate, decay].map(f32::to_bits)
    }
}

/// Carries out all updates, in their order.
///
/// # Errors
/// The device is out of memory.
pub(super) fn step(updates: &[Update], clip: &Clip) -> Result<()> {
    let Some(first) = updates.first() else { return Ok(()) };
    match path(first.value.device()) {
        Path::Kernels => with_kernels(updates, clip),
        Path::Cpu => updates.iter().try_for_each(|update| on_cpu(update, clip)),
    }
}

fn on_cpu(update: &Update, clip: &Clip) -> Result<()> {
    let kept = clip.kept(update.of_grid)?;
    let Moments { first, second } = update.moments;
    let gradient = Floats::of(NAME, update.gradient)?;
    let unit = match update.unit {
        Unit::Of(other) => Some(Floats::of(NAME, other)?),
        Unit::One | Unit::Own => None,
    };
    let units: &[f32] = unit.as_deref().unwrap_or_default();
    let numbers = update.numbers;
    in_place(NAME, [update.value, first, second], |tensors| {
        for_each_chunk(
            1,
            tensors,
            [&gradient, units],
            #[inline(always)]
            |_, tensors, [gradient, units]| match update.unit {
                Unit::One => pass(tensors, gradient, kept, numbers, |_, _| 1.0),
                Unit::Own => pass(tensors, gradient, kept, numbers, |_, old| old.abs()),
                Unit::Of(_) => pass(tensors, gradient, kept, numbers, |i, _| units[i].abs()),
            },
        );
    })?;
    Ok(())
}

#[inline(always)]
fn pass(
    [value, first, second]: [&mut [f32]; 3],
    gradient: &[f32],
    kept: f32,
    n: Numbers,
    unit: impl Fn(usize, f32) -> f32,
) {
    let elements = value.iter_mut().zip(first).zip(second).zip(gradient);
    for (i, (((value, first), second), gradient)) in elements.enumerate() {
        let g = gradient * kept;
        *first = *first * n.beta1 + g * n.rest1;
        *second = *second * n.beta2 + g * g * n.rest2;
        let update = (*first * n.correction1) / ((*second * n.correction2).sqrt() + n.eps);
        *value = *value * n.decay - update * unit(i, *value) * n.rate;
    }
}

fn with_kernels(updates: &[Update], clip: &Clip) -> Result<()> {
    let mut operands = vec![clip.tensor()];
    let mut work = Work::default();
    for update in updates {
        let at = operands.len();
        let (gradient, n) = (Bind::Input(at + 3), update.value.elem_count());
        operands.extend([update.value, &update.moments.first, &update.moments.second, update.gradient]);
        let (relative, unit) = match update.unit {
            Unit::One => (0, gradient),
            Unit::Own => (1, gradient),
            Unit::Of(other) => {
                // The operand that was written a moment ago, so that this waits for it.
                let place = operands[..at].iter().rposition(|operand| operand.id() == other.id());
                (
                    2,
                    Bind::Input(
                        place.ok_or_else(|| Error::Config("a unit that is not updated first".into()))?,
                    ),
                )
            }
        };
        let whole = [word(n)?, u32::from(update.of_grid), relative];
        let shape: Vec<u32> = whole.into_iter().chain(update.numbers.words()).collect();
        let moved = [Bind::InOut(at), Bind::InOut(at + 1), Bind::InOut(at + 2)];
        let binds = [moved[0], moved[1], moved[2], gradient, unit, Bind::Input(0)];
        work.add(LIBRARY, "adamw", Grid::Each(n), binds, &shape)?;
    }
    let [] = work.run(NAME, &operands)?;
    Ok(())
}

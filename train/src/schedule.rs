//! The learning rate and the share of rounding as pure functions of the step.

use crate::recipe::{OptimPlan, Schedule, Warmup};

/// Share of the peak learning rate at `step` (counted from 0) of `steps`.
pub fn learning_rate(plan: &OptimPlan, step: usize, steps: usize) -> f64 {
    if step < plan.warmup_steps {
        return (step + 1) as f64 / plan.warmup_steps as f64;
    }
    let after = |start: usize| (step - start) as f64 / (steps - start).max(1) as f64;
    match plan.schedule {
        Schedule::Constant => 1.0,
        Schedule::Cosine => {
            let cosine = 0.5 * (1.0 + (std::f64::consts::PI * after(plan.warmup_steps.min(steps))).cos());
            plan.final_lr + (1.0 - plan.final_lr) * cosine
        }
        Schedule::Wsd { .. } => {
            let start = decay_start(plan, steps);
            if step < start { 1.0 } else { 1.0 - (1.0 - plan.final_lr) * after(start) }
        }
    }
}

/// The first of `steps` steps in which the learning rate decays.
pub fn decay_start(plan: &OptimPlan, steps: usize) -> usize {
    match plan.schedule {
        Schedule::Constant => steps,
        Schedule::Cosine => plan.warmup_steps,
        Schedule::Wsd { decay_share } => {
            ((steps as f64 * (1.0 - decay_share)) as usize).max(plan.warmup_steps)
        }
    }
}

/// Share λ of the rounding at `step`: none before its beginning, then it grows to 1.
pub fn rounding(warmup: &Warmup, step: usize) -> Option<f32> {
    let done = step.checked_sub(warmup.begin)? + 1;
    if done >= warmup.steps {
        return Some(1.0);
    }
    let share = done as f32 / warmup.steps as f32;
    Some(if warmup.cosine { (1.0 - (std::f32::consts::PI * share).cos()) / 2.0 } else { share })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(schedule: Schedule, warmup_steps: usize) -> OptimPlan {
        OptimPlan {
            muon: None,
            lr: 1.0,
            scale_lr: 1.0,
            norm_lr: 1.0,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.0,
            clip: None,
            schedule,
            warmup_steps,
            final_lr: 0.1,
        }
    }

    #[test]
    fn it_warms_up_stays_below_the_peak_and_ends_near_the_final_rate() {
        for schedule in [Schedule::Cosine, Schedule::Wsd { decay_share: 0.5 }] {
            let p = plan(schedule, 10);
            let rates: Vec<f64> = (0..100).map(|s| learning_rate(&p, s, 100)).collect();
            assert_eq!(rates[0], 0.1);
            assert_eq!(rates[9], 1.0);
            assert!(rates[10..].windows(2).all(|w| w[1] <= w[0]), "{schedule:?} rises after warm-up");
            assert!((rates[99] - 0.1).abs() < 0.03, "{schedule:?} ends at {}", rates[99]);
        }
        assert_eq!(learning_rate(&plan(Schedule::Wsd { decay_share: 0.5 }, 10), 49, 100), 1.0);
        assert_eq!(learning_rate(&plan(Schedule::Constant, 0), 99, 100), 1.0);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_never_divides_by_zero() {
        let p = plan(Schedule::Cosine, 50);
        assert!((0..10).all(|s| learning_rate(&p, s, 10).is_finite()));
    }

    #[test]
    fn rounding_is_full_from_the_first_step_without_a_warm_up() {
        let warmup = |begin, steps, cosine| Warmup { begin, steps, cosine };
        assert_eq!(rounding(&warmup(0, 0, false), 0), Some(1.0));
        assert_eq!(rounding(&warmup(0, 4, false), 0), Some(0.25));
        assert_eq!(rounding(&warmup(0, 4, false), 3), Some(1.0));
        assert_eq!(rounding(&warmup(7, 0, true), 6), None);
        assert_eq!(rounding(&warmup(7, 0, true), 7), Some(1.0));
        // Half a cosine: its middle is a half, and it starts slower than a line.
        assert_eq!(rounding(&warmup(2, 4, true), 3), Some(0.5));
        assert!(rounding(&warmup(2, 4, true), 2) < rounding(&warmup(2, 4, false), 2));
        assert_eq!(rounding(&warmup(2, 4, true), 5), Some(1.0));
    }

    #[test]
    fn the_decay_of_wsd_starts_where_the_rate_first_falls() {
        let p = plan(Schedule::Wsd { decay_share: 0.3 }, 10);
        let start = decay_start(&p, 100);
        assert_eq!(start, 70);
        // The first step of the decay still has the peak.
        assert_eq!(learning_rate(&p, start, 100), 1.0);
        assert!(learning_rate(&p, start + 1, 100) < 1.0);
    }
}

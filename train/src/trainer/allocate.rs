//! Which tensor gets how many bits: the least loss that a budget buys, given what each format costs each tensor.
//!
//! Pure arithmetic: knows no model and no format. Losses are taken to add up over tensors.

/// One way of holding a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offer {
    /// Bits of the whole tensor, scales included.
    pub bits: u64,
    /// What it loses.
    pub loss: f64,
}

/// Chooses one of the offers for each tensor, so that their bits stay within `budget` and their losses add up to little; none where
/// even the smallest are too many.
///
/// All begin with their fewest bits. Then, again and again, the step to more bits that saves most loss for each bit is taken, among those
/// that the budget still holds. Where the steps of a tensor save less and less, as they do for weights, this loses no more than the best
/// choice for a budget that is smaller by one step of the largest tensor.
pub fn allocate(tensors: &[Vec<Offer>], budget: u64) -> Option<Vec<usize>> {
    let cheapest = |offers: &Vec<Offer>| {
        let order = |a: &Offer, b: &Offer| a.bits.cmp(&b.bits).then(a.loss.total_cmp(&b.loss));
        (0..offers.len()).min_by(|&a, &b| order(&offers[a], &offers[b]))
    };
    let mut chosen: Vec<usize> = tensors.iter().map(cheapest).collect::<Option<_>>()?;
    let used: u64 = tensors.iter().zip(&chosen).map(|(offers, &at)| offers[at].bits).sum();
    let mut left = budget.checked_sub(used)?;
    while let Some((tensor, offer)) = best_step(tensors, &chosen, left) {
        left -= tensors[tensor][offer].bits - tensors[tensor][chosen[tensor]].bits;
        chosen[tensor] = offer;
    }
    Some(chosen)
}

/// The step within `left` bits that saves most for each bit: tensor and offer. The first one where several do.
fn best_step(tensors: &[Vec<Offer>], chosen: &[usize], left: u64) -> Option<(usize, usize)> {
    let mut best: Option<(f64, usize, usize)> = None;
    for (tensor, (offers, &at)) in tensors.iter().zip(chosen).enumerate() {
        for (index, offer) in offers.iter().enumerate() {
            let saved = offers[at].loss - offer.loss;
            if offer.bits <= offers[at].bits || offer.bits - offers[at].bits > left || saved <= 0.0 {
                continue;
            }
            let worth = saved / (offer.bits - offers[at].bits) as f64;
            if best.is_none_or(|(most, ..)| worth > most) {
                best = Some((worth, tensor, index));
            }
        }
    }
    best.map(|(_, tensor, offer)| (tensor, offer))
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn total(tensors: &[Vec<Offer>], chosen: &[usize]) -> (u64, f64) {
        let offers = tensors.iter().zip(chosen).map(|(offers, &at)| offers[at]);
        offers.fold((0, 0.0), |sum, offer| (sum.0 + offer.bits, sum.1 + offer.loss))
    }

    /// The best choice of all, by trying each.
    fn exhaustive(tensors: &[Vec<Offer>], budget: u64) -> f64 {
        let Some((first, rest)) = tensors.split_first() else { return 0.0 };
        let within = first.iter().filter(|offer| offer.bits <= budget);
        within.map(|o| o.loss + exhaustive(rest, budget - o.bits)).fold(f64::INFINITY, f64::min)
    }

    /// Tensors whose loss falls by a random factor with each further bit.
    fn tensors(seed: u64) -> Vec<Vec<Offer>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let one = |_| {
            let (size, sensitivity) = (rng.random_range(1..5u64) * 100, rng.random_range(0.1..10.0f64));
            let offer =
                |bits: u64| Offer { bits: bits * size, loss: sensitivity * 0.25f64.powi(bits as i32) };
            [2, 3, 4].map(offer).to_vec()
        };
        (0..7).map(one).collect()
    }

    #[test]
    fn it_loses_no_more_than_the_best_choice_with_one_step_less_to_spend() {
        for seed in 0..40 {
            let tensors = tensors(seed);
            let least: u64 = tensors.iter().map(|offers| offers[0].bits).sum();
            for share in [1.0, 1.2, 1.5, 1.9, 3.0] {
                let budget = (least as f64 * share) as u64;
                let (used, loss) = total(&tensors, &allocate(&tensors, budget).expect("room for the least"));
                assert!(used <= budget, "seed {seed}: {used} bits of {budget}");
                let best = exhaustive(&tensors, budget);
                let bound = exhaustive(&tensors, budget.saturating_sub(400));
                // Sums in two orders.
                assert!(
                    best <= loss * (1.0 + 1e-12) && loss <= bound * (1.0 + 1e-12),
                    "{seed}, {share}: {loss}, {best}"
                );
            }
        }
    }

    #[test]
    fn more_budget_is_never_worse_and_too_little_is_none() {
        let tensors = tensors(3);
        let least: u64 = tensors.iter().map(|offers| offers[0].bits).sum();
        assert_eq!(allocate(&tensors, least - 1), None);
        assert_eq!(allocate(&tensors, least), Some(vec![0; 7]));
        assert_eq!(allocate(&tensors, u64::MAX), Some(vec![2; 7]));
    }

    #[test]
    fn a_format_that_loses_more_with_more_bits_is_passed_over() {
        let offers =
            vec![Offer { bits: 10, loss: 1.0 }, Offer { bits: 20, loss: 1.5 }, Offer { bits: 30, loss: 0.1 }];
        assert_eq!(allocate(std::slice::from_ref(&offers), 25), Some(vec![0]));
        assert_eq!(allocate(&[offers], 30), Some(vec![2]));
    }
}

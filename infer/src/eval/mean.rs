//! A mean and how sure one can be of it.
//!
//! Knows no model. Values are added in the order given, in f64, after a first pass for the mean (so that no digits are
//! lost to a difference of large sums).

/// Mean of a sample with the standard error of that mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation over the root of the number of values; 0 for a single value.
    pub se: f64,
}

impl Mean {
    /// Of a non-empty sample, every value counting as independent.
    pub fn of(values: impl ExactSizeIterator<Item = f64> + Clone) -> Self {
        let n = values.len() as f64;
        let mean = values.clone().sum::<f64>() / n;
        let squares: f64 = values.map(|value| (value - mean).powi(2)).sum();
        Self { mean, se: (squares / (n - 1.0).max(1.0) / n).sqrt() }
    }

    /// Standard error of the mean of `values` when only their consecutive groups (given by length) are independent of
    /// each other: tokens of one window share their text, so this is the more careful error. None below two groups.
    ///
    /// The usual sandwich estimator: `sqrt(G/(G−1) · Σ_g (Σ_{i∈g} (xᵢ − mean))²) / n`.
    pub fn clustered_se(values: &[f64], group_lens: impl ExactSizeIterator<Item = usize>) -> Option<f64> {
        let groups = group_lens.len() as f64;
        if groups < 2.0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let mut rest = values;
        let mut squares = 0.0;
        for len in group_lens {
            let (group, after) = rest.split_at(len);
            squares += group.iter().map(|value| value - mean).sum::<f64>().powi(2);
            rest = after;
        }
        Some((groups / (groups - 1.0) * squares).sqrt() / values.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_small_sample() {
        // 1, 2, 3, 4: variance 5/3, so the error is sqrt(5/12).
        let mean = Mean::of([1.0, 2.0, 3.0, 4.0].into_iter());
        assert_eq!(mean.mean, 2.5);
        assert!((mean.se - (5.0f64 / 12.0).sqrt()).abs() < 1e-15);
        assert_eq!(Mean::of([7.0].into_iter()), Mean { mean: 7.0, se: 0.0 });
    }

    #[test]
    fn groups_of_one_give_the_plain_error_and_repeated_values_don_t_make_it_smaller() {
        let plain = [1.0, 2.0, 3.0, 4.0];
        let one_each = Mean::clustered_se(&plain, [1; 4].into_iter());
        let twice = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0];
        let two_each = Mean::clustered_se(&twice, [2; 4].into_iter());
        let want = Mean::of(plain.into_iter()).se;
        for found in [one_each, two_each] {
            assert!(found.is_some_and(|se| (se - want).abs() < 1e-15), "{found:?}, want {want}");
        }
        assert_eq!(Mean::clustered_se(&plain, [4].into_iter()), None);
    }
}

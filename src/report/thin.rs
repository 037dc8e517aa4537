//! Curves with fewer points: what lies close together is one point, but for its extremes.
//!
//! Knows no picture. Invariant: first, last, greatest and least point of a curve are kept, and points stay in their order.

/// Points of a curve, `[x, y]`.
pub type Points = Vec<[f64; 2]>;

/// At most about `most` of `points`: of each run of neighbours the lowest and the highest. Points that are not finite are left out.
pub fn thin(points: &[[f64; 2]], most: usize) -> Points {
    let points: Vec<&[f64; 2]> = points.iter().filter(|[x, y]| x.is_finite() && y.is_finite()).collect();
    if points.len() <= most.max(4) {
        return points.into_iter().copied().collect();
    }
    let last = points.len() - 1;
    let inner = &points[1..last];
    let len = inner.len().div_ceil((most.max(4) - 2) / 2);
    let mut kept = vec![*points[0]];
    for neighbours in inner.chunks(len) {
        let by_height = |a: &&&[f64; 2], b: &&&[f64; 2]| a[1].total_cmp(&b[1]);
        let (Some(low), Some(high)) =
            (neighbours.iter().min_by(by_height), neighbours.iter().max_by(by_height))
        else {
            continue;
        };
        let mut ends = vec![**low, **high];
        ends.sort_by(|a, b| a[0].total_cmp(&b[0]));
        ends.dedup();
        kept.extend(ends);
    }
    kept.push(*points[last]);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thin_curve_keeps_its_ends_and_its_extremes() {
        let mut points: Points = (0..100_000).map(|n| [n as f64, (n as f64 / 3000.0).sin()]).collect();
        points[31_234][1] = 40.0;
        points[31_236][1] = -40.0;
        points[500][1] = f64::NAN;
        let kept = thin(&points, 600);
        assert!(kept.len() <= 600 && kept.len() > 500, "{}", kept.len());
        assert_eq!((kept[0], kept[kept.len() - 1]), (points[0], points[99_999]));
        assert!(kept.contains(&[31_234.0, 40.0]) && kept.contains(&[31_236.0, -40.0]));
        assert!(kept.windows(2).all(|pair| pair[0][0] < pair[1][0]), "in order");
        assert!(kept.iter().all(|[_, y]| y.is_finite()));
    }

    #[test]
    fn a_short_curve_stays_as_it_is() {
        let points = vec![[1.0, 2.0], [2.0, 1.0], [3.0, 5.0]];
        assert_eq!(thin(&points, 600), points);
        assert_eq!(thin(&[], 600), Points::new());
    }
}

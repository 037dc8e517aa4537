//! Axes: which values they span, where a value lies on them, and the marks that people read.
//!
//! Knows no picture. Invariant: every value that an axis was made for lies on it.

/// How values are spread over an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Evenly, from zero.
    FromZero,
    /// By their logarithm where they are positive and differ by more than a factor of ten, else evenly between the least and the greatest.
    Ratios,
}

/// Marks that an axis has about.
const MARKS: f64 = 5.0;

/// An axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    from: f64,
    to: f64,
    log: bool,
}

impl Axis {
    /// One for `values`, of which those that are not finite don't count.
    pub fn new(values: impl Iterator<Item = f64>, spread: Spread) -> Self {
        let ends = |(low, high): (f64, f64), v: f64| (low.min(v), high.max(v));
        let (mut low, mut high) =
            values.filter(|v| v.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), ends);
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if spread == Spread::Ratios && low > 0.0 && high / low > 10.0 {
            return Self { from: low / 1.1, to: high * 1.1, log: true };
        }
        if spread == Spread::FromZero {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        let margin = match high - low {
            0.0 => high.abs().max(1.0) * 0.1,
            span => span * 0.05,
        };
        let keeps_zero = |end: f64| spread == Spread::FromZero && end == 0.0;
        let from = if keeps_zero(low) && high > 0.0 { low } else { low - margin };
        let to = if keeps_zero(high) && low < 0.0 { high } else { high + margin };
        Self { from, to, log: false }
    }

    /// One without margins.
    pub fn exact(from: f64, to: f64) -> Self {
        Self { from, to: if to > from { to } else { from + 1.0 }, log: false }
    }

    /// Where `value` lies: 0 at the beginning, 1 at the end.
    pub fn place(&self, value: f64) -> f64 {
        let (from, to, value) =
            if self.log { (self.from.ln(), self.to.ln(), value.ln()) } else { (self.from, self.to, value) };
        (value - from) / (to - from)
    }

    /// Whether values lie by their logarithm.
    pub fn is_log(&self) -> bool {
        self.log
    }

    /// Its ends.
    pub fn ends(&self) -> (f64, f64) {
        (self.from, self.to)
    }

    /// Values that are marked, with what stands beside them.
    pub fn marks(&self) -> Vec<(f64, String)> {
        if self.log { self.log_marks() } else { self.linear_marks() }
    }

    /// `value` with as many digits as tell it from its neighbours on this axis.
    pub fn told(&self, value: f64) -> String {
        if self.log { number(value) } else { beside(value, (self.to - self.from) / MARKS) }
    }

    fn linear_marks(&self) -> Vec<(f64, String)> {
        let rough = (self.to - self.from) / MARKS;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|m| m * power >= rough).unwrap_or(10.0) * power;
        let first = (self.from / step - 1e-9).ceil() as i64;
        let last = (self.to / step + 1e-9).floor() as i64;
        let value = |n: i64| n as f64 * step;
        (first..=last.min(first + 20)).map(|n| (value(n), beside(value(n), step))).collect()
    }

    fn log_marks(&self) -> Vec<(f64, String)> {
        let decades = (self.to / self.from).log10();
        // A mark for every so many decades; within few of them also at 2 and 5.
        let each = (decades / 6.0).ceil().max(1.0) as i32;
        let within: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let (first, last) = (self.from.log10().floor() as i32, self.to.log10().ceil() as i32);
        let decades = (first..=last).filter(|n| n.rem_euclid(each) == 0);
        let values = decades.flat_map(|n| within.iter().map(move |m| m * 10f64.powi(n)));
        values.filter(|v| (self.from..=self.to).contains(v)).map(|v| (v, beside(v, v))).collect()
    }
}

/// `value` with the digits that tell marks `step` apart.
fn beside(value: f64, step: f64) -> String {
    let largest = value.abs().max(step);
    let (divisor, unit) = match largest {
        v if v >= 1e9 => (1e9, "G"),
        v if v >= 1e6 => (1e6, "M"),
        v if v >= 1e4 => (1e3, "k"),
        v if v < 1e-3 => return if value == 0.0 { "0".to_owned() } else { scientific(value) },
        _ => (1.0, ""),
    };
    let digits = (-(step / divisor).log10().floor()).clamp(0.0, 6.0) as usize;
    match value {
        0.0 => "0".to_owned(),
        value => format!("{:.digits$}{unit}", value / divisor),
    }
}

/// A number in few letters, three digits of it.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let scaled = |divisor: f64, unit: &str| {
        let digits = if size / divisor >= 100.0 { 0 } else { 1 };
        format!("{}{unit}", trimmed(format!("{:.digits$}", value / divisor)))
    };
    match size {
        0.0 => "0".to_owned(),
        s if !s.is_finite() => value.to_string(),
        s if s >= 1e9 => scaled(1e9, "G"),
        s if s >= 1e6 => scaled(1e6, "M"),
        s if s >= 1e4 => scaled(1e3, "k"),
        s if s < 1e-4 => scientific(value),
        s => {
            let digits = (2.0 - s.log10().floor()).clamp(0.0, 6.0) as usize;
            trimmed(format!("{value:.digits$}"))
        }
    }
}

/// Three digits and a power of ten.
fn scientific(value: f64) -> String {
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((digits, power)) => format!("{}e{power}", trimmed(digits.to_owned())),
        None => text,
    }
}

/// Without zeros at the end of a fraction.
fn trimmed(text: String) -> String {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(axis: &Axis) -> Vec<String> {
        axis.marks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn marks_are_round_and_tell_each_other_apart() {
        let axis = |values: &[f64], spread| Axis::new(values.iter().copied(), spread);
        assert_eq!(words(&axis(&[0.0, 160.0], Spread::FromZero)), ["0", "50", "100", "150"]);
        assert_eq!(words(&axis(&[2.11, 2.15], Spread::Ratios)), ["2.11", "2.12", "2.13", "2.14", "2.15"]);
        assert_eq!(words(&axis(&[0.0, 100_000.0], Spread::FromZero)), ["0", "50k", "100k"]);
        assert_eq!(words(&axis(&[0.0, 1e-4], Spread::FromZero)), ["0", "5e-5", "1e-4"]);
        assert_eq!(words(&axis(&[0.9, 1200.0], Spread::Ratios)), ["1", "10", "100", "1000"]);
        assert_eq!(words(&axis(&[3.0, 40.0], Spread::Ratios)), ["5", "10", "20"]);
        assert_eq!(words(&axis(&[1.0, 9.0], Spread::Ratios)), ["2", "4", "6", "8"]);
    }

    #[test]
    fn what_an_axis_was_made_for_lies_on_it() {
        let cases: [&[f64]; 7] = [
            &[],
            &[0.0],
            &[-3.0],
            &[1e-300, 1e300],
            &[-1e-9, 1e9],
            &[f64::NAN, 2.0, f64::INFINITY],
            &[5.0, 5.0],
        ];
        for values in cases {
            for spread in [Spread::FromZero, Spread::Ratios] {
                let axis = Axis::new(values.iter().copied(), spread);
                for value in values.iter().filter(|v| v.is_finite()) {
                    let place = axis.place(*value);
                    assert!((0.0..=1.0).contains(&place), "{value} at {place} of {axis:?}");
                }
                assert!(axis.marks().len() < 25, "{axis:?} has {} marks", axis.marks().len());
            }
        }
    }

    #[test]
    fn ends_that_lie_close_are_told_apart() {
        let axis = Axis::new([0.7906, 0.7919].into_iter(), Spread::Ratios);
        let (low, high) = axis.ends();
        assert_eq!([low, high].map(|end| axis.told(end)), ["0.7905", "0.7920"]);
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (0.5, "0.5"),
            (12.345, "12.3"),
            (0.012345, "0.0123"),
            (999.9, "1000"),
            (1234.0, "1234"),
            (23_456.0, "23.5k"),
            (1_000_000.0, "1M"),
            (345_678_901.0, "346M"),
            (0.000937, "0.000937"),
            (0.000012, "1.2e-5"),
            (-2.5, "-2.5"),
            (f64::NAN, "NaN"),
        ];
        for (value, wanted) in cases {
            assert_eq!(number(value), wanted);
        }
    }
}

//! Conditions on a report: `kl<0.05`, `perplexity<=12`, `same_top1>0.9`.
//!
//! Knows no exit codes. Invariant: a gate that was parsed names a number that reports have, so that a misspelt one is
//! refused before the measuring begins.

use std::fmt;
use std::str::FromStr;

use super::Report;
use crate::{Error, Result};

/// Takes one number out of a report that has it.
type Number = fn(&Report) -> Option<f64>;

/// The numbers of a report, in its order, and how to get at them. The first [`STABLE`] are the documented ones; when a
/// name is shortened they win over the others.
const NUMBERS: [(&str, Number); 29] = [
    ("perplexity", |r| Some(r.perplexity)),
    ("perplexity_se", |r| Some(r.perplexity_se)),
    ("bits_per_byte", |r| Some(r.bits_per_byte)),
    ("tokens", |r| Some(r.tokens as f64)),
    ("kl_mean", |r| r.kl_mean),
    ("same_top1", |r| r.same_top1),
    ("prefill_tps", |r| Some(r.prefill_tps)),
    ("decode_tps", |r| Some(r.decode_tps)),
    ("ttft_ms", |r| Some(r.ttft_ms)),
    ("peak_rss_bytes", |r| r.peak_rss_bytes.map(|n| n as f64)),
    ("bits_per_weight", |r| Some(r.bits_per_weight)),
    ("file_bytes", |r| Some(r.file_bytes as f64)),
    ("prefill_joules_per_token", |r| r.prefill_joules_per_token),
    ("decode_joules_per_token", |r| r.decode_joules_per_token),
    ("nll_mean", |r| Some(r.nll_mean)),
    ("nll_se", |r| Some(r.nll_se)),
    ("nll_clustered_se", |r| r.nll_clustered_se),
    ("kl_se", |r| r.kl_se),
    ("delta_ln_ppl", |r| r.delta_ln_ppl),
    ("delta_ln_ppl_se", |r| r.delta_ln_ppl_se),
    ("rms_delta_p", |r| r.rms_delta_p),
    ("reference_perplexity", |r| r.reference_perplexity),
    ("entropy_floor_nats", |r| r.entropy_floor_nats),
    ("ctx", |r| Some(r.ctx as f64)),
    ("windows", |r| Some(r.windows as f64)),
    ("bos", |r| r.bos.map(f64::from)),
    ("bytes", |r| Some(r.bytes as f64)),
    ("prompt_tokens", |r| Some(r.prompt_tokens as f64)),
    ("decoded_tokens", |r| Some(r.decoded_tokens as f64)),
];
const STABLE: usize = 12;
/// Keys that only a reference gives.
const OF_REFERENCE: [&str; 7] = [
    "kl_mean",
    "same_top1",
    "kl_se",
    "delta_ln_ppl",
    "delta_ln_ppl_se",
    "rms_delta_p",
    "reference_perplexity",
];

/// How a number is held against a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
}

/// Longer spellings first, so that `<=` is not read as `<`.
const RELATIONS: [(&str, Relation); 5] = [
    ("<=", Relation::LessOrEqual),
    (">=", Relation::GreaterOrEqual),
    ("==", Relation::Equal),
    ("<", Relation::Less),
    (">", Relation::Greater),
];

impl Relation {
    pub(super) fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Less => value < bound,
            Self::LessOrEqual => value <= bound,
            Self::Greater => value > bound,
            Self::GreaterOrEqual => value >= bound,
            Self::Equal => value == bound,
        }
    }

    pub(super) fn spelling(self) -> &'static str {
        RELATIONS.iter().find(|(_, relation)| *relation == self).map_or("", |(spelling, _)| spelling)
    }
}

/// The parts of a condition: what is before the relation, the relation, and the number behind it.
///
/// # Errors
/// When `text` is no condition; `example` is named as one.
pub(super) fn parts<'t>(text: &'t str, example: &str) -> Result<(&'t str, Relation, f64)> {
    let wrong = |problem: String| no_condition(text, &problem, example);
    let split = text.find(['<', '>', '=']).map(|at| text.split_at(at));
    let (key, rest) = split.ok_or_else(|| wrong("it has none of < <= > >= ==".into()))?;
    let relation = RELATIONS
        .iter()
        .find_map(|(spelling, relation)| rest.strip_prefix(spelling).map(|bound| (*relation, bound.trim())));
    let (relation, bound) = relation.ok_or_else(|| wrong("a single = is not a comparison".into()))?;
    match bound.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok((key.trim(), relation, value)),
        _ => Err(wrong(format!("{bound:?} is not a number"))),
    }
}

pub(super) fn no_condition(text: &str, problem: &str, example: &str) -> Error {
    Error::Invalid(format!("{text:?} is no condition: {problem}; want for example {example}"))
}

/// One condition on a report.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    /// Index into [`NUMBERS`].
    number: usize,
    relation: Relation,
    bound: f64,
}

/// A gate and what the report says to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateResult {
    /// The condition.
    pub gate: Gate,
    /// The number it is about.
    pub value: f64,
    /// Whether the condition holds.
    pub passed: bool,
}

impl Gate {
    /// The key it is about, in full.
    pub fn key(&self) -> &'static str {
        NUMBERS[self.number].0
    }

    /// Whether it can only be answered with a reference.
    pub fn needs_reference(&self) -> bool {
        OF_REFERENCE.contains(&self.key())
    }

    /// Holds the gate against a report.
    ///
    /// # Errors
    /// When the report lacks the number.
    pub fn check(&self, report: &Report) -> Result<GateResult> {
        let Some(value) = NUMBERS[self.number].1(report) else {
            let why = if self.needs_reference() {
                "it compares with a reference, and none was given (--against DIR)"
            } else {
                "it was not measured here"
            };
            return Err(Error::Invalid(format!("{self}: the report has no {}; {why}", self.key())));
        };
        let passed = self.relation.holds(value, self.bound);
        Ok(GateResult { gate: *self, value, passed })
    }
}

impl FromStr for Gate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        const EXAMPLE: &str = "kl<0.05";
        let (key, relation, bound) = parts(text, EXAMPLE)?;
        let number = find(key).map_err(|problem| no_condition(text, &problem, EXAMPLE))?;
        Ok(Self { number, relation, bound })
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.key(), self.relation.spelling(), self.bound)
    }
}

/// The number that `key` names, in full or by the beginning of its name.
fn find(key: &str) -> std::result::Result<usize, String> {
    if let Some(exact) = NUMBERS.iter().position(|(name, _)| *name == key) {
        return Ok(exact);
    }
    let begins = |range: std::ops::Range<usize>| -> Vec<usize> {
        range.filter(|at| !key.is_empty() && NUMBERS[*at].0.starts_with(key)).collect()
    };
    let stable = begins(0..STABLE);
    let candidates = if stable.is_empty() { begins(STABLE..NUMBERS.len()) } else { stable };
    let names = |list: &[usize]| list.iter().map(|at| NUMBERS[*at].0).collect::<Vec<_>>().join(", ");
    match candidates.as_slice() {
        [one] => Ok(*one),
        [] => Err(format!("there is no {key:?}; there are {}", names(&Vec::from_iter(0..NUMBERS.len())))),
        several => Err(format!("{key:?} may be {}", names(several))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut json = serde_json::Map::new();
        for (key, _) in NUMBERS {
            json.insert(key.into(), serde_json::json!(7));
        }
        for key in ["device", "isa", "protocol", "model_sha256", "energy"] {
            json.insert(key.into(), "text".into());
        }
        serde_json::from_value(json.into()).expect("these are all the keys of a report")
    }

    fn gate(text: &str) -> Gate {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    fn refusal(text: &str) -> String {
        text.parse::<Gate>().expect_err("refused").to_string()
    }

    #[test]
    fn every_number_of_a_report_can_be_gated_and_is_itself() {
        let mut json = serde_json::to_value(report()).expect("JSON");
        let keys: Vec<String> = json.as_object().expect("an object").keys().cloned().collect();
        // The others are five texts and the list of windows.
        assert_eq!(keys.len(), NUMBERS.len() + 6, "{keys:?}");
        for (at, (key, _)) in NUMBERS.iter().enumerate() {
            json[*key] = serde_json::json!(at + 100);
        }
        let report: Report = serde_json::from_value(json).expect("a report");
        for (at, (key, get)) in NUMBERS.iter().enumerate() {
            assert_eq!(get(&report), Some((at + 100) as f64), "{key}");
        }
    }

    #[test]
    fn relations_hold_at_their_bounds_as_written() {
        let mut report = report();
        report.perplexity = 12.0;
        for (text, passes) in [
            ("perplexity<12", false),
            ("perplexity<=12", true),
            ("perplexity>12", false),
            ("perplexity >= 12.0", true),
            ("perplexity==1.2e1", true),
            ("perplexity<12.5", true),
        ] {
            let result = gate(text).check(&report).expect("a number");
            assert_eq!((result.passed, result.value), (passes, 12.0), "{text}");
        }
        report.perplexity = f64::NAN;
        assert!(!gate("perplexity<12").check(&report).expect("a number").passed);
    }

    #[test]
    fn a_key_may_be_shortened_while_it_is_clear() {
        for (text, key) in [
            ("kl<0.05", "kl_mean"),
            ("same>0.9", "same_top1"),
            ("perplexity<9", "perplexity"),
            ("perplexity_<9", "perplexity_se"),
            ("prefill>1", "prefill_tps"),
            ("delta_ln_ppl<1", "delta_ln_ppl"),
            ("rms<1", "rms_delta_p"),
            ("kl_se<1", "kl_se"),
        ] {
            assert_eq!(gate(text).key(), key, "{text}");
        }
        let unclear = refusal("bits<5");
        assert!(unclear.contains("bits_per_byte, bits_per_weight"), "{unclear}");
    }

    #[test]
    fn what_is_no_condition_is_refused_with_an_example() {
        let unknown = refusal("perplex1ty<12");
        assert!(unknown.contains("perplex1ty") && unknown.contains("perplexity, perplexity_se"), "{unknown}");
        for (text, why) in [
            ("kl", "none of < <= > >= =="),
            ("kl=0.05", "a single ="),
            ("kl<", "\"\" is not a number"),
            ("kl<a", "\"a\" is not a number"),
            ("kl<NaN", "\"NaN\" is not a number"),
            ("<0.05", "there is no \"\""),
            ("kl=>1", "a single ="),
        ] {
            let message = refusal(text);
            assert!(message.contains(why) && message.contains("kl<0.05"), "{text}: {message}");
        }
    }

    #[test]
    fn a_comparison_without_a_reference_says_what_is_missing() {
        let mut report = report();
        report.kl_mean = None;
        report.peak_rss_bytes = None;
        let kl = gate("kl<0.05");
        assert!(kl.needs_reference() && !gate("perplexity<9").needs_reference());
        let message = kl.check(&report).expect_err("absent").to_string();
        assert!(message.contains("kl_mean<0.05") && message.contains("--against DIR"), "{message}");
        let message = gate("peak_rss<1").check(&report).expect_err("absent").to_string();
        assert!(message.contains("not measured"), "{message}");
    }
}

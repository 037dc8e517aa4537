//! Conditions on the score of a task: `hellaswag.acc_norm>0.4`.
//!
//! Knows no exit codes. Invariant: a gate that was parsed names a task and a number that the task has.

use std::fmt;
use std::str::FromStr;

use super::{Run, Task, TaskScore};
use crate::eval::gate::{Relation, no_condition, parts};
use crate::{Error, Result};

/// Takes one number out of a score that has it.
type Number = fn(&TaskScore) -> Option<f64>;

/// The numbers of a score; those from the [`OF_REFERENCE`]th on need a reference.
const NUMBERS: [(&str, Number); 8] = [
    ("acc", |s| Some(s.acc)),
    ("acc_norm", |s| s.acc_norm),
    ("perplexity", |s| s.perplexity),
    ("truncated", |s| Some(s.truncated as f64)),
    ("delta_acc", |s| s.versus.map(|v| v.delta_acc)),
    ("delta_acc_norm", |s| s.versus.and_then(|v| v.delta_acc_norm)),
    ("delta_ln_ppl", |s| s.versus.and_then(|v| v.delta_ln_ppl)),
    ("same_answer", |s| s.versus.map(|v| v.same_answer)),
];
const OF_REFERENCE: usize = 4;

/// One condition on the score of a task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TaskGate {
    task: Task,
    /// Index into [`NUMBERS`].
    number: usize,
    relation: Relation,
    bound: f64,
}

impl TaskGate {
    /// Whether `text` is meant for a task, right or wrong: there is a dot in what is before the relation.
    pub fn is_meant(text: &str) -> bool {
        text.split(['<', '>', '=']).next().is_some_and(|key| key.contains('.'))
    }

    /// The task it is about.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Whether it can only be answered with a reference.
    pub fn needs_reference(&self) -> bool {
        self.number >= OF_REFERENCE
    }

    /// The number it is about in `runs`, and whether it holds.
    ///
    /// # Errors
    /// When the task was not run, or lacks the number.
    pub fn check(&self, runs: &[Run]) -> Result<(f64, bool)> {
        let absent = |why: &str| Error::Invalid(format!("{self}: {why}"));
        let run = runs.iter().find(|run| run.task == self.task);
        let run = run.ok_or_else(|| absent("the task is not among --tasks"))?;
        let value = NUMBERS[self.number].1(&run.score).ok_or_else(|| match self.needs_reference() {
            true if run.score.versus.is_none() => absent("it compares with a reference (--against DIR)"),
            _ => absent("the task has no such number"),
        })?;
        Ok((value, self.relation.holds(value, self.bound)))
    }
}

impl FromStr for TaskGate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        const EXAMPLE: &str = "hellaswag.acc_norm>0.4";
        let (key, relation, bound) = parts(text, EXAMPLE)?;
        let wrong = |problem: String| no_condition(text, &problem, EXAMPLE);
        let (task, name) = key.split_once('.').ok_or_else(|| wrong("it names no task".into()))?;
        let task = task.parse().map_err(|e: Error| wrong(e.to_string()))?;
        let number = NUMBERS.iter().position(|(known, _)| *known == name).ok_or_else(|| {
            let names: Vec<&str> = NUMBERS.iter().map(|(name, _)| *name).collect();
            wrong(format!("a task has no {name:?}; there are {}", names.join(", ")))
        })?;
        Ok(Self { task, number, relation, bound })
    }
}

impl fmt::Display for TaskGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}{}{}", self.task, NUMBERS[self.number].0, self.relation.spelling(), self.bound)
    }
}

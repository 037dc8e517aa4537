//! What the likelihoods of continuations are worth: right or wrong, and means with standard errors; beside a reference's, paired.
//!
//! Knows no model. Invariant: of equal likelihoods the first counts, as NumPy's argmax has it; standard errors are those of a sample
//! (divisor n − 1), as lm-eval's are.

use serde::{Deserialize, Serialize};

use super::{Item, Likelihood, Task};
use crate::eval::Mean;

/// One item, answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemScore {
    /// ln of the probability of each choice after its context.
    pub log_likelihoods: Vec<f64>,
    /// Whether each token of the choice is the likeliest at its place.
    pub greedy: Vec<bool>,
    /// The right choice.
    pub gold: usize,
    /// The likeliest choice.
    pub choice: usize,
    /// The likeliest per character.
    pub choice_norm: usize,
    /// 1 if the answer is right. Of a single choice: if it is greedy.
    pub acc: f64,
    /// 1 if the choice per character is right, where the task is scored so.
    pub acc_norm: Option<f64>,
}

impl ItemScore {
    /// Scores `item` of `task`.
    pub fn of(task: Task, item: &Item, likelihoods: &[Likelihood]) -> Self {
        let logs = || likelihoods.iter().map(|likelihood| likelihood.log);
        let per_character = logs().zip(&item.lengths).map(|(log, length)| log / *length as f64);
        let (choice, choice_norm) = (first_greatest(logs()), first_greatest(per_character));
        let right = |choice| f64::from(u8::from(choice == item.gold));
        let acc = match likelihoods {
            [only] => f64::from(u8::from(only.greedy)),
            _ => right(choice),
        };
        Self {
            log_likelihoods: logs().collect(),
            greedy: likelihoods.iter().map(|likelihood| likelihood.greedy).collect(),
            gold: item.gold,
            choice,
            choice_norm,
            acc,
            acc_norm: task.is_normed().then(|| right(choice_norm)),
        }
    }

    fn norm(&self) -> f64 {
        self.acc_norm.unwrap_or(0.0)
    }

    /// ln of the probability of the right choice.
    fn gold_log(&self) -> f64 {
        self.log_likelihoods.get(self.gold).copied().unwrap_or(f64::NAN)
    }
}

fn first_greatest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (at, value) in values.enumerate() {
        if value > best.1 {
            best = (at, value);
        }
    }
    best.0
}

/// A task, scored. Keys are lm-eval's, with `_se` for `_stderr`; what a task doesn't have is null.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// Items.
    pub items: usize,
    /// Requests that lost the beginning of their context, which didn't fit.
    pub truncated: usize,
    /// Share of right answers.
    pub acc: f64,
    /// Its standard error.
    pub acc_se: f64,
    /// Share of right answers by log-likelihood per character.
    pub acc_norm: Option<f64>,
    /// Its standard error.
    pub acc_norm_se: Option<f64>,
    /// LAMBADA: e to the mean negative log-likelihood of the last word, all its tokens.
    pub perplexity: Option<f64>,
    /// Its standard error, to first order (lm-eval draws samples).
    pub perplexity_se: Option<f64>,
    /// Beside a reference, if there was one.
    pub versus: Option<TaskVersus>,
}

/// A task beside a reference's answers to the same items; errors are of the paired differences.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TaskVersus {
    /// The reference's share of right answers.
    pub reference_acc: f64,
    /// The model's minus that.
    pub delta_acc: f64,
    /// Its standard error.
    pub delta_acc_se: f64,
    /// The reference's, per character.
    pub reference_acc_norm: Option<f64>,
    /// The model's minus that.
    pub delta_acc_norm: Option<f64>,
    /// Its standard error.
    pub delta_acc_norm_se: Option<f64>,
    /// The reference's perplexity of last words.
    pub reference_perplexity: Option<f64>,
    /// ln perplexity − ln perplexity of the reference.
    pub delta_ln_ppl: Option<f64>,
    /// Its standard error.
    pub delta_ln_ppl_se: Option<f64>,
    /// Share of items that both answer alike (per character where the task is scored so), be it right or wrong; of single choices, that
    /// both find or both miss.
    pub same_answer: f64,
}

impl TaskScore {
    /// Sums up `items`, at least one, which the reference, if any, has answered as `reference`.
    pub fn of(task: Task, items: &[ItemScore], truncated: usize, reference: Option<&[ItemScore]>) -> Self {
        let acc = mean(items, |item| item.acc);
        let normed = task.is_normed().then(|| mean(items, ItemScore::norm));
        let nll = (task == Task::LambadaOpenai).then(|| mean(items, |item| -item.gold_log()));
        Self {
            items: items.len(),
            truncated,
            acc: acc.mean,
            acc_se: acc.se,
            acc_norm: normed.map(|normed| normed.mean),
            acc_norm_se: normed.map(|normed| normed.se),
            perplexity: nll.map(|nll| nll.mean.exp()),
            perplexity_se: nll.map(|nll| nll.mean.exp() * nll.se),
            versus: reference.map(|reference| TaskVersus::of(task, items, reference)),
        }
    }
}

impl TaskVersus {
    fn of(task: Task, items: &[ItemScore], reference: &[ItemScore]) -> Self {
        let pairs: Vec<(&ItemScore, &ItemScore)> = items.iter().zip(reference).collect();
        let apart = |value: fn(&ItemScore) -> f64| {
            let differences = pairs.iter().map(|(ours, theirs)| value(ours) - value(theirs));
            (mean(reference, value), Mean::of(differences))
        };
        let (reference_acc, delta_acc) = apart(|item| item.acc);
        let normed = task.is_normed().then(|| apart(ItemScore::norm));
        let nll = (task == Task::LambadaOpenai).then(|| apart(|item| -item.gold_log()));
        let same = |(ours, theirs): &&(&ItemScore, &ItemScore)| match task {
            Task::LambadaOpenai => ours.acc == theirs.acc,
            _ if task.is_normed() => ours.choice_norm == theirs.choice_norm,
            _ => ours.choice == theirs.choice,
        };
        Self {
            reference_acc: reference_acc.mean,
            delta_acc: delta_acc.mean,
            delta_acc_se: delta_acc.se,
            reference_acc_norm: normed.map(|(reference, _)| reference.mean),
            delta_acc_norm: normed.map(|(_, delta)| delta.mean),
            delta_acc_norm_se: normed.map(|(_, delta)| delta.se),
            reference_perplexity: nll.map(|(reference, _)| reference.mean.exp()),
            delta_ln_ppl: nll.map(|(_, delta)| delta.mean),
            delta_ln_ppl_se: nll.map(|(_, delta)| delta.se),
            same_answer: pairs.iter().filter(same).count() as f64 / pairs.len() as f64,
        }
    }
}

fn mean(items: &[ItemScore], value: fn(&ItemScore) -> f64) -> Mean {
    Mean::of(items.iter().map(value))
}

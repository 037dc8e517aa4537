//! Multiple-choice and last-word tasks, in the formats and with the scoring of lm-evaluation-harness, without examples in front.
//!
//! A task's rows become items, an item one or more contexts with continuations (`prompt.rs`, `row.rs`); these become tokens
//! (`request.rs`), a model says how likely the continuations are (`judge.rs`), and scores are taken from that (`score.rs`).
//!
//! Knows no formatting. Invariant: prompts, the cut between context and continuation, normalization and ties are those of lm-eval
//! 0.4; `interop/` holds them against it item by item.

mod gate;
mod judge;
mod prompt;
mod request;
mod row;
mod run;
mod score;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use gate::TaskGate;
pub use judge::{Likelihood, judge};
pub use request::{Request, Tokens, requests};
pub use row::{Item, read_items};
pub use run::{Run, TaskOptions, evaluate_tasks};
pub use score::{ItemScore, TaskScore, TaskVersus};

use crate::{Error, Result};

/// A task by lm-eval's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// The last word of a passage (Paperno et al., arXiv 1606.06031), OpenAI's version of the texts.
    LambadaOpenai,
    /// The end of a description (Zellers et al., arXiv 1905.07830).
    Hellaswag,
    /// Science questions of schools (Clark et al., arXiv 1803.05457), the easy ones.
    ArcEasy,
    /// The hard ones.
    ArcChallenge,
    /// Ways to do everyday things (Bisk et al., arXiv 1911.11641).
    Piqa,
    /// Whom a pronoun means (Sakaguchi et al., arXiv 1907.10641).
    Winogrande,
    /// Yes or no to a question about a passage (Clark et al., arXiv 1905.10044).
    Boolq,
    /// Elementary science that asks for common sense (Mihaylov et al., arXiv 1809.02789).
    Openbookqa,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::LambadaOpenai,
        Self::Hellaswag,
        Self::ArcEasy,
        Self::ArcChallenge,
        Self::Piqa,
        Self::Winogrande,
        Self::Boolq,
        Self::Openbookqa,
    ];

    /// lm-eval's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::LambadaOpenai => "lambada_openai",
            Self::Hellaswag => "hellaswag",
            Self::ArcEasy => "arc_easy",
            Self::ArcChallenge => "arc_challenge",
            Self::Piqa => "piqa",
            Self::Winogrande => "winogrande",
            Self::Boolq => "boolq",
            Self::Openbookqa => "openbookqa",
        }
    }

    /// Whether lm-eval reports `acc_norm` of it: the choice by log-likelihood per character.
    pub fn is_normed(self) -> bool {
        !matches!(self, Self::LambadaOpenai | Self::Winogrande | Self::Boolq)
    }

    /// Its file in `dir`: the name with `.jsonl`, also as mosaicml's llm-foundry spells it.
    ///
    /// # Errors
    /// When there is none; names what was looked for.
    pub fn file(self, dir: &Path) -> Result<PathBuf> {
        let spelled = match self {
            Self::Openbookqa => vec!["openbookqa.jsonl", "openbook_qa.jsonl"],
            _ => vec![],
        };
        let own = format!("{}.jsonl", self.name());
        let names = if spelled.is_empty() { vec![own.as_str()] } else { spelled };
        let found = names.iter().map(|name| dir.join(name)).find(|path| path.is_file());
        found.ok_or_else(|| {
            let problem = format!(
                "has no {} for the task {}; write its rows there, one JSON object a line (docs/tasks.md)",
                names.join(" or "),
                self.name()
            );
            Error::file(dir, problem)
        })
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|task| task.name()).collect();
            Error::Invalid(format!("there is no task {name:?}; there are {}", names.join(", ")))
        })
    }
}

//! A penalty on what was just said.
//!
//! Knows no model. Invariant: each token counts once, however often it was said (Keskar et al., arXiv 1909.05858, as transformers and
//! llama.cpp apply it: logits above zero are divided by the penalty, others multiplied).

use std::collections::BTreeSet;

use crate::{Error, Result};

/// A penalty on the tokens that were read or written last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Repetition {
    /// More than 0; 1 does nothing, more makes repetition less likely.
    pub penalty: f32,
    /// So many of the last tokens count, those of the prompt among them.
    pub last: usize,
}

impl Repetition {
    /// Refuses a penalty that is none.
    ///
    /// # Errors
    /// Names it.
    pub fn check(&self) -> Result<()> {
        match self.penalty.is_finite() && self.penalty > 0.0 {
            true => Ok(()),
            false => {
                let problem = format!("repetition penalty {}: want more than 0; 1 is none", self.penalty);
                Err(Error::Invalid(problem))
            }
        }
    }

    /// Whether it changes nothing.
    pub fn is_none(&self) -> bool {
        self.penalty == 1.0 || self.last == 0
    }

    /// Lowers the logits of what stands at the end of `said`.
    pub fn apply(&self, said: &[u32], logits: &mut [f32]) {
        let last = said.len().saturating_sub(self.last);
        for id in said[last..].iter().collect::<BTreeSet<_>>() {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = if *logit > 0.0 { *logit / self.penalty } else { *logit * self.penalty };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_last_is_less_likely_and_counts_once() {
        let mut logits = [3.0, -2.0, 1.0, 4.0];
        Repetition { penalty: 2.0, last: 3 }.apply(&[3, 0, 0, 1], &mut logits);
        assert_eq!(logits, [1.5, -4.0, 1.0, 4.0], "the 3 is too long ago");
        Repetition { penalty: 1.5, last: 64 }.apply(&[9], &mut logits);
        assert_eq!(logits, [1.5, -4.0, 1.0, 4.0], "no such token");
    }

    #[test]
    fn a_penalty_that_is_none_is_refused() {
        for penalty in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let refused = Repetition { penalty, last: 64 }.check().expect_err("refused").to_string();
            assert!(refused.contains("repetition penalty"), "{refused}");
        }
    }
}

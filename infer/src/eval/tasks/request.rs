//! Items as token ids: where a context ends and its continuation begins, and what a model's context leaves of both.
//!
//! Knows no scores. Invariant: ids and cut are those of lm-eval (`_encode_pair`): text and context are encoded each as a whole, with
//! the special tokens that the tokenizer puts around a text, and white space at the end of a context belongs to what follows.

use rayon::prelude::*;
use tokenizers::Tokenizer;

use super::Item;
use crate::{Error, Result};

/// One continuation to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Context and continuation.
    pub ids: Vec<u32>,
    /// Ids of the continuation, the last of `ids`; at least one, and one stands before them.
    pub continuation: usize,
}

/// The requests of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Of each item, one for each of its choices.
    pub items: Vec<Vec<Request>>,
    /// Requests that lost the beginning of their context, which didn't fit.
    pub truncated: usize,
}

impl Tokens {
    /// Most ids that a model reads for a request: all but the last.
    pub fn longest(&self) -> usize {
        self.items.iter().flatten().map(|request| request.ids.len() - 1).max().unwrap_or(0)
    }
}

/// Encodes `items` for a model that reads up to `context` ids; `prefix`, its BOS or EOS, stands before what follows nothing.
///
/// # Errors
/// When a text can't be encoded, leaves nothing of its continuation, or a continuation is longer than the context; names the item.
pub fn requests(
    items: &[Item],
    tokenizer: &Tokenizer,
    prefix: Option<u32>,
    context: usize,
) -> Result<Tokens> {
    let one = |(number, item): (usize, &Item)| {
        let each = item.choices.iter().map(|[before, after]| {
            let request =
                encode(tokenizer, prefix, before, after).and_then(|request| request.cut_to(context));
            request.map_err(|problem| Error::Invalid(format!("item {}: {problem}", number + 1)))
        });
        each.collect::<Result<Vec<_>>>()
    };
    let items: Vec<Result<Vec<(Request, bool)>>> = items.par_iter().enumerate().map(one).collect();
    let mut truncated = 0;
    let items = items.into_iter().map(|item| {
        Ok(item?
            .into_iter()
            .map(|(request, cut)| {
                truncated += usize::from(cut);
                request
            })
            .collect())
    });
    let items = items.collect::<Result<_>>()?;
    Ok(Tokens { items, truncated })
}

fn encode(tokenizer: &Tokenizer, prefix: Option<u32>, before: &str, after: &str) -> Result<Request, String> {
    let ids = |text: &str, special| {
        let encoding = tokenizer.encode(text, special).map_err(|e| format!("can't be encoded: {e}"))?;
        Ok::<_, String>(encoding.get_ids().to_vec())
    };
    if before.is_empty() {
        let continuation = ids(after, false)?;
        let prefix = prefix.filter(|prefix| continuation.first() != Some(prefix));
        let all: Vec<u32> = prefix.into_iter().chain(continuation).collect();
        return Request { continuation: all.len().saturating_sub(1), ids: all }.checked();
    }
    let context = before.trim_end();
    let whole = ids(&format!("{before}{after}"), true)?;
    let mut all = ids(context, true)?;
    let first = all.len();
    all.extend(whole.get(first..).unwrap_or_default());
    Request { continuation: all.len() - first, ids: all }.checked()
}

impl Request {
    fn checked(self) -> Result<Self, String> {
        if self.continuation == 0 || self.continuation == self.ids.len() {
            return Err(match self.continuation {
                0 => "the tokenizer gives its continuation no token of its own (nor could lm-eval score it); leave the row out".to_owned(),
                _ => "nothing stands before its continuation; want a model with a BOS or an EOS".to_owned(),
            });
        }
        Ok(self)
    }

    /// As much of the end as a model reads that reads `context` ids, and whether something was lost.
    fn cut_to(mut self, context: usize) -> Result<(Self, bool), String> {
        if self.continuation > context {
            let tokens = self.continuation;
            return Err(format!(
                "its continuation has {tokens} tokens, the context {context}; leave it out, or --limit"
            ));
        }
        let lost = self.ids.len().saturating_sub(context + 1);
        self.ids.drain(..lost);
        Ok((self, lost > 0))
    }
}

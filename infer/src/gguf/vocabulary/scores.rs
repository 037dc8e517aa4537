//! Merges in order (Hugging Face) and scores of tokens (SentencePiece), each from the other.
//!
//! SentencePiece merges the two neighbours whose union is the token with the highest score, whichever two they are. Merges in order say
//! the same only if they list every way in which a token can be put together, all ways of one token next to each other. That is how
//! transformers derives them; merges that were trained as such are others.

use std::collections::BTreeMap;

/// The score of each token that merges make: the more, the earlier. Tokens that none makes have 0.
///
/// # Errors
/// The merges are not those of SentencePiece: the first token by which one can tell.
pub(super) fn of_merges<'a>(
    vocab: &BTreeMap<&'a str, u32>,
    merges: &[(&'a str, &'a str)],
    is_normal: impl Fn(u32) -> bool,
) -> Result<BTreeMap<u32, f32>, String> {
    let mut scores = BTreeMap::new();
    let mut ways: BTreeMap<u32, usize> = BTreeMap::new();
    let mut last = None;
    for (left, right) in merges {
        let union = format!("{left}{right}");
        let &id = vocab
            .get(union.as_str())
            .ok_or_else(|| format!("the merge of {left:?} and {right:?} makes no token"))?;
        *ways.entry(id).or_default() += 1;
        if last != Some(id) && scores.insert(id, -(scores.len() as f32)).is_some() {
            return Err(format!("the merges that make {union:?} are in several places"));
        }
        last = Some(id);
    }
    for (text, &id) in vocab {
        let all = splits(text, |part| vocab.contains_key(part)).count();
        if is_normal(id) && ways.get(&id).copied().unwrap_or(0) != all {
            let listed = ways.get(&id).copied().unwrap_or(0);
            return Err(format!("{text:?} is made in {listed} ways, and {all} are possible"));
        }
    }
    Ok(scores)
}

/// The merges of tokens with `scores`, in order: the ways to put each together, from the highest score to the lowest.
pub(super) fn to_merges<'a>(
    vocab: &BTreeMap<&'a str, u32>,
    score: impl Fn(u32) -> Option<f32>,
) -> Vec<(&'a str, &'a str)> {
    let mut found = Vec::new();
    for (text, &id) in vocab {
        let Some(score) = score(id) else { continue };
        for (left, right) in splits(text, |part| vocab.contains_key(part)) {
            found.push((score, vocab[left], vocab[right], (left, right)));
        }
    }
    // A higher score first; then, as transformers has it, by the ids of the parts.
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    found.into_iter().map(|(.., merge)| merge).collect()
}

/// The ways to cut `text` into two tokens.
fn splits(text: &str, is_token: impl Fn(&str) -> bool) -> impl Iterator<Item = (&str, &str)> {
    let places = text.char_indices().skip(1).map(|(at, _)| at);
    places.map(|at| text.split_at(at)).filter(move |(left, right)| is_token(left) && is_token(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocab<'a>(texts: &[&'a str]) -> BTreeMap<&'a str, u32> {
        texts.iter().copied().zip(0..).collect()
    }

    #[test]
    fn merges_and_scores_come_from_each_other() {
        let vocab = vocab(&["a", "b", "c", "ab", "bc", "abc"]);
        let merges = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")];
        let scores = of_merges(&vocab, &merges, |_| true).unwrap();
        assert_eq!(scores, BTreeMap::from([(4, 0.0), (3, -1.0), (5, -2.0)]));
        assert_eq!(to_merges(&vocab, |id| scores.get(&id).copied()), merges);
    }

    #[test]
    fn merges_that_leave_a_way_out_or_come_back_to_a_token_are_refused() {
        let vocab = vocab(&["a", "b", "c", "ab", "bc", "abc"]);
        let refused =
            |merges: &[(&'static str, &'static str)]| of_merges(&vocab, merges, |_| true).unwrap_err();
        assert_eq!(
            refused(&[("b", "c"), ("a", "b"), ("a", "bc")]),
            "\"abc\" is made in 1 ways, and 2 are possible"
        );
        assert!(refused(&[("a", "bc"), ("b", "c"), ("a", "b"), ("ab", "c")]).contains("in several places"));
        assert!(refused(&[("a", "c")]).contains("makes no token"));
    }
}

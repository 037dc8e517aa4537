//! Stories without end: a seeded sampler of data/stories.grammar that knows the exact probability of what it writes.
//!
//! The sampler knows no tokens. The invariant: the grammar gives every text at most one derivation (proved by test), so the
//! nats that are counted while sampling are −ln p(text), and no model's cross entropy can beat them on average.

use std::sync::LazyLock;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::{Error, Result};

mod distribution;
mod entropy;
mod file;
mod grammar;
#[cfg(test)]
mod proof;
mod recognise;
mod sample;
#[cfg(test)]
mod shipped;
mod spec;
mod table;
mod template;
mod tokenizer;

pub use spec::StoriesSpec;
pub use tokenizer::{SPECIAL_TOKENS, TOKENIZER_CORPUS, VOCAB_SIZE, tokenizer_config, train_tokenizer};

use grammar::Grammar;

/// What follows every story of [`Stories::text`]. No story contains it.
pub const SEPARATOR: &str = "\n\n";

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| {
    let source = include_str!("../../../data/stories.grammar");
    Grammar::parse(source).unwrap_or_else(|error| unreachable!("data/stories.grammar: {error}"))
});

/// A generated corpus.
#[derive(Debug, Clone, PartialEq)]
pub struct Stories {
    /// The stories, each followed by [`SEPARATOR`]; ASCII.
    pub text: String,
    /// −ln p(text) under the generator, in nats. Separators cost nothing: where a story ends is certain.
    pub nats: f64,
    /// How many stories there are.
    pub stories: usize,
}

/// Draws stories until the text has at least `bytes` bytes.
///
/// The same `seed` gives the same text, and a longer text begins with the shorter one.
pub fn generate(seed: u64, bytes: usize) -> Stories {
    let mut teller = Teller::new(&StoriesSpec { seed, bytes });
    let mut all = Stories { text: String::with_capacity(bytes + 2048), nats: 0.0, stories: 0 };
    while let Some(story) = teller.tell() {
        all.text.push_str(&story);
        all.stories += 1;
    }
    Stories { nats: teller.nats, ..all }
}

/// The stories of [`generate`], one after the other, none of which is kept.
#[derive(Debug, Clone)]
pub struct Teller {
    rng: ChaCha8Rng,
    wanted: u64,
    told: u64,
    nats: f64,
}

impl Teller {
    /// At the beginning of the text that `spec` asks for.
    pub fn new(spec: &StoriesSpec) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(spec.seed);
        Self { rng, wanted: spec.bytes as u64, told: 0, nats: 0.0 }
    }

    /// The next story, with its separator; none when the text has its length.
    pub fn tell(&mut self) -> Option<String> {
        if self.told >= self.wanted {
            return None;
        }
        let mut story = String::new();
        self.nats += GRAMMAR.sample(&mut self.rng, &mut story);
        story.push_str(SEPARATOR);
        self.told += story.len() as u64;
        Some(story)
    }

    /// Bytes of the text so far.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// −ln p of the text so far, in nats.
    pub fn nats(&self) -> f64 {
        self.nats
    }
}

/// −ln p(story) in nats, from the text of one story (without its separator) alone.
///
/// # Errors
/// [`Error::Data`] if the grammar can't have written the text.
pub fn surprisal(story: &str) -> Result<f64> {
    match GRAMMAR.readings(story).as_slice() {
        [reading] => Ok(reading.nats),
        readings => {
            let start: String = story.chars().take(60).collect();
            let found = readings.len();
            Err(Error::Data(format!(
                "`{start}…`: want a story of data/stories.grammar, found {found} derivations"
            )))
        }
    }
}

/// The entropy of the generator: expected −ln p(story) in nats, summed over the grammar and not estimated.
pub fn entropy_per_story() -> f64 {
    GRAMMAR.entropy()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn each(stories: &Stories) -> impl Iterator<Item = &str> {
        stories.text.split_terminator(SEPARATOR)
    }

    #[test]
    fn the_same_seed_tells_the_same_stories_and_a_longer_text_begins_with_them() {
        let (short, long) = (generate(7, 10_000), generate(7, 50_000));
        assert_eq!(short, generate(7, 10_000));
        assert!(long.text.starts_with(&short.text));
        assert!(short.text.len() >= 10_000 && short.text.len() < 13_000);
        assert_ne!(generate(8, 10_000).text, short.text);
        assert_eq!(each(&short).count(), short.stories);
        assert_eq!(generate(7, 0), Stories { text: String::new(), nats: 0.0, stories: 0 });
    }

    #[test]
    fn every_text_is_read_back_in_exactly_one_way_and_with_the_same_nats() {
        let stories = generate(1, 1_000_000);
        let mut nats = 0.0;
        for story in each(&stories) {
            assert_eq!(GRAMMAR.readings(story).len(), 1, "{story}");
            nats += surprisal(story).unwrap();
        }
        // The same numbers are added in the same order within each story and over all of them.
        assert_eq!(nats, stories.nats);
    }

    #[test]
    fn a_text_that_the_grammar_cannot_have_written_is_refused() {
        let story = generate(3, 1).text;
        let story = story.trim_end();
        surprisal(story).unwrap();
        for wrong in ["", "Once upon a time", &story[1..], &story[..story.len() - 1], &format!("{story} ")] {
            let message = surprisal(wrong).unwrap_err().to_string();
            assert!(message.contains("found 0 derivations"), "{message}");
        }
    }

    #[test]
    fn the_mean_surprisal_agrees_with_the_entropy_summed_over_the_grammar() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let n = 50_000;
        let (mut sum, mut squares, mut text) = (0.0, 0.0, String::new());
        for _ in 0..n {
            text.clear();
            let nats = GRAMMAR.sample(&mut rng, &mut text);
            sum += nats;
            squares += nats * nats;
        }
        let mean = sum / f64::from(n);
        let standard_error = ((squares / f64::from(n) - mean * mean) / f64::from(n)).sqrt();
        // Three standard errors: a right entropy fails for one seed in 370, and this seed is fixed.
        assert!(
            (mean - entropy_per_story()).abs() < 3.0 * standard_error,
            "{mean} vs {}",
            entropy_per_story()
        );
        assert!(standard_error < 0.002 * mean, "too coarse to tell: {standard_error}");
    }

    #[test]
    fn stories_read_well() {
        let stories = generate(5, 1_000_000);
        assert!(stories.text.is_ascii());
        for story in each(&stories) {
            assert!(!story.contains("  ") && !story.contains('\n') && !story.contains(" ."), "{story}");
            assert!(!story.contains(['{', '}', '<', '>', '|', '(', ')', '_']), "{story}");
            assert!(story.starts_with(|c: char| c.is_ascii_uppercase()), "{story}");
            assert!(story.ends_with(['.', '"', '!']), "{story}");
            assert_eq!(story.matches('"').count() % 2, 0, "{story}");
            let sentences = story.matches(['.', '!', '?']).count();
            assert!((6..=30).contains(&sentences), "{sentences} sentences: {story}");
            let words: Vec<&str> = story.split([' ', '"']).collect();
            for pair in words.windows(2) {
                // By sound: no other word of the tables begins with a vowel that is spoken as a consonant.
                let vowel = pair[1].starts_with(['a', 'e', 'i', 'o', 'u']) && !pair[1].starts_with("us");
                assert!(!matches!(pair[0], "a" | "A") || !vowel, "{pair:?}: {story}");
                assert!(!matches!(pair[0], "an" | "An") || vowel, "{pair:?}: {story}");
                let sentence_ends = pair[0].ends_with('.');
                let goes_on = pair[1].starts_with(|c: char| c.is_ascii_lowercase());
                assert!(!sentence_ends || !goes_on, "{pair:?}: {story}");
            }
        }
    }

    #[test]
    fn the_language_is_rich_but_learnable() {
        let stories = generate(6, 4_000_000);
        let text = stories.text.to_ascii_lowercase();
        let words: Vec<&str> =
            text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
        let distinct: BTreeSet<&str> = words.iter().copied().collect();
        assert!((1000..=1500).contains(&distinct.len()), "{} distinct words", distinct.len());
        let bits = stories.nats / std::f64::consts::LN_2 / words.len() as f64;
        assert!((0.8..2.0).contains(&bits), "{bits} bits for each word");
    }
}

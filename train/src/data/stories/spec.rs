//! The spelling of generated stories where a recipe lists files: `stories:seed=1,bytes=4000000`.
//!
//! Knows no recipe. The invariant: `Display` writes what `FromStr` reads.

use std::fmt;
use std::str::FromStr;

use super::{Stories, generate};
use crate::Error;

/// Which stories to generate; see [`generate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoriesSpec {
    /// Seed of the generator; use another one for held-out text.
    pub seed: u64,
    /// Least length of the text in bytes.
    pub bytes: usize,
}

impl StoriesSpec {
    /// What the spelling begins with; nothing that begins so is a path.
    pub const SCHEME: &str = "stories:";

    /// The stories themselves, in memory.
    pub fn generate(&self) -> Stories {
        generate(self.seed, self.bytes)
    }
}

impl Default for StoriesSpec {
    fn default() -> Self {
        Self { seed: 0, bytes: 2_000_000 }
    }
}

impl fmt::Display for StoriesSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}seed={},bytes={}", Self::SCHEME, self.seed, self.bytes)
    }
}

impl FromStr for StoriesSpec {
    type Err = Error;

    /// Reads `stories:` followed by any of `seed=N` and `bytes=N`, with commas between.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |problem: String| {
            Error::Config(format!("`{text}`: {problem}; write it like `stories:seed=1,bytes=4000000`"))
        };
        let options = text
            .strip_prefix(Self::SCHEME)
            .ok_or_else(|| refuse(format!("want it to begin with `{}`", Self::SCHEME)))?;
        let mut spec = Self::default();
        let mut seen = Vec::new();
        for option in options.split(',').filter(|_| !options.is_empty()) {
            let (key, value) =
                option.split_once('=').ok_or_else(|| refuse(format!("`{option}` has no value")))?;
            if seen.contains(&key) {
                return Err(refuse(format!("`{key}` is given twice")));
            }
            seen.push(key);
            let number = || {
                value
                    .parse::<u64>()
                    .map_err(|_| refuse(format!("`{key}` wants a whole number, found `{value}`")))
            };
            match key {
                "seed" => spec.seed = number()?,
                "bytes" => {
                    let bytes = number()?;
                    spec.bytes = usize::try_from(bytes)
                        .ok()
                        .filter(|b| (1..=MOST_BYTES).contains(b))
                        .ok_or_else(|| refuse(format!("`bytes` wants 1 to {MOST_BYTES}, found {bytes}")))?;
                }
                _ => return Err(refuse(format!("unknown key `{key}`, want `seed` or `bytes`"))),
            }
        }
        Ok(spec)
    }
}

/// A slip of the zeros is not meant.
const MOST_BYTES: usize = 1_000_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        text.parse::<StoriesSpec>().unwrap_err().to_string()
    }

    #[test]
    fn every_spec_is_read_back_from_its_spelling() {
        for spec in [StoriesSpec::default(), StoriesSpec { seed: u64::MAX, bytes: 1 }] {
            assert_eq!(spec.to_string().parse::<StoriesSpec>().unwrap(), spec);
        }
        assert_eq!("stories:".parse::<StoriesSpec>().unwrap(), StoriesSpec { seed: 0, bytes: 2_000_000 });
        assert_eq!("stories:bytes=5".parse::<StoriesSpec>().unwrap(), StoriesSpec { seed: 0, bytes: 5 });
        assert_eq!(StoriesSpec { seed: 1, bytes: 4 }.to_string(), "stories:seed=1,bytes=4");
    }

    #[test]
    fn a_wrong_spelling_is_refused_and_named() {
        assert!(message("stories:sed=1").contains("unknown key `sed`, want `seed` or `bytes`"));
        assert!(message("stories:seed").contains("`seed` has no value"));
        assert!(message("stories:seed=").contains("`seed` wants a whole number, found ``"));
        assert!(message("stories:bytes=4MB").contains("`bytes` wants a whole number, found `4MB`"));
        assert!(message("stories:bytes=0").contains("`bytes` wants 1 to 1000000000000, found 0"));
        assert!(message("stories:seed=1,seed=2").contains("`seed` is given twice"));
        assert!(message("stories:seed=1,").contains("`` has no value"));
        assert!(message("tales:seed=1").contains("want it to begin with `stories:`"));
    }
}

//! The stories' tokenizer: byte-level BPE, 1536 tokens, trained on generated stories.
//!
//! Knows no model. The invariants: any text tokenizes and decodes to itself, and training again gives the same bytes,
//! which are those of data/teacher/tokenizer.json.

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use super::{SEPARATOR, StoriesSpec};
use crate::{Error, Result};

/// Tokens altogether: 3 special ones, 256 bytes, 1277 merges.
pub const VOCAB_SIZE: usize = 1536;
/// The special tokens, with ids 0, 1 and 2. The first ends a document.
pub const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// What it is trained on.
pub const TOKENIZER_CORPUS: StoriesSpec = StoriesSpec { seed: 0, bytes: 4_000_000 };

/// Trains the tokenizer (about a second).
///
/// # Errors
/// [`Error::Data`] with what the tokenizer library said.
pub fn train_tokenizer() -> Result<Tokenizer> {
    let refused =
        |error: tokenizers::Error| Error::Data(format!("cannot train the stories' tokenizer: {error}"));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCAB_SIZE)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(SPECIAL_TOKENS.map(|t| AddedToken::from(t, true)).to_vec())
        .build();
    let split = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(split))
        .with_post_processor(Some(ByteLevel::new(false, false, true)))
        .with_decoder(Some(ByteLevel::default()))
        .build()
        .map_err(refused)?;
    let corpus = TOKENIZER_CORPUS.generate();
    tokenizer.train(&mut trainer, corpus.text.split_terminator(SEPARATOR)).map_err(refused)?;
    tokenizer.to_string(false).and_then(|json| json.parse()).map_err(refused)
}

/// The tokenizer_config.json that goes with it, for readers that want one.
pub fn tokenizer_config() -> serde_json::Value {
    let [end, ..] = SPECIAL_TOKENS;
    serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": end,
        "pad_token": end,
        "additional_special_tokens": SPECIAL_TOKENS[1..],
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 1024,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::generate;
    use super::*;

    fn committed(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/teacher").join(name);
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn the_committed_tokenizer_of_the_stories_is_what_training_gives() {
        assert_eq!(train_tokenizer().unwrap().to_string(true).unwrap() + "\n", committed("tokenizer.json"));
        let config: serde_json::Value = serde_json::from_str(&committed("tokenizer_config.json")).unwrap();
        assert_eq!(config, tokenizer_config());
    }

    #[test]
    fn the_tokenizer_of_the_stories_spells_any_text_and_knows_its_special_tokens() {
        let tokenizer: Tokenizer = committed("tokenizer.json").parse().unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), VOCAB_SIZE);
        for (id, token) in (0..).zip(SPECIAL_TOKENS) {
            assert_eq!(tokenizer.token_to_id(token), Some(id));
        }
        let bytes: String = (0..=0x2ff).filter_map(char::from_u32).collect();
        for text in [generate(9, 5_000).text.as_str(), "  Größe 日本語 🦀\r\n\t€", &bytes, ""] {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
            assert!(ids.get_ids().iter().all(|id| *id >= 3), "ordinary text has no special tokens");
        }
        let ids = tokenizer.encode("a<|endoftext|>b", true).unwrap();
        assert_eq!(ids.get_ids()[1], 0);
    }

    #[test]
    fn the_tokenizer_of_the_stories_spends_a_token_on_about_four_letters() {
        let tokenizer: Tokenizer = committed("tokenizer.json").parse().unwrap();
        let stories = generate(10, 200_000);
        let tokens = tokenizer.encode(stories.text.as_str(), false).unwrap().len();
        let letters = stories.text.len() as f64 / tokens as f64;
        assert!((3.5..5.0).contains(&letters), "{letters} letters for each token");
    }
}

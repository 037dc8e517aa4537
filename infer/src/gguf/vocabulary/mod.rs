//! The tokenizer in a GGUF file, from and to `tokenizer.json`.
//!
//! llama.cpp has code for each kind of tokenizer and picks it by name: `gpt2` (byte-level BPE, with the name of a pre-tokenizer) or `llama`
//! (SentencePiece: the pair whose union has the highest score is merged). Invariant: what would be cut differently there is refused, never
//! written.

mod pre;
mod read;
mod scores;
mod special;
mod write;

pub(crate) use read::{settings, to_json};
pub(crate) use write::{Files, write};

/// What llama.cpp calls byte-level BPE.
const BYTE_LEVEL: &str = "gpt2";
/// What llama.cpp calls the tokenizer of SentencePiece.
const SENTENCE_PIECE: &str = "llama";
/// A model that reads ids only.
const NO_VOCABULARY: &str = "no_vocab";

/// Key of the list of tokens, without which there is no tokenizer.
pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
const TEMPLATE: &str = "tokenizer.chat_template";

/// What stands for a space in the tokens of SentencePiece.
const SPACE: &str = "▁";

/// What a token is for, in llama.cpp's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl TokenType {
    /// The type of that number; any other is an ordinary token, as it is for llama.cpp.
    fn of(number: i32) -> Self {
        let all = [Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte];
        all.into_iter().find(|kind| *kind as i32 == number).unwrap_or(Self::Normal)
    }
}

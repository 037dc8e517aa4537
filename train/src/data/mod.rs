//! The way of the data: text ─▶ documents ─▶ token file ─▶ windows ─▶ batches.
//!
//! Knows no model and no loop. Everything streams: memory is bounded by a batch of text while tokenizing (and by the longest line of JSON, which may
//! have 256 MiB) and by a batch of windows while training, whatever the size of the corpus.

mod batches;
mod chat;
mod digest;
mod documents;
mod eval_text;
mod headers;
mod jsonl;
mod library;
mod packed;
mod pages;
mod parquet;
mod part;
mod permutation;
mod source;
pub mod stories;
mod text;
mod thrift;
mod token_file;
mod token_writer;
mod tokenize;

#[cfg(test)]
mod tests;

pub use batches::{Batch, Batches, Cursor};
pub use chat::{Census, ChatTokenization, Frame, Lost};
pub use documents::{Corpus, DEFAULT_FIELD, Documents, Piece};
pub use eval_text::EvalText;
pub use library::Library;
pub use packed::{Marked, Packed};
pub use source::Source;
pub use token_file::{Header, Tokens};
pub use tokenize::{Origin, Progress, Stage, Tokenization};

//! Tokens as text, while they come: whole characters only, up to the first stop word.
//!
//! Knows no model. Invariant: what was given out is the beginning of what all tokens give together, and no part of a stop word is given
//! out, however tokens cut it.

use tokenizers::{
    DecodeStream, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer,
};

use crate::{Error, Result};

type Stream<'t> = DecodeStream<
    't,
    ModelWrapper,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// A text that grows token by token.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    stream: Stream<'t>,
    stops: Vec<String>,
    ids: Vec<u32>,
    /// Bytes that the stream has made of them.
    decoded: usize,
    held: String,
    stopped: bool,
}

impl<'t> TextStream<'t> {
    /// Text of `tokenizer`'s tokens, which ends before the first of `stops`. Special tokens are left out.
    ///
    /// # Errors
    /// When a stop word is empty.
    pub fn new(tokenizer: &'t Tokenizer, stops: &[String]) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::Invalid("a stop word is empty; want some text".into()));
        }
        Ok(Self {
            tokenizer,
            stream: tokenizer.decode_stream(true),
            stops: stops.to_vec(),
            ids: Vec::new(),
            decoded: 0,
            held: String::new(),
            stopped: false,
        })
    }

    /// Whether a stop word came.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Takes a token, and gives the text that is certain now.
    ///
    /// # Errors
    /// When the tokenizer can't decode it.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let piece = self.stream.step(id).map_err(|e| Error::Invalid(format!("token {id}: {e}")))?;
        let piece = piece.unwrap_or_default();
        self.ids.push(id);
        self.decoded += piece.len();
        Ok(self.take(&piece))
    }

    /// What is left when no more tokens come. Bytes that are no character and stand before others are shown as U+FFFD; a character that
    /// was cut off at the end is left out.
    pub fn finish(mut self) -> String {
        let whole = self.tokenizer.decode(&self.ids, true).unwrap_or_default();
        let rest =
            whole.get(self.decoded..).unwrap_or_default().trim_end_matches(char::REPLACEMENT_CHARACTER);
        let mut certain = self.take(rest);
        if !self.stopped {
            certain.push_str(&self.held);
        }
        certain
    }

    fn take(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop)).min();
        let certain = match first {
            Some(at) => {
                self.stopped = true;
                at
            }
            None => self.held.len() - self.begun(),
        };
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// Bytes at the end that may be the beginning of a stop word.
    fn begun(&self) -> usize {
        let of = |stop: &String| {
            let ends = stop.char_indices().map(|(at, _)| at).rev();
            ends.into_iter().find(|end| self.held.ends_with(&stop[..*end])).unwrap_or(0)
        };
        self.stops.iter().map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::shared;

    fn tokenizer() -> Option<Tokenizer> {
        let path = shared("data/tokenizers/gpt2/tokenizer.json")?;
        Some(Tokenizer::from_file(path).expect("a tokenizer"))
    }

    fn pieces(tokenizer: &Tokenizer, text: &str, stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stream = TextStream::new(tokenizer, &stops).expect("stops");
        let encoding = tokenizer.encode(text, false).expect("encoded");
        let mut pieces: Vec<String> =
            encoding.get_ids().iter().map(|id| stream.push(*id).expect("decoded")).collect();
        let stopped = stream.is_stopped();
        pieces.push(stream.finish());
        (pieces, stopped)
    }

    #[test]
    fn characters_come_whole_and_nothing_is_lost() {
        let Some(tokenizer) = tokenizer() else { return };
        let text = "naïve ☕ 日本語 🚀 e\u{301} — done";
        let (pieces, stopped) = pieces(&tokenizer, text, &[]);
        assert_eq!(pieces.concat(), text);
        assert!(!stopped && pieces.iter().filter(|piece| !piece.is_empty()).count() > 5, "{pieces:?}");
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    }

    #[test]
    fn bytes_that_are_no_character_are_shown_and_a_character_cut_off_is_not() {
        let Some(tokenizer) = tokenizer() else { return };
        let ids = |text: &str| tokenizer.encode(text, false).expect("encoded").get_ids().to_vec();
        // The first of its tokens is no character.
        let rocket = ids("🚀");
        let mut stream = TextStream::new(&tokenizer, &[]).expect("no stops");
        let (mut text, broken) =
            (String::new(), [&ids("a")[..], &rocket[..1], &ids(" b"), &rocket[..1]].concat());
        for id in broken {
            text.push_str(&stream.push(id).expect("decoded"));
        }
        text.push_str(&stream.finish());
        assert!(text.starts_with('a') && text.ends_with(" b") && text.contains('\u{fffd}'), "{text:?}");
    }

    #[test]
    fn a_stop_word_is_found_across_tokens_and_no_part_of_it_is_given_out() {
        let Some(tokenizer) = tokenizer() else { return };
        for (text, stops, want, stopped) in [
            ("one two\n\nUser: three", &["\n\nUser:"][..], "one two", true),
            ("one two\n\nUsed: three", &["\n\nUser:"], "one two\n\nUsed: three", false),
            ("a ☕ b", &["☕"], "a ", true),
            ("ababac", &["abac"], "ab", true),
            ("one two\n\nUse", &["\n\nUser:"], "one two\n\nUse", false),
            ("x END y STOP", &["STOP", "END"], "x ", true),
        ] {
            let (pieces, found) = pieces(&tokenizer, text, stops);
            assert_eq!((pieces.concat().as_str(), found), (want, stopped), "{text:?}");
        }
        assert!(TextStream::new(&tokenizer, &[String::new()]).is_err());
    }
}

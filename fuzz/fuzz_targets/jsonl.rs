//! JSON Lines and plain text with a separator, as training data.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qat_fuzz::file;
use qat_train::data::{Corpus, Source};

fuzz_target!(|bytes: &[u8]| {
    let lines = file("data.jsonl", bytes);
    let text = file("data.txt", bytes);
    for (source, separator) in [
        (Source::Jsonl(lines), None),
        (Source::Text(text.clone()), None),
        (Source::Text(text), Some("<|endoftext|>")),
    ] {
        let Ok(corpus) = Corpus::new(vec![source], None, separator) else { continue };
        let mut documents = corpus.documents();
        let read: usize = documents.by_ref().map_while(Result::ok).map(|piece| piece.text.len()).sum();
        assert!(read <= 4 * bytes.len(), "{read} bytes of text from {}", bytes.len());
    }
});

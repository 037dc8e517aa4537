//! A Parquet file as training data.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qat_fuzz::{catch_panics, file};
use qat_train::data::{Corpus, Source};

fuzz_target!(init: catch_panics(), |bytes: &[u8]| {
    let Ok(corpus) = Corpus::new(vec![Source::Parquet(file("data.parquet", bytes))], None, None) else {
        return;
    };
    // What is compressed may well be longer than the file; an end has to come.
    let _ = corpus.documents().take(10_000).map_while(Result::ok).count();
});

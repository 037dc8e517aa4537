//! Token files: what is in them, when they are made again, and what is refused.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use qat_infer::files::load_tokenizer;

use super::super::{Corpus, Origin, Progress, Stage, Tokenization, Tokens};
use super::{Folder, texts};
use crate::{Error, Result, ranks::threads::together};

/// A tokenizer with one id for each of a few words; every other word is `[UNK]`, id 0.
const WORDS: &str = r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "unk_token": "[UNK]",
              "vocab": {"[UNK]": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}}}"#;

const VOCAB: usize = 10;

fn request<'a>(corpus: &'a Corpus, tokenizer: &'a Path) -> Tokenization<'a> {
    Tokenization { corpus, tokenizer, vocab_size: VOCAB, bos: None, eos: None }
}

fn make(request: &Tokenization<'_>, cache: &Path) -> Result<(Tokens, Origin)> {
    request.tokens(cache, &mut |_| ControlFlow::Continue(()))
}

fn ids(tokens: &Tokens) -> Vec<u32> {
    tokens.slice(0..tokens.len())
}

/// A folder with three documents in a.txt, and the word tokenizer.
fn three_documents() -> (Folder, Corpus, PathBuf) {
    let folder = Folder::new();
    folder.file("a.txt", "one two\n--\nthree\n--\nfour five six\n");
    let corpus = folder.corpus(&["a.txt"], Some("--"));
    let tokenizer = folder.file("tokenizer.json", WORDS);
    (folder, corpus, tokenizer)
}

/// The names of the files of a folder, sorted.
fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn several_ranks_make_the_file_that_one_makes_and_end_together() {
    let folder = Folder::new();
    let words = ["one", "two two", "three four", "five six one two"];
    let text: Vec<&str> = (0..5000).map(|i| words[i * i % 7 % 4]).collect();
    folder.file("a.txt", text.join("\n--\n"));
    let corpus = folder.corpus(&["a.txt"], Some("--"));
    let tokenizer = folder.file("tokenizer.json", WORDS);
    let request = Tokenization { eos: Some(9), ..request(&corpus, &tokenizer) };
    let [alone, shared, stopped] = ["alone", "shared", "stopped"].map(|name| folder.path().join(name));
    make(&request, &alone).unwrap();
    let found = together(3, |ranks| {
        let (tokens, _) = request.tokens_on(&ranks, &shared, &mut |_| ControlFlow::Continue(())).unwrap();
        ids(&tokens)
    });
    assert!(found.iter().all(|ids| *ids == found[0]));
    assert_eq!(listing(&alone), listing(&shared));
    let name = &listing(&alone)[0];
    assert!(std::fs::read(alone.join(name)).unwrap() == std::fs::read(shared.join(name)).unwrap());
    let ends = together(2, |ranks| {
        let mut stop_one = |progress: Progress| match (ranks.rank(), progress.stage) {
            (1, Stage::Tokenizing) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        matches!(request.tokens_on(&ranks, &stopped, &mut stop_one), Err(Error::Interrupted))
    });
    assert_eq!(
        (ends, listing(&stopped).len()),
        (vec![true, true], 2),
        "the part, and a note of how far it is"
    );
    let ends = together(2, |ranks| {
        let (tokens, origin) =
            request.tokens_on(&ranks, &stopped, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(matches!(origin, Origin::Continued { text_bytes: 1.. }), "{origin:?}");
        ids(&tokens) == found[0]
    });
    assert_eq!((ends, listing(&stopped)), (vec![true, true], listing(&alone)));
}

#[test]
fn marks_stand_before_and_after_each_document() {
    let (folder, corpus, tokenizer) = three_documents();
    let plain = request(&corpus, &tokenizer);
    let (tokens, origin) = make(&plain, folder.path()).unwrap();
    assert_eq!(origin, Origin::Made);
    assert_eq!(ids(&tokens), [1, 2, 3, 4, 5, 0]);
    let header = tokens.header();
    assert_eq!((header.tokens, header.documents, header.skipped, header.text_bytes), (6, 3, 0, 25));

    let marked = Tokenization { bos: Some(8), eos: Some(9), ..plain };
    let (tokens, _) = make(&marked, folder.path()).unwrap();
    assert_eq!(ids(&tokens), [8, 1, 2, 9, 8, 3, 9, 8, 4, 5, 0, 9]);
}

#[test]
fn a_long_document_has_its_marks_at_its_ends_only() {
    let folder = Folder::new();
    folder.file("a.txt", "one two\n\n".repeat(40_000));
    let corpus = folder.corpus(&["a.txt"], None);
    assert!(corpus.documents().count() > 5, "several pieces");
    let tokenizer = folder.file("tokenizer.json", WORDS);
    let request = Tokenization { bos: Some(8), eos: Some(9), ..request(&corpus, &tokenizer) };
    let (tokens, _) = make(&request, folder.path()).unwrap();
    let mut expected = vec![8];
    expected.extend([1, 2].repeat(40_000));
    expected.push(9);
    assert_eq!(ids(&tokens), expected);
    assert_eq!(tokens.header().documents, 1);
}

#[test]
fn large_vocabularies_take_four_bytes_an_id_and_small_ones_two() {
    let (folder, corpus, tokenizer) = three_documents();
    for (vocab_size, id_bytes, eos) in [(65_536, 2, 65_535), (65_537, 4, 65_536)] {
        let request = Tokenization { vocab_size, eos: Some(eos), ..request(&corpus, &tokenizer) };
        let (tokens, _) = make(&request, folder.path()).unwrap();
        assert_eq!(ids(&tokens), [1, 2, eos, 3, eos, 4, 5, 0, eos]);
        assert_eq!(std::fs::metadata(tokens.path()).unwrap().len(), 120 + 9 * id_bytes);
    }
}

#[test]
fn the_file_is_made_once_and_again_when_anything_that_decides_it_changes() {
    let (folder, corpus, tokenizer) = three_documents();
    let cache = folder.path().join("deep/cache");
    let first = request(&corpus, &tokenizer);
    assert_eq!(make(&first, &cache).unwrap().1, Origin::Made);
    assert_eq!(make(&first, &cache).unwrap().1, Origin::Reused);

    folder.file("same.txt", std::fs::read(folder.path().join("a.txt")).unwrap());
    let renamed = folder.corpus(&["same.txt"], Some("--"));
    assert_eq!(make(&request(&renamed, &tokenizer), &cache).unwrap().1, Origin::Reused, "names don't matter");

    folder.file("b.txt", "one two\n--\nthree\n--\nfour five seven\n");
    let twice = folder.corpus(&["a.txt", "a.txt"], Some("--"));
    let text = folder.corpus(&["b.txt"], Some("--"));
    let whole = folder.corpus(&["a.txt"], None);
    let other = folder.file("other.json", WORDS.replace("\"six\"", "\"seven\"").replace("five", "six"));
    let changed = [
        request(&twice, &tokenizer),
        request(&text, &tokenizer),
        request(&whole, &tokenizer),
        request(&corpus, &other),
        Tokenization { vocab_size: VOCAB + 1, ..first.clone() },
        Tokenization { bos: Some(1), ..first.clone() },
        Tokenization { eos: Some(1), ..first.clone() },
    ];
    for (number, request) in changed.iter().enumerate() {
        assert_eq!(make(request, &cache).unwrap().1, Origin::Made, "change {number}");
    }
    assert_eq!(listing(&cache).len(), 1 + changed.len());
}

#[test]
fn a_damaged_file_is_made_again_and_the_reason_is_told() {
    let (folder, corpus, tokenizer) = three_documents();
    let request = request(&corpus, &tokenizer);
    let cache = folder.path().join("cache");
    let (tokens, _) = make(&request, &cache).unwrap();
    let (path, expected) = (tokens.path().to_owned(), ids(&tokens));
    let good = std::fs::read(&path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let cases = [
        (good[..good.len() - 2].to_vec(), "10 bytes of ids, want 12"),
        ([good.as_slice(), &[0, 0]].concat(), "14 bytes of ids, want 12"),
        (good[..100].to_vec(), "100 bytes, too short for the header of a token file"),
        (vec![], "0 bytes, too short"),
        (flipped(0), "does not begin as a token file"),
        (flipped(8), "version 0, want 1 or 2"),
        (flipped(16), "the checksum does not match the content"),
        (flipped(33), "the checksum does not match the content"),
        (flipped(100), "the checksum does not match the content"),
        (flipped(good.len() - 1), "the checksum does not match the content"),
    ];
    for (bytes, expected_reason) in cases {
        std::fs::write(&path, bytes).unwrap();
        let message = Tokens::open(&path).unwrap_err().to_string();
        let (tokens, origin) = make(&request, &cache).unwrap();
        let Origin::Remade { reason } = origin else { panic!("want a remade file, found {origin:?}") };
        assert_eq!(reason, message);
        assert!(reason.ends_with(expected_reason) || expected_reason.ends_with("short"), "{reason}");
        assert_eq!(ids(&tokens), expected);
        assert_eq!(std::fs::read(&path).unwrap(), good, "made again to the bit");
    }
}

#[test]
fn a_file_under_the_name_of_another_is_not_used() {
    let (folder, corpus, tokenizer) = three_documents();
    let request = request(&corpus, &tokenizer);
    let (tokens, _) = make(&request, folder.path()).unwrap();
    let other = Tokenization { eos: Some(9), ..request };
    let (others, _) = make(&other, folder.path()).unwrap();
    std::fs::copy(tokens.path(), others.path()).unwrap();
    let (again, origin) = make(&other, folder.path()).unwrap();
    assert!(matches!(origin, Origin::Remade { reason } if reason.contains("tokens of another corpus")));
    assert_eq!(ids(&again).iter().filter(|&&id| id == 9).count(), 3);
}

/// Text of several batches of one thread, in the folder.
fn several_batches(folder: &Folder) -> (Corpus, PathBuf) {
    folder.file("a.txt", "one two three\n\n".repeat(250_000));
    folder.file("b.jsonl", "{\"text\": \"four five\"}\n{\"text\": null}\n".repeat(20_000));
    (folder.corpus(&["a.txt", "b.jsonl"], None), folder.file("tokenizer.json", WORDS))
}

/// Makes the tokens on one thread, and breaks off behind batch `last`.
fn broken_off(request: &Tokenization<'_>, cache: &Path, last: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let mut batches = 0;
    let mut progress = |progress: Progress| {
        batches += usize::from(progress.stage == Stage::Tokenizing);
        if batches == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = pool.install(|| request.tokens(cache, &mut progress)).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
}

#[test]
fn an_interrupted_tokenization_is_gone_on_with_to_the_same_file() {
    let folder = Folder::new();
    let (corpus, tokenizer) = several_batches(&folder);
    let request = Tokenization { eos: Some(9), ..request(&corpus, &tokenizer) };
    let (whole, _) = make(&request, &folder.path().join("whole")).unwrap();
    let wanted = std::fs::read(whole.path()).unwrap();
    for last in [1, 2, 3] {
        let cache = folder.path().join(last.to_string());
        broken_off(&request, &cache, last);
        let left = listing(&cache);
        assert!(
            left.len() == 2 && left[0].ends_with(".tokens.part") && left[1].ends_with(".part.json"),
            "{left:?}"
        );
        // Whatever was written behind the note is not trusted.
        let part = cache.join(&left[0]);
        let mut bytes = std::fs::read(&part).unwrap();
        bytes.extend([7; 99]);
        std::fs::write(&part, bytes).unwrap();
        let (tokens, origin) = make(&request, &cache).unwrap();
        assert!(matches!(origin, Origin::Continued { text_bytes } if text_bytes > 1_500_000), "{origin:?}");
        assert!(std::fs::read(tokens.path()).unwrap() == wanted, "to the bit");
        assert_eq!(listing(&cache).len(), 1, "nothing else stays");
    }
}

#[test]
fn what_is_left_of_a_file_is_not_used_when_it_is_damaged() {
    let folder = Folder::new();
    let (corpus, tokenizer) = several_batches(&folder);
    let request = request(&corpus, &tokenizer);
    let wanted = std::fs::read(make(&request, &folder.path().join("whole")).unwrap().0.path()).unwrap();
    let damages: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes[100_000] ^= 1, |bytes| bytes.truncate(200_000), |bytes| bytes.clear()];
    for (number, damage) in damages.iter().enumerate() {
        for victim in [".part", ".json"] {
            let cache = folder.path().join(format!("{number}{victim}"));
            broken_off(&request, &cache, 1);
            let name = listing(&cache).into_iter().find(|name| name.ends_with(victim)).unwrap();
            let mut bytes = std::fs::read(cache.join(&name)).unwrap();
            match victim {
                ".part" => damage(&mut bytes),
                _ => bytes.truncate(bytes.len() / (number + 2)),
            }
            std::fs::write(cache.join(&name), bytes).unwrap();
            let (tokens, origin) = make(&request, &cache).unwrap();
            assert_eq!(origin, Origin::Made);
            assert!(std::fs::read(tokens.path()).unwrap() == wanted);
            assert_eq!(listing(&cache).len(), 1);
        }
    }
}

#[test]
fn an_interruption_while_the_text_is_read_leaves_nothing() {
    let (folder, corpus, tokenizer) = three_documents();
    let cache = folder.path().join("cache");
    let mut seen = Vec::new();
    let error = request(&corpus, &tokenizer)
        .tokens(&cache, &mut |progress| {
            seen.push(progress);
            ControlFlow::Break(())
        })
        .unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert_eq!(seen, [Progress { stage: Stage::Reading, bytes_done: 34, bytes_total: 34, tokens: 0 }]);
    assert!(!cache.exists());
}

#[test]
fn two_who_want_one_file_make_it_once() {
    let (folder, corpus, tokenizer) = three_documents();
    let cache = folder.path().join("cache");
    let request = request(&corpus, &tokenizer);
    let (waits, is_waited_for) = std::sync::mpsc::channel();
    let origins = std::thread::scope(|scope| {
        let second = || {
            let mut heard = false;
            request.tokens(&cache, &mut |progress| {
                if progress.stage == Stage::Waiting && !std::mem::replace(&mut heard, true) {
                    waits.send(()).unwrap();
                }
                ControlFlow::Continue(())
            })
        };
        let mut second_thread = None;
        let (_, first) = request
            .tokens(&cache, &mut |progress| {
                if progress.stage == Stage::Tokenizing {
                    // The first has its part by now, and stays here until the second waits for it.
                    second_thread = Some(scope.spawn(second));
                    is_waited_for.recv().unwrap();
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        let (tokens, second) = second_thread.unwrap().join().unwrap().unwrap();
        assert_eq!(ids(&tokens), [1, 2, 3, 4, 5, 0]);
        [first, second]
    });
    assert_eq!(origins, [Origin::Made, Origin::Reused]);
    assert_eq!(listing(&cache).len(), 1);
}

#[test]
fn a_bad_source_leaves_nothing() {
    let folder = Folder::new();
    folder.file("a.txt", "one");
    folder.file("b.txt", b"\xff");
    let tokenizer = folder.file("tokenizer.json", WORDS);
    let corpus = folder.corpus(&["a.txt", "b.txt"], None);
    let cache = folder.path().join("cache");
    let message = make(&request(&corpus, &tokenizer), &cache).unwrap_err().to_string();
    assert!(message.contains("not UTF-8"), "{message}");
    assert_eq!(listing(&cache), Vec::<String>::new());
}

#[test]
fn parts_of_killed_writers_are_swept_when_they_are_old() {
    let (folder, corpus, tokenizer) = three_documents();
    let old = folder.file("0123.tokens.part", "half");
    let note = folder.file("0123.tokens.part.json", "{}");
    let orphan = folder.file("89ab.tokens.part.json", "{}");
    let fresh = folder.file("4567.tokens.78-0.part", "half");
    let held = folder.file("cdef.tokens.part", "half");
    let foreign = folder.file("notes.part", "mine");
    let weeks_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(15 * 86400);
    for path in [&old, &held, &foreign] {
        std::fs::File::options().write(true).open(path).unwrap().set_modified(weeks_ago).unwrap();
    }
    // By a process whose clock is right.
    let writer = std::fs::File::open(&held).unwrap();
    writer.lock().unwrap();
    for _ in 0..2 {
        let eos = if folder.path().join("once").exists() { Some(8) } else { Some(9) };
        make(&Tokenization { eos, ..request(&corpus, &tokenizer) }, folder.path()).unwrap();
        folder.file("once", "");
    }
    assert!(!old.exists() && !note.exists() && !orphan.exists());
    assert!(fresh.exists() && held.exists() && foreign.exists());
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let (folder, corpus, tokenizer) = three_documents();
    let message = |request: Tokenization<'_>| make(&request, folder.path()).unwrap_err().to_string();
    let request = request(&corpus, &tokenizer);
    let found = message(Tokenization { vocab_size: 5, ..request.clone() });
    assert!(found.contains("its highest token id is 5, but the model's vocabulary ends at 4"), "{found}");
    let found = message(Tokenization { eos: Some(10), ..request });
    assert_eq!(found, "eos: id 10 is outside the model's vocabulary (vocab_size 10)");
}

#[test]
fn an_empty_corpus_is_refused() {
    let folder = Folder::new();
    folder.file("a.jsonl", "{\"text\": null}\n{\"text\": \"\"}\n");
    let tokenizer = folder.file("tokenizer.json", WORDS);
    let corpus = folder.corpus(&["a.jsonl"], None);
    let cache = folder.path().join("cache");
    let message = make(&request(&corpus, &tokenizer), &cache).unwrap_err().to_string();
    assert!(
        message.ends_with("a.jsonl: no text in it (1 nulls were skipped); training and scoring need some")
    );
    assert_eq!(listing(&cache), Vec::<String>::new());
}

#[test]
fn a_cache_that_cannot_be_written_is_refused() {
    let (folder, corpus, tokenizer) = three_documents();
    let blocked = folder.file("file", "not a folder").join("cache");
    let message = make(&request(&corpus, &tokenizer), &blocked).unwrap_err().to_string();
    assert!(message.contains("file/cache: cannot make the folder"), "{message}");
}

#[test]
fn a_split_holds_out_whole_windows_at_the_end() {
    let folder = Folder::new();
    folder.file("a.txt", "one two three four five ".repeat(20));
    let corpus = folder.corpus(&["a.txt"], None);
    let tokenizer = folder.file("tokenizer.json", WORDS);
    let (tokens, _) = make(&request(&corpus, &tokenizer), folder.path()).unwrap();
    let lengths = |held_out, window| {
        let (train, held) = tokens.split(held_out, window).unwrap();
        assert_eq!([ids(&train), ids(&held)].concat(), ids(&tokens));
        (train.len(), held.len())
    };
    assert_eq!(lengths(0.0, 9), (100, 0));
    assert_eq!(lengths(0.01, 9), (91, 9), "at least one window");
    assert_eq!(lengths(0.3, 9), (73, 27));
    assert_eq!(lengths(0.5, 50), (50, 50));
    let (train, _) = tokens.split(0.3, 9).unwrap();
    assert_eq!(train.split(0.0, 9).unwrap().0.len(), 73, "a part can be split again");

    let refusal = |held_out, window| tokens.split(held_out, window).unwrap_err().to_string();
    assert_eq!(
        refusal(0.01, 51),
        "100 tokens, of which held_out 0.01 takes 51, leave less than one window of 51 tokens to train on; add \
         data, or lower the context or held_out"
    );
    for wrong in [1.0, -0.1, f64::NAN] {
        assert!(refusal(wrong, 9).starts_with("held_out: want a share of at least 0 and below 1"));
    }
}

/// Real text and the tokenizer of stories260K, when they are there.
fn stories() -> Option<(Folder, Corpus, PathBuf)> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let tokenizer = shared.join("weights/stories260K/tokenizer.json");
    let text = shared.join("text/tinystories_train.txt");
    if !tokenizer.exists() || !text.exists() {
        println!("SKIPPED: {} or {} is missing", tokenizer.display(), text.display());
        return None;
    }
    let folder = Folder::new();
    folder.file("a.txt", &std::fs::read(text).unwrap()[..1_000_000]);
    let corpus = folder.corpus(&["a.txt"], Some("<|endoftext|>"));
    Some((folder, corpus, tokenizer))
}

#[test]
fn tokens_are_those_of_encoding_each_document_by_itself() {
    let Some((folder, corpus, path)) = stories() else { return };
    let tokenizer = load_tokenizer(&path, 512).unwrap();
    let mut expected = Vec::new();
    for document in texts(&corpus) {
        expected.push(1);
        expected.extend_from_slice(tokenizer.encode(document, false).unwrap().get_ids());
        expected.push(2);
    }
    let request =
        Tokenization { corpus: &corpus, tokenizer: &path, vocab_size: 512, bos: Some(1), eos: Some(2) };
    let (tokens, _) = make(&request, folder.path()).unwrap();
    assert!(tokens.header().documents > 1000, "{:?}", tokens.header());
    assert!(ids(&tokens) == expected);
}

#[test]
fn one_thread_and_two_write_the_same_file() {
    let Some((folder, corpus, path)) = stories() else { return };
    let request =
        Tokenization { corpus: &corpus, tokenizer: &path, vocab_size: 512, bos: Some(1), eos: None };
    let bytes_with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let cache = folder.path().join(threads.to_string());
        let (tokens, _) = pool.install(|| make(&request, &cache)).unwrap();
        std::fs::read(tokens.path()).unwrap()
    };
    assert!(bytes_with(1) == bytes_with(2));
}

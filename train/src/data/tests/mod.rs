//! Tests of the data pipeline, from files on disk to batches.

mod batches;
mod chat;
mod jsonl;
// What of a map is in memory is asked of Linux.
#[cfg(target_os = "linux")]
mod large;
mod parquet;
mod text;
mod tokens;

use std::path::{Path, PathBuf};

use super::{Corpus, Piece, Source, stories};
use crate::Result;

/// A folder for one test.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file and gives its path.
    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A corpus of files of this folder.
    fn corpus(&self, names: &[&str], separator: Option<&str>) -> Corpus {
        let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        Corpus::new(Source::resolve(&names, self.path()).unwrap(), None, separator).unwrap()
    }
}

/// The documents of a corpus as whole texts.
fn texts(corpus: &Corpus) -> Vec<String> {
    joined(corpus.documents().collect::<Result<Vec<_>>>().unwrap())
}

fn joined(pieces: Vec<Piece>) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut inside = false;
    for piece in pieces {
        assert_eq!(piece.starts, !inside, "a document starts where the one before it ended");
        if piece.starts {
            texts.push(String::new());
        }
        texts.last_mut().unwrap().push_str(&piece.text);
        inside = !piece.ends;
    }
    assert!(!inside, "the last document ends");
    texts
}

/// The first error of a corpus.
fn failure(corpus: &Corpus) -> String {
    corpus.documents().find_map(Result::err).unwrap().to_string()
}

#[test]
fn several_files_are_joined_by_a_blank_line_and_one_is_verbatim() {
    let folder = Folder::new();
    folder.file("a.txt", "\n one \n\n");
    folder.file("b.txt", "two\r\n");
    assert_eq!(folder.corpus(&["a.txt"], None).read_text().unwrap().text, "\n one \n\n");
    let both = folder.corpus(&["b.txt", "a.txt"], None).read_text().unwrap();
    assert_eq!(both.text, "two\r\n\n\n\n one \n\n");
    let parts: String = folder.corpus(&["b.txt", "a.txt"], None).joined().map(Result::unwrap).collect();
    assert_eq!(parts, both.text, "part by part");
    assert_eq!(both.nats, None, "nobody knows the entropy of these files");
}

#[test]
fn stories_are_one_document_each_and_their_entropy_is_known() {
    let folder = Folder::new();
    let (one, two) = (stories::generate(1, 20_000), stories::generate(2, 5_000));
    let corpus = folder.corpus(&["stories:seed=1,bytes=20000", "stories:seed=2,bytes=5000"], None);
    let read = corpus.read_text().unwrap();
    assert_eq!(read.text, [one.text.as_str(), &two.text].concat());
    assert_eq!(read.nats, Some(one.nats + two.nats));
    let mut documents = corpus.documents();
    assert_eq!(documents.by_ref().count(), one.stories + two.stories);
    assert_eq!((documents.bytes_read(), corpus.bytes().unwrap()), (25_000, 25_000));

    folder.file("a.txt", "x");
    assert_eq!(folder.corpus(&["stories:bytes=1000", "a.txt"], None).read_text().unwrap().nats, None);
}

#[test]
fn a_corpus_without_text_is_refused() {
    let folder = Folder::new();
    folder.file("a.txt", "");
    folder.file("b.txt", " \n\n \n");
    folder.file("c.jsonl", "{\"text\": null}\n{\"text\": null}\n");
    let message = folder.corpus(&["a.txt", "b.txt"], None).read_text().unwrap_err().to_string();
    assert!(message.ends_with("b.txt: no text in it; training and scoring need some"), "{message}");
    let message = folder.corpus(&["c.jsonl"], None).read_text().unwrap_err().to_string();
    assert!(message.contains("no text in it (2 nulls were skipped)"), "{message}");
}

#[test]
fn an_empty_separator_is_refused() {
    let folder = Folder::new();
    let source = Source::Text(folder.file("a.txt", "x"));
    let message = Corpus::new(vec![source], None, Some("")).unwrap_err().to_string();
    assert!(message.starts_with("separator: an empty text separates nothing"), "{message}");
}

#[test]
fn the_bytes_read_grow_to_the_bytes_there_are() {
    let folder = Folder::new();
    folder.file("a.txt", "first<|>second<|>third");
    folder.file("b.jsonl", "{\"text\": \"fourth\"}\n\n{\"text\": \"fifth\"}");
    let corpus = folder.corpus(&["a.txt", "b.jsonl"], Some("<|>"));
    let mut documents = corpus.documents();
    let mut read = Vec::new();
    while documents.next().transpose().unwrap().is_some() {
        read.push(documents.bytes_read());
    }
    assert_eq!(read, [8, 17, 22, 41, 59]);
    assert_eq!(corpus.bytes().unwrap(), 59);
}

#[test]
fn another_reader_goes_on_at_every_place() {
    let folder = Folder::new();
    let paragraph = "Où est le café ? 雪が降る。 🦀 and so on, line after line,\nuntil it ends.\n\n";
    let words = "some words ".repeat(70_000);
    folder.file("a.txt", format!("{}\n==\n{words}\n==\nThe end.\n", paragraph.repeat(4000)));
    let line = |i: usize| match i % 3 {
        0 => "{\"text\": null}\n".to_owned(),
        1 => format!("\n{{\"text\": \"row {i}\"}}\n"),
        _ => format!("{{\"text\": \"{}\"}}\n", "é ".repeat(i)),
    };
    folder.file("b.jsonl", (0..40).map(line).collect::<String>());
    let texts: Vec<String> = (0..300).map(|i| format!("row {i}")).collect();
    let rows: Vec<Option<&str>> =
        texts.iter().enumerate().map(|(i, text)| Some(text.as_str()).filter(|_| i % 5 != 0)).collect();
    parquet::write_optional(
        &folder.path().join("c.parquet"),
        &[rows[..130].to_vec(), vec![], rows[130..].to_vec()],
    );
    let names = ["a.txt", "b.jsonl", "c.parquet", "stories:seed=3,bytes=20000"];
    for (names, separator) in
        names.map(|name| (vec![name], Some("=="))).into_iter().chain([(names.to_vec(), None)])
    {
        let corpus = folder.corpus(&names, separator);
        let mut documents = corpus.documents();
        let (mut pieces, mut places) = (Vec::new(), vec![documents.place().unwrap()]);
        while let Some(piece) = documents.next().transpose().unwrap() {
            pieces.push(piece);
            places.push(documents.place().unwrap());
        }
        let skipped = documents.skipped();
        assert!(pieces.len() > 3, "{names:?}");
        for (at, place) in places.iter().enumerate() {
            let mut rest = corpus.documents_from(*place);
            let found: Vec<Piece> = rest.by_ref().map(Result::unwrap).collect();
            assert!(found == pieces[at..], "{names:?} behind piece {at}");
            assert_eq!(
                (rest.skipped(), rest.bytes_read()),
                (skipped, documents.bytes_read()),
                "{names:?} {at}"
            );
        }
    }
}

#[test]
fn a_row_beyond_a_mebibyte_comes_in_pieces_as_a_text_does() {
    let folder = Folder::new();
    let text = "A line of words.\n\n".repeat(150_000);
    folder.file("a.txt", &text);
    folder.file("a.jsonl", serde_json::json!({ "text": text }).to_string());
    let pieces = |name: &str| folder.corpus(&[name], None).documents().collect::<Result<Vec<_>>>().unwrap();
    assert!(pieces("a.txt").len() > 20);
    assert_eq!(pieces("a.txt"), pieces("a.jsonl"));
    let corpus = folder.corpus(&["a.jsonl"], None);
    let mut documents = corpus.documents();
    documents.next();
    assert_eq!(documents.place(), None, "no reader of lines begins within one");
}

//! JSON Lines: texts, nulls and every way a line can be wrong.

use super::super::{Corpus, Source};
use super::{Folder, failure, texts};

#[test]
fn each_line_gives_one_document() {
    let folder = Folder::new();
    folder.file("a.jsonl", "{\"text\": \"one\\ntwo\", \"id\": 1}\n\n  {\"id\": 2, \"text\": \"caf\\u00e9\"}\r\n{\"text\":\"last\"}");
    assert_eq!(texts(&folder.corpus(&["a.jsonl"], Some("one"))), ["one\ntwo", "café", "last"]);
}

#[test]
fn another_field_can_hold_the_text() {
    let folder = Folder::new();
    let path = folder.file("a.jsonl", "{\"text\": 1, \"body\": \"here\"}\n");
    let corpus = Corpus::new(vec![Source::Jsonl(path)], Some("body"), None).unwrap();
    assert_eq!(texts(&corpus), ["here"]);
}

#[test]
fn nulls_are_skipped_and_counted() {
    let folder = Folder::new();
    folder.file("a.jsonl", "{\"text\": null}\n{\"text\": \"x\"}\n{\"text\": null}\n");
    let corpus = folder.corpus(&["a.jsonl"], None);
    let mut documents = corpus.documents();
    assert_eq!(documents.by_ref().count(), 1);
    assert_eq!(documents.skipped(), 2);
}

#[test]
fn a_bad_line_is_named_with_its_reason() {
    let good = "{\"text\": \"fine\"}\n\n";
    let cases: [(&[u8], &str); 6] = [
        (b"{\"text\": oops}", "line 3: not JSON: expected value at column 10"),
        (b"{\"text\": \"cut", "line 3: not JSON: EOF while parsing a string at column 13"),
        (b"[1, 2]", "line 3: want an object such as {\"text\": \"…\"}"),
        (b"{\"text\": 7}", "line 3: field \"text\" is not a string"),
        (b"{\"body\": \"x\", \"id\": 1}", "line 3: no field \"text\"; present are \"body\", \"id\""),
        (b"{\"text\": \"\xff\"}", "line 3: not UTF-8 at byte 28 of the file; convert it to UTF-8"),
    ];
    for (line, expected) in cases {
        let folder = Folder::new();
        folder.file("a.jsonl", [good.as_bytes(), line, b"\n"].concat());
        let message = failure(&folder.corpus(&["a.jsonl"], None));
        assert!(message.ends_with(&format!("a.jsonl: {expected}")), "{message}");
    }
}

//! `qat data tokenize`: token files before they are needed, and what is left when that is broken off.

use std::fs;

use crate::workshop::{Said, Workshop, send, wait_for};

/// Names in the token cache.
fn cache(shop: &Workshop) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(shop.path("cache"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_tokens_of_a_recipe_are_made_once_and_trained_on() {
    let shop = Workshop::furnished();
    let said = shop.done("data tokenize tiny.toml");
    for part in ["tokens", "documents", "bytes, 1.00 a token", "cache", "memory of the process"] {
        assert!(said.out.contains(part), "{part:?}: {said:?}");
    }
    let files = cache(&shop);
    assert!(files.len() == 1 && files[0].ends_with(".tokens"), "{files:?}");
    let made = |name: &String| {
        fs::metadata(shop.path("cache").join(name)).expect("there").modified().expect("a time")
    };
    let before = made(&files[0]);
    shop.done("train tiny.toml --out run");
    shop.done("data tokenize tiny.toml");
    assert_eq!(cache(&shop), files, "no other file was needed");
    assert_eq!(made(&files[0]), before, "nor was it made again");
}

#[test]
fn the_library_by_itself_is_a_measure_of_plain_text() {
    let shop = Workshop::furnished();
    shop.text("long.txt", 100_000);
    // On one thread the text is several batches.
    let mut command = shop.command("data tokenize --bench --model teacher long.txt".split(' '));
    command.env("RAYON_NUM_THREADS", "1");
    let said = Said::of(command);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("library alone") && said.out.contains("MB a core-second"), "{said:?}");
    assert!(said.out.contains("of that here"), "{said:?}");
    shop.write("chat.jsonl", "{\"prompt\": \"Who?\", \"response\": \"Anna.\"}\n");
    shop.refused(
        "data tokenize --bench --model teacher --template plain chat.jsonl",
        &["--bench", "measures plain text"],
    );
}

#[test]
fn tokenizing_that_is_stopped_is_gone_on_with() {
    let shop = Workshop::furnished();
    let tokenize = "data tokenize --model teacher stories:seed=1,bytes=30000000";
    let stopped = |line: &str, code: &str| {
        let child = shop.command(line.split(' ')).spawn().expect("the tool starts");
        wait_for(|| cache(&shop).iter().any(|name| name.ends_with(".part")));
        send("INT", &child);
        let said = Said::from(child.wait_with_output().expect("ended"));
        assert_eq!(said.code, Some(130), "{said:?}");
        assert!(said.err.contains(code), "{said:?}");
    };
    stopped(tokenize, "the same command goes on with it");
    let left = cache(&shop);
    assert!(left.len() == 2 && left[0].ends_with(".part") && left[1].ends_with(".part.json"), "{left:?}");
    let said = shop.done(tokenize);
    assert!(said.err.contains("went on tokenizing behind the first"), "{said:?}");
    let files = cache(&shop);
    assert!(files.len() == 1 && files[0].ends_with(".tokens"), "{files:?}");
}

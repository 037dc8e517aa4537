//! What is fetched, and what is not fetched again.

use std::fs;

use crate::{
    Bench, model,
    server::{Accidents, commit},
    weights,
};
use qat_hub::{Hub, Part, Settings};

#[test]
fn a_model_lies_in_the_cache_as_huggingface_hub_lays_it() {
    let bench = Bench::new();
    bench.add_model("a/b");
    let found = bench.model("hf://a/b").expect("fetched");
    let repo = bench.folder.path().join("models--a--b");
    let snapshot = repo.join("snapshots").join(commit('a'));
    assert_eq!((found.paths, found.commit, found.note), (vec![snapshot.clone()], commit('a'), None));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).expect("a ref"), commit('a'));
    assert_eq!(fs::read(snapshot.join("model.safetensors")).expect("weights"), weights(1, 300_000));
    let mut names: Vec<_> = fs::read_dir(&snapshot)
        .expect("listed")
        .map(|e| e.expect("listed").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    assert_eq!(names, ["README.md", "config.json", "model.safetensors", "tokenizer.json"], "and no pickle");
    if cfg!(unix) {
        let link = fs::read_link(snapshot.join("config.json")).expect("a link");
        assert!(link.starts_with("../../blobs"), "{link:?}");
    }
}

#[test]
fn what_is_here_is_not_fetched_again() {
    let bench = Bench::new();
    bench.add_model("a/b");
    bench.model("hf://a/b").expect("fetched");
    bench.server.seen();
    bench.model("hf://a/b").expect("here");
    let lines: Vec<_> = bench.server.seen().into_iter().map(|request| request.line).collect();
    assert_eq!(lines, ["GET /api/models/a/b/revision/main HTTP/1.1"], "only whether main has moved");
    bench.model(&format!("hf://a/b@{}", commit('a'))).expect("here");
    assert!(bench.server.seen().is_empty(), "a commit never moves");
    // The same contents under another revision are links to the same blobs.
    bench.model("hf://a/b@v1").expect("linked");
    assert!(
        bench
            .server
            .seen()
            .iter()
            .all(|request| request.line.starts_with("HEAD") || request.line.contains("/api/"))
    );
}

#[test]
fn a_cut_connection_goes_on_where_it_stood() {
    let bench = Bench::new();
    bench.add_model("a/b");
    bench.server.accidents(Accidents { cut: Some(70_000), ..Accidents::default() });
    let mut heard = Vec::new();
    let hub = Hub::new(bench.settings()).expect("a hub");
    let reference = "hf://a/b".parse().expect("a reference");
    let found = hub
        .model(&reference, Part::Whole, &mut |p| {
            if p.file == "model.safetensors" {
                heard.push((p.done, p.total))
            }
        })
        .expect("fetched");
    assert_eq!(fs::read(found.paths[0].join("model.safetensors")).expect("weights"), weights(1, 300_000));
    let ranges: Vec<_> =
        bench.server.seen().into_iter().filter(|r| r.host == "store").map(|r| r.range).collect();
    assert_eq!(ranges, [None, Some(70_000), Some(140_000), Some(210_000), Some(280_000)]);
    assert!(heard.is_sorted() && heard.last() == Some(&(300_000, Some(300_000))), "{heard:?}");
}

#[test]
fn a_process_that_was_killed_leaves_a_part_that_the_next_one_goes_on_with() {
    let bench = Bench::new();
    bench.add_model("a/b");
    // Cut before anything new arrives: what a dead network looks like.
    bench.server.accidents(Accidents { cut: Some(100_000), no_ranges: true, ..Accidents::default() });
    let message = bench.model("hf://a/b").expect_err("broken off").to_string();
    assert!(message.contains("127.0.0.1"), "{message}");
    bench.server.accidents(Accidents::default());
    bench.server.seen();
    let found = bench.model("hf://a/b").expect("fetched");
    assert_eq!(fs::read(found.paths[0].join("model.safetensors")).expect("weights"), weights(1, 300_000));
    let ranges: Vec<_> =
        bench.server.seen().into_iter().filter(|r| r.host == "store").map(|r| r.range).collect();
    assert_eq!(ranges, [Some(100_000)]);
}

#[test]
fn a_server_without_ranges_and_one_that_is_busy_are_borne() {
    let bench = Bench::new();
    bench.add_model("a/b");
    let part = bench.folder.path().join("models--a--b/blobs");
    fs::create_dir_all(&part).expect("a folder");
    bench.server.accidents(Accidents { busy: 3, no_ranges: true, ..Accidents::default() });
    let found = bench.model("hf://a/b").expect("fetched");
    assert_eq!(fs::read(found.paths[0].join("model.safetensors")).expect("weights"), weights(1, 300_000));
}

#[test]
fn a_damaged_part_is_noticed_and_fetched_anew() {
    let bench = Bench::new();
    bench.add_model("a/b");
    bench.server.accidents(Accidents { cut: Some(100_000), no_ranges: true, ..Accidents::default() });
    bench.model("hf://a/b").expect_err("broken off");
    let blobs = bench.folder.path().join("models--a--b/blobs");
    let part = fs::read_dir(&blobs).expect("listed").map(|e| e.expect("listed").path());
    let part =
        part.into_iter().find(|path| path.extension().is_some_and(|e| e == "incomplete")).expect("a part");
    fs::write(&part, vec![0; 50_000]).expect("written");
    bench.server.accidents(Accidents::default());
    let found = bench.model("hf://a/b").expect("fetched");
    assert_eq!(fs::read(found.paths[0].join("model.safetensors")).expect("weights"), weights(1, 300_000));
}

#[test]
fn shards_come_by_their_index_and_files_in_folders_are_linked() {
    let bench = Bench::new();
    let index = r#"{"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}}"#;
    let files = [
        ("deep/er/config.json", b"{}".to_vec()),
        ("deep/er/model-00001-of-00002.safetensors", weights(1, 100)),
        ("deep/er/model-00002-of-00002.safetensors", weights(2, 100)),
        ("deep/er/model-00003-of-00002.safetensors", weights(3, 100)),
        ("deep/er/model.safetensors.index.json", index.into()),
    ];
    bench.server.add("a/b", files);
    let found = bench.model("hf://a/b/deep/er").expect("fetched");
    let place = &found.paths[0];
    assert!(place.ends_with("deep/er"));
    assert_eq!(fs::read(place.join("model-00002-of-00002.safetensors")).expect("a shard"), weights(2, 100));
    assert!(!place.join("model-00003-of-00002.safetensors").exists(), "nothing that the index doesn't list");
}

#[test]
fn a_renamed_repository_is_followed_and_data_comes_by_pattern() {
    let bench = Bench::new();
    let files = [
        ("README.md", b"x".to_vec()),
        ("data/test 1.parquet", weights(3, 50)),
        ("data/train-0.parquet", weights(1, 50)),
        ("data/train-1.parquet", weights(2, 50)),
    ];
    bench.server.add("datasets/a/b", files);
    bench.server.rename("datasets/old/b", "datasets/a/b");
    let found = bench.data("hf://datasets/old/b/data/train-*.parquet").expect("fetched");
    let names: Vec<_> =
        found.paths.iter().map(|p| p.file_name().expect("a name").to_str().expect("UTF-8")).collect();
    assert_eq!(names, ["train-0.parquet", "train-1.parquet"]);
    assert_eq!(fs::read(&found.paths[1]).expect("read"), weights(2, 50));
    let found = bench.data("hf://datasets/a/b@v1/data/test 1.parquet").expect("fetched");
    assert_eq!((found.paths.len(), found.commit), (1, commit('b')));
}

#[test]
fn offline_the_cache_does_and_a_dead_hub_is_said() {
    let bench = Bench::new();
    bench.add_model("a/b");
    bench.model("hf://a/b").expect("fetched");
    bench.server.seen();
    let offline = Settings { offline: true, ..bench.settings() };
    let found = model(offline.clone(), "hf://a/b").expect("here");
    assert_eq!((found.commit, found.note), (commit('a'), None));
    assert!(bench.server.seen().is_empty());
    let message = model(offline, "hf://a/c").expect_err("not here").to_string();
    assert!(
        message.starts_with("hf://a/c: is not in the cache (") && message.contains("HF_HUB_OFFLINE"),
        "{message}"
    );
    // A port that nobody listens on.
    let dead = Settings { endpoint: "http://127.0.0.1:9".to_owned(), ..bench.settings() };
    let found = model(dead.clone(), "hf://a/b").expect("here");
    assert!(found.note.expect("a note").contains("is taken from the cache, as of commit aaaa"));
    let message = model(dead, "hf://a/c").expect_err("not here").to_string();
    assert!(message.starts_with("http://127.0.0.1:9/api/models/a/c/revision/main: "), "{message}");
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let bench = Bench::new();
    bench.add_model("a/b");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| bench.model("hf://a/b").expect("fetched"));
        }
    });
    let fetched = bench.server.seen().into_iter().filter(|request| request.host == "store").count();
    assert_eq!(fetched, 1);
}

//! What can't be had is said so that one knows what to do.

use crate::{Bench, model, server::Accidents};

fn refused(bench: &Bench, reference: &str) -> String {
    bench.model(reference).expect_err("refused").to_string()
}

#[test]
fn what_is_not_there_is_named() {
    let bench = Bench::new();
    bench.add_model("a/b");
    let message = refused(&bench, "hf://a/missing");
    assert!(
        message.starts_with("hf://a/missing: a/missing is private, or there is no such repository"),
        "{message}"
    );
    assert!(message.contains("there is no token: set HF_TOKEN"), "{message}");
    assert!(refused(&bench, "hf://a/b@v9").contains("a/b has no revision v9"));
    assert!(
        refused(&bench, "hf://a/b/model.bin")
            .contains("the repository has no model.bin; it has README.md, config.json")
    );
    assert!(refused(&bench, "hf://a/b/../c").contains("the path leads out of the repository"));
}

#[test]
fn a_gated_repository_says_where_its_conditions_are() {
    let bench = Bench::new();
    bench.add_model("a/b");
    bench.server.change("a/b", |repo| repo.gated = true);
    let message = refused(&bench, "hf://a/b");
    assert!(
        message.contains(&format!("a/b is gated: accept its conditions at {}/a/b", bench.server.endpoint)),
        "{message}"
    );
    assert!(message.contains("(the hub says: Access to this model is restricted)"), "{message}");
    let message = model(bench.with_token("mine"), "hf://a/b").expect_err("refused").to_string();
    assert!(message.contains("the token from HF_TOKEN is not enough"), "{message}");
}

#[test]
fn a_token_opens_and_is_shown_to_the_hub_alone() {
    let bench = Bench::new();
    bench.add_model("a/b");
    bench.server.change("a/b", |repo| repo.token = Some("secret".to_owned()));
    let message = model(bench.with_token("wrong"), "hf://a/b").expect_err("refused").to_string();
    assert!(
        message.contains("the hub doesn't accept the token (the hub says: Invalid credentials"),
        "{message}"
    );
    assert!(!message.contains("wrong"), "a token is never printed: {message}");
    bench.server.seen();
    model(bench.with_token("secret"), "hf://a/b").expect("fetched");
    for request in bench.server.seen() {
        assert_eq!(request.authorization.is_some(), request.host == "hub", "{request:?}");
    }
}

#[test]
fn damage_that_comes_back_is_an_error_and_nothing_is_kept() {
    let bench = Bench::new();
    bench.add_model("a/b");
    bench.server.accidents(Accidents { damaged: true, ..Accidents::default() });
    let message = refused(&bench, "hf://a/b");
    assert!(message.starts_with("hf://a/b: model.safetensors: arrived damaged twice (SHA-256 "), "{message}");
    let blobs = std::fs::read_dir(bench.folder.path().join("models--a--b/blobs")).expect("listed");
    let kept: Vec<_> = blobs.map(|e| e.expect("listed").path()).filter(|p| p.extension().is_some()).collect();
    assert!(kept.is_empty(), "{kept:?}");
    bench.server.accidents(Accidents::default());
    bench.model("hf://a/b").expect("fetched");
}

#[test]
fn a_server_that_is_no_hub_is_refused() {
    let bench = Bench::new();
    bench.server.add("a/b", [("config.json", b"{}".to_vec())]);
    bench.server.change("a/b", |repo| {
        repo.revisions.insert("main".to_owned(), "../../../etc".to_owned());
    });
    let message = refused(&bench, "hf://a/b");
    assert!(message.contains("\"../../../etc\" is no commit"), "{message}");
    let settings = qat_hub::Settings { endpoint: "huggingface.co".to_owned(), ..bench.settings() };
    let message = model(settings, "hf://a/b").expect_err("refused").to_string();
    assert!(message.contains("HF_ENDPOINT = huggingface.co"), "{message}");
}

//! `hf://…` as users type it: recipes and commands that name models and texts of a hub, which is on this machine here.

#[allow(dead_code, reason = "the tests of the transfers themselves use the rest")]
#[path = "../hub/tests/server.rs"]
mod server;

use std::{fs, process::Command};

use serde_json::Value;

use self::server::{Accidents, Server, commit};
use crate::{
    model::RECIPE,
    workshop::{Said, Workshop},
};

/// A furnished workshop, and a hub that has its model and its text.
struct Town {
    shop: Workshop,
    server: Server,
}

impl Town {
    fn new() -> Self {
        let (shop, server) = (Workshop::furnished(), Server::start());
        let files = ["config.json", "model.safetensors", "tokenizer.json"];
        let mut model: Vec<(&str, Vec<u8>)> =
            files.iter().map(|name| (*name, shop.read(format!("teacher/{name}")))).collect();
        model.push(("README.md", b"---\nlicense: mit\n---\n".to_vec()));
        server.add("maker/tiny", model);
        server.add("datasets/maker/stories", [("data/train.txt", shop.read("train.txt"))]);
        Self { shop, server }
    }

    /// The tool in a fresh environment: this hub, a cache in the folder of tokens, nobody's token.
    fn command(&self, line: &str) -> Command {
        let mut command = self.shop.command(line.split_whitespace());
        for name in
            ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]
        {
            command.env_remove(name);
        }
        for name in
            ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
        {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.server.endpoint).env("HF_HOME", self.shop.path("cache/huggingface"));
        command
    }

    fn done(&self, line: &str) -> Said {
        let said = Said::of(self.command(line));
        assert_eq!(said.code, Some(0), "{line}\n{said:?}");
        said
    }

    fn recipe(&self) -> String {
        RECIPE
            .replace("\"teacher\"", "\"hf://maker/tiny\"")
            .replace("\"train.txt\"", "\"hf://datasets/maker/stories/data/*.txt\"")
    }
}

#[test]
fn a_recipe_trains_from_the_hub_and_goes_on_with_the_commit_that_it_began_with() {
    let town = Town::new();
    town.shop.write("far.toml", town.recipe());
    town.done("train tiny.toml --out near");
    town.done("train far.toml --out far");
    let losses = |run: &str| -> Vec<Value> {
        let log = String::from_utf8(town.shop.read(format!("{run}/log.jsonl"))).expect("text");
        log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["loss"].clone()).collect()
    };
    assert_eq!(losses("near"), losses("far"), "the same files are the same run");
    let steps: Vec<_> = fs::read_dir(town.shop.path("far/checkpoints")).expect("listed").collect();
    let kept =
        fs::read_to_string(steps[0].as_ref().expect("listed").path().join("state.json")).expect("a state");
    assert!(kept.contains(&format!("hf://maker/tiny@{}", commit('a'))), "{kept}");
    assert!(!kept.contains("snapshots"), "no place of this machine: {kept}");
    // main moves on to a model that is none; the run keeps its own.
    town.server.change("maker/tiny", |repo| {
        repo.revisions.insert("main".to_owned(), commit('c'));
        repo.files.insert("config.json".to_owned(), b"{}".to_vec());
    });
    town.done("train far.toml --out far --resume");
    let said = Said::of(town.command("train far.toml --out other"));
    assert_eq!(said.code, Some(2), "{said:?}");
    let mut offline = town.command("train far.toml --out far --resume");
    offline.env("HF_HUB_OFFLINE", "1").env("HF_ENDPOINT", "http://127.0.0.1:9");
    assert_eq!(Said::of(offline).code, Some(0));
}

#[test]
fn commands_take_models_and_texts_of_the_hub() {
    let town = Town::new();
    let text = "hf://datasets/maker/stories/data/train.txt";
    let said = town.done(&format!("eval hf://maker/tiny --data {text} --ctx 32 --json far.json"));
    assert!(said.out.contains("perplexity"), "{}", said.out);
    town.done("eval teacher --data train.txt --ctx 32 --json near.json");
    let [far, near] =
        ["far.json", "near.json"].map(|name| town.shop.json(name)["cross_entropy_nats"].clone());
    assert_eq!(far, near);
    town.done("generate hf://maker/tiny@v1 --prompt a --tokens 2");
    let packed = "export hf://maker/tiny --format qat --weights int4-g32 --out packed";
    town.done(packed);
    assert_eq!(town.shop.json("packed/manifest.json")["source"]["base"]["name"], "maker/tiny");
    assert_eq!(town.shop.json("packed/manifest.json")["source"]["base"]["license"], "mit");
}

#[test]
fn a_plan_needs_no_weights() {
    let town = Town::new();
    // Weights that nobody could fetch.
    town.server.change("maker/tiny", |repo| {
        repo.files.insert("model.safetensors".to_owned(), vec![0; 1 << 20]);
    });
    town.server.accidents(Accidents { damaged: true, ..Accidents::default() });
    let said = town.done("plan hf://maker/tiny --format int4-g32");
    assert!(said.out.contains("KV cache") || said.out.contains("context"), "{}", said.out);
    town.shop.write("far.toml", town.recipe());
    town.done("plan far.toml");
    assert!(town.server.seen().iter().all(|request| request.host == "hub"));
}

#[test]
fn what_the_hub_refuses_is_said_and_leaves_nothing_behind() {
    let town = Town::new();
    let refused = |line: &str, parts: &[&str]| town.shop.refusal(town.command(line), parts);
    refused(
        "generate hf://maker/none --prompt a",
        &["maker/none is private, or there is no such repository", "HF_TOKEN"],
    );
    refused("generate hf://maker --prompt a", &["maker is private, or there is no such repository"]);
    refused(
        "generate hf://maker/tiny/x.gguf --prompt a",
        &["the repository has no x.gguf", "model.safetensors"],
    );
    let recipe = town.recipe().replace("hf://maker/tiny", "hf://maker/tiny@v9");
    town.shop.write("far.toml", recipe);
    refused("train far.toml --out run", &["student.from", "maker/tiny has no revision v9"]);
    let mut command = town.command("generate hf://maker/tiny --prompt a");
    command.env("HF_HUB_OFFLINE", "1");
    town.shop.refusal(command, &["hf://maker/tiny: is not in the cache", "HF_HUB_OFFLINE"]);
}

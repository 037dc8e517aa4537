//! Chat data as users have it: shown, trained on, refused by line.

use std::{fs, path::Path};

use crate::{
    model::RECIPE,
    workshop::{Said, Workshop},
};

/// Questions that end at a line end, answers at the mark that the model knows.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '<|end|>' if m.role == 'assistant' else '' }}\n\
                        {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

/// A furnished workshop with a model that has a chat template, and conversations.
fn furnished() -> Workshop {
    let shop = Workshop::furnished();
    shop.write("teacher/chat_template.jinja", TEMPLATE);
    let colours = ["red", "green", "blue", "amber"];
    let row = |i: usize| {
        let (asked, answered) = (format!("Who likes {}?", colours[i % 4]), format!("Anna number {i}."));
        match i % 3 {
            0 => format!("{{\"prompt\": \"{asked}\", \"response\": \"{answered}\"}}\n"),
            1 => format!("{{\"instruction\": \"{asked}\", \"input\": \"\", \"output\": \"{answered}\"}}\n"),
            _ => format!(
                "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{asked}\"}}, {{\"role\": \"assistant\", \"content\": \"{answered}\"}}]}}\n"
            ),
        }
    };
    shop.write("chat.jsonl", (0..120).map(row).collect::<String>());
    let recipe = RECIPE.replace(
        "train = [\"train.txt\"]\nctx = 32",
        "train = [\"chat.jsonl\"]\nformat = \"chat\"\nctx = 100\nheld_out = 0.2",
    );
    shop.write("chat.toml", recipe.replace("forward_kl = 1.0", "forward_kl = 1.0\ncross_entropy = 1.0"));
    shop
}

/// The bytes of the weights that a run has come to.
fn weights(shop: &Workshop, run: &str) -> Vec<u8> {
    let newest = fs::read_dir(shop.path(run).join("checkpoints"))
        .expect("listed")
        .map(|e| e.expect("listed").path())
        .max();
    fs::read(newest.expect("a checkpoint").join("model.safetensors")).expect("weights")
}

#[test]
fn conversations_are_shown_with_what_is_learned_of_them() {
    let shop = furnished();
    let said = shop.done("data show chat.jsonl --model teacher --ctx 100 --windows 1");
    // The first window that was full is the first of the file.
    let want = "── window 1: 101 tokens, 34 learned ──\nuser: Who likes blue?\nassistant:⟦ Anna number 10.<|end|>⟧\n\n\
                ── next document ──\nuser: Who likes amber?\nassistant:⟦ Anna number 11.<|end|>⟧\n\n";
    assert!(said.out.starts_with(want), "{}", said.out);
    assert!(said.out.contains("documents cut") && said.out.contains("120"), "{}", said.out);
    let same = shop.done("data show chat.toml --windows 1");
    assert!(same.out.starts_with(want), "{}", same.out);
    let all = shop.done("data show chat.toml --windows 1 --set data.learn=all");
    assert!(all.out.contains("u⟦ser: Who likes blue?\nassistant: Anna number 10.<|end|>\n⟧"), "{}", all.out);
    let text = shop.done("data show train.txt --model teacher --ctx 32 --windows 1");
    assert!(text.out.contains("── window 1: 32 tokens, 32 learned ──\n⟦The fox"), "{}", text.out);
}

#[test]
fn a_model_learns_answers_and_a_stopped_run_ends_with_the_same_bits() {
    let shop = furnished();
    let said = shop.done("train chat.toml --out whole");
    assert!(
        said.err.contains("120 conversations,") && said.err.contains("% are learned, in"),
        "{}",
        said.err
    );
    shop.done("train chat.toml --out parts");
    // As if it had been killed after its first checkpoint.
    let checkpoints = shop.path("parts/checkpoints");
    let newest = fs::read_dir(&checkpoints).expect("listed").map(|e| e.expect("listed").path()).max();
    fs::remove_dir_all(newest.expect("a checkpoint")).expect("removed");
    shop.done("train chat.toml --out parts --resume");
    assert_eq!(weights(&shop, "whole"), weights(&shop, "parts"));
    shop.done("train chat.toml --out all --set data.learn=all");
    assert_ne!(weights(&shop, "whole"), weights(&shop, "all"));
}

#[test]
fn a_cached_teacher_says_the_same_of_answers_as_one_at_hand() {
    let shop = furnished();
    let losses = |run: &str| -> Vec<f64> {
        let log = String::from_utf8(shop.read(format!("{run}/log.jsonl"))).expect("text");
        let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        log.lines().map(line).filter_map(|line| line["loss"].as_f64()).collect()
    };
    shop.write(
        "kept.toml",
        String::from_utf8(shop.read("chat.toml"))
            .expect("text")
            .replace("model = \"teacher\"", "model = \"teacher\"\ncache = \"kept\"\ntop_k = 200"),
    );
    shop.done("train kept.toml --out kept-run");
    shop.done("train chat.toml --out at-hand");
    // Windows come in another order; the first loss is over others, but of the same kind.
    let [kept, at_hand] = ["kept-run", "at-hand"].map(losses);
    assert_eq!(kept.len(), at_hand.len());
    for (kept, at_hand) in kept.iter().zip(&at_hand) {
        assert!((kept - at_hand).abs() < 0.3 * at_hand, "{kept} and {at_hand}");
    }
}

#[test]
fn what_can_not_be_learned_from_is_refused_before_anything_is_trained() {
    let shop = furnished();
    let refused =
        |sets: &str, parts: &[&str]| shop.refused(&format!("train chat.toml --out run {sets}"), parts);
    shop.write("bad.jsonl", "{\"prompt\": \"a\", \"response\": \"b\"}\n{\"prompt\": \"a\"}\n");
    refused(
        "--set data.train=[\"bad.jsonl\"]",
        &["bad.jsonl: line 2: no layout of chat data has these fields: \"prompt\""],
    );
    refused(
        "--set data.train=[\"train.txt\"]",
        &["train.txt: data.format = \"chat\" reads rows (.jsonl, .parquet)"],
    );
    refused(
        "--set data.template=nowhere.jinja",
        &["data.template = \"nowhere.jinja\": want model, plain or the file"],
    );
    refused(
        "--set loss.hidden=1",
        &["loss.hidden, loss.relations", "leave it out with data.format = \"chat\""],
    );
    fs::remove_file(shop.path("teacher/chat_template.jinja")).expect("removed");
    refused("", &["data.template = \"model\": the model has no chat template"]);
    shop.refused("data show chat.jsonl", &["chat.jsonl: say whose tokens it becomes with --model DIR"]);
}

#[test]
fn real_conversations_are_read() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    if !shared.exists() {
        eprintln!("SKIPPED: {} is not there", shared.display());
        return;
    }
    let shop = Workshop::new();
    let model = shared.join("data/weights/stories260K");
    for (file, documents) in
        [("dolly_hhrlhf_1000", "1,000"), ("gsm8k_train_1500", "1,500"), ("self_instruct_seed_175", "175")]
    {
        let data = shared.join(format!("data/instruct/{file}.jsonl"));
        let line = ["data", "show", "--template", "plain", "--ctx", "500", "--windows", "1", "--model"];
        let mut command = shop.command(line);
        command.arg(&model).arg(&data);
        let said = Said::of(command);
        assert_eq!(said.code, Some(0), "{said:?}");
        let told =
            said.out.lines().find(|line| line.trim_start().starts_with("documents ")).expect("a count");
        assert!(told.contains(documents) || said.out.contains("left out"), "{file}: {told}\n{}", said.out);
    }
}

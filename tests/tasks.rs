//! `qat eval --tasks`: what it reports, what gates make of it, and rows that it refuses.

use serde_json::{Value, json};

use crate::workshop::Workshop;

const ROWS: [&str; 3] = [
    r#"{"goal": "open it", "sol1": "push", "sol2": "pull hard", "label": 0}"#,
    r#"{"goal": "shut it", "sol1": "pull", "sol2": "pull twice", "label": 1}"#,
    r#"{"query": "Question: lift it\n", "choices": ["up", "down"], "gold": 0}"#,
];

/// A workshop with the model `model` and rows of two tasks.
fn with_rows() -> Workshop {
    let shop = Workshop::new();
    shop.model("model");
    shop.write("rows/piqa.jsonl", ROWS.join("\n\n") + "\n");
    shop.write("rows/lambada_openai.jsonl", "{\"text\": \"the moon and the moon\"}\n{\"text\": \"a b c\"}\n");
    shop
}

/// Lines of a file of JSON objects.
fn lines(shop: &Workshop, name: &str) -> Vec<Value> {
    let text = String::from_utf8(shop.read(name)).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// ln of the probability of the text after its first `context` bytes, from what `qat logits` writes: a byte is a token here.
fn log_likelihood(shop: &Workshop, text: &str, context: usize) -> f64 {
    let ids = text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(",");
    shop.done(&format!("logits model --ids {ids} --device cpu --out logits.safetensors"));
    let file = shop.read("logits.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&file).expect("safetensors");
    let logits = tensors.tensor("logits").expect("logits");
    let vocab = logits.shape()[1];
    let values: Vec<f64> =
        logits.data().as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect();
    let of = |at: usize| {
        let row = &values[(at - 1) * vocab..at * vocab];
        let all: f64 = row.iter().map(|logit| logit.exp()).sum();
        row[usize::from(text.as_bytes()[at])] - all.ln()
    };
    (context..text.len()).map(of).sum()
}

#[test]
fn log_likelihoods_are_those_of_the_logits_and_scores_follow_from_them() {
    let shop = with_rows();
    let said = shop.done(
        "eval model --tasks piqa,lambada_openai --task-data rows --device cpu --kv f32 --json report.json --items items.jsonl",
    );
    assert!(said.out.contains("| piqa ") && said.out.contains("| lambada_openai "), "{said:?}");
    let items = lines(&shop, "items.jsonl");
    assert_eq!(items.len(), 5);
    let context = "Question: open it\nAnswer:";
    for (item, choice, text) in [(0, 0, " push"), (0, 1, " pull hard")] {
        let want = log_likelihood(&shop, &format!("{context}{text}"), context.len());
        let found = items[item]["log_likelihoods"][choice].as_f64().expect("a number");
        // f32 logits of a few units, ten tokens.
        assert!((found - want).abs() < 1e-4, "{text}: {found}, want {want}");
    }
    let right =
        |key: &str| items[..3].iter().map(|item| item[key].as_f64().expect("a number")).sum::<f64>() / 3.0;
    let report = shop.json("report.json");
    for key in ["acc", "acc_norm"] {
        assert_eq!(report["tasks"]["piqa"][key].as_f64(), Some(right(key)), "{key}");
    }
    assert_eq!(report["tasks"]["lambada_openai"]["acc_norm"], Value::Null);
    assert!(report["tasks"]["lambada_openai"]["perplexity"].as_f64().is_some_and(|p| p > 1.0), "{report}");
    assert_eq!(report.get("perplexity"), None, "no text was scored");
}

#[test]
fn a_reference_is_compared_answer_by_answer_and_gates_decide() {
    let shop = with_rows();
    shop.done("export model --format qat --weights int8-g32 --out packed");
    let eval = "eval packed --tasks piqa --task-data rows --limit 2 --against model --device cpu";
    let said = shop.done(&format!(
        "{eval} --require piqa.same_answer>=0.5 --require piqa.delta_acc>-1 --items items.jsonl"
    ));
    assert!(said.out.contains("pass piqa.same_answer>=0.5") && said.out.contains("same answer"), "{said:?}");
    let items = lines(&shop, "items.jsonl");
    assert_eq!(items.len(), 2, "--limit");
    assert!(items[0]["reference"]["log_likelihoods"].is_array(), "{items:?}");
    let said = shop.run(&format!("{eval} --require piqa.acc>1"));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("FAIL piqa.acc>1"), "{said:?}");
}

#[test]
fn a_text_and_tasks_share_a_report() {
    let shop = with_rows();
    shop.text("valid.txt", 40);
    let said = shop.done(
        "eval model --data valid.txt --ctx 64 --tasks piqa --task-data rows --device cpu --json report.json --require perplexity>1",
    );
    assert!(said.out.contains("bits per byte") && said.out.contains("| piqa"), "{said:?}");
    let report = shop.json("report.json");
    assert!(report["perplexity"].is_number() && report["tasks"]["piqa"]["acc"].is_number(), "{report}");
}

#[test]
fn what_cannot_be_asked_is_refused_with_its_line() {
    let shop = with_rows();
    let refused = |line: &str, parts: &[&str]| {
        shop.refused(&format!("eval model --device cpu {line}"), parts);
    };
    refused("--tasks pica --task-data rows", &["no task \"pica\"", "winogrande"]);
    refused("--tasks piqa,piqa --task-data rows", &["piqa is named twice"]);
    refused("--tasks boolq --task-data rows", &["rows", "boolq.jsonl", "docs/tasks.md"]);
    refused("--tasks piqa", &["--task-data"]);
    refused("--data nothing.txt --limit 3", &["--tasks"]);
    refused("--tasks piqa --task-data rows --require kl<1", &["kl"]);
    refused("--tasks piqa --task-data rows --require perplexity<1", &["perplexity", "--data"]);
    refused("--tasks piqa --task-data rows --require boolq.acc>0", &["boolq", "not among --tasks"]);
    refused("--tasks piqa --task-data rows --require piqa.same_answer>0", &["--against DIR"]);
    for (row, parts) in [
        (json!({"goal": "a", "sol1": "b"}).to_string(), ["line 4", "\"sol2\""]),
        ("{".to_owned(), ["line 4", "is no JSON"]),
        (
            json!({"goal": "a", "sol1": "b", "sol2": "c", "label": 2}).to_string(),
            ["line 4", "right choice is 2"],
        ),
    ] {
        shop.write("bad/piqa.jsonl", format!("{}\n\n\n{row}\n", ROWS[0]));
        refused("--tasks piqa --task-data bad", &parts);
    }
    shop.write("bad/piqa.jsonl", "\n");
    refused("--tasks piqa --task-data bad", &["no rows"]);
    let long = json!({"goal": "a", "sol1": "b".repeat(200), "sol2": "c", "label": 0}).to_string();
    shop.write("bad/piqa.jsonl", long);
    refused("--tasks piqa --task-data bad", &["item 1", "201 tokens", "context 128"]);
}

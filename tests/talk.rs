//! `qat chat`, and what `qat generate` shares with it: conversations through a pipe, stop words, windows, kept prompts, confidence.

use std::fs::File;
#[cfg(unix)]
use std::process::Command;

use crate::workshop::{Said, Workshop};

/// What an answer follows is chosen so that the random model answers in characters of one byte.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }} {{ m.content }}<|end|>{% endfor %}\
    {% if add_generation_prompt %}abc{% endif %}";

/// A workshop with the model `model`, which has a chat template.
fn with_model() -> Workshop {
    let shop = Workshop::new();
    shop.model("model");
    shop.write("model/chat_template.jinja", TEMPLATE);
    shop
}

/// Says `lines` to a chat.
fn said_to(shop: &Workshop, lines: &str, more: &str) -> Said {
    shop.write("lines.txt", lines);
    let tokens = if more.contains("--tokens") { "" } else { "--tokens 12" };
    let line = format!("chat model --device cpu --temperature 0 {tokens} {more}");
    let mut command = shop.command(line.split_whitespace());
    command.stdin(File::open(shop.path("lines.txt")).expect("lines"));
    let said = Said::of(command);
    assert_eq!(said.code, Some(0), "{said:?}");
    said
}

fn generated(shop: &Workshop, more: &str) -> String {
    shop.done(&format!("generate model --device cpu --tokens 12 {more}")).out
}

#[test]
fn a_conversation_through_a_pipe_is_answered_turn_by_turn() {
    let shop = with_model();
    let one = generated(&shop, "--chat --prompt abc");
    assert!(!one.trim_matches('\n').is_empty());
    assert_eq!(said_to(&shop, "abc\n", "").out, one, "one question is what generate --chat answers");
    let said = said_to(&shop, "abc\nhello\n/save talk.jsonl\n/reset\nabc\n/exit\nnever\n", "");
    let saved = shop.json("talk.jsonl");
    let messages = saved["messages"].as_array().expect("messages");
    let roles: Vec<_> = messages.iter().map(|m| m["role"].as_str().expect("a role")).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    let answers: Vec<_> =
        [1, 3].map(|at| messages[at]["content"].as_str().expect("a text").to_owned()).into();
    assert_eq!(
        said.out,
        format!("{}\n{}\n{one}", answers[0], answers[1]),
        "after /reset as at first: {said:?}"
    );
    assert_ne!(answers[0], answers[1]);
    assert!(said.err.contains("more known) read in"), "the second turn reads only what is new: {said:?}");
    let fenced = said_to(&shop, "\"\"\"\nabc\n\"\"\"\n", "").out;
    assert_eq!(fenced, one, "several lines of one");
    let system = said_to(&shop, "abc\n", "--system Short.").out;
    assert_eq!(system, generated(&shop, "--chat --system Short. --prompt abc"));
}

#[test]
fn a_conversation_outlives_its_context() {
    let shop = with_model();
    let said = said_to(&shop, &"tell me more\n".repeat(12), "--context 100 --tokens 40");
    assert_eq!(said.err.matches("prompt of").count(), 12, "{said:?}");
    assert!(said.err.contains("forgot the"), "{said:?}");
}

#[test]
fn a_model_that_was_not_made_to_talk_says_so_and_a_bad_command_does_not_end_a_chat() {
    let shop = with_model();
    shop.model("base");
    shop.refused("chat base --device cpu", &["no chat template", "qat generate"]);
    shop.refused("generate base --chat --prompt a --device cpu", &["no chat template"]);
    shop.refused("chat model --device cpu --temperature -1", &["temperature -1"]);
    let said = said_to(&shop, "/nothing\n/save\nabc\n", "");
    assert!(said.err.contains("no /nothing") && said.err.contains("wants a file"), "{said:?}");
    assert_eq!(said.out, generated(&shop, "--chat --prompt abc"));
}

#[test]
fn a_text_ends_before_a_stop_word_and_a_penalty_changes_it() {
    let shop = with_model();
    let whole = generated(&shop, "--prompt abcabc");
    let whole = whole.trim_end_matches('\n');
    let (at, _) = whole.char_indices().nth(4).expect("some characters");
    let stop: String = whole[at..].chars().take(2).collect();
    let mut command =
        shop.command("generate model --device cpu --tokens 12 --prompt abcabc --stop".split(' '));
    command.arg(&stop);
    let said = Said::of(command);
    assert_eq!(said.out, format!("{}\n", &whole[..whole.find(&stop).expect("in it")]), "{said:?}");
    assert!(said.err.contains("ended by a stop word"), "{said:?}");
    assert_ne!(generated(&shop, "--prompt abcabc --repetition-penalty 5"), format!("{whole}\n"));
    assert_eq!(
        generated(&shop, "--prompt abcabc --repetition-penalty 5 --repetition-last 0"),
        format!("{whole}\n")
    );
    shop.refused("generate model --prompt a --repetition-penalty 0 --device cpu", &["repetition penalty 0"]);
}

#[test]
fn a_window_writes_more_than_the_context_holds() {
    let shop = with_model();
    shop.refused("generate model --prompt abc --tokens 500 --device cpu", &["--kv-window"]);
    let said = shop.done("generate model --prompt abc --tokens 500 --kv-window 32 --device cpu");
    assert!(said.err.contains("500 tokens") || said.err.contains("stop token"), "{said:?}");
    let short = "generate model --prompt abc --tokens 20 --device cpu";
    assert_eq!(shop.done(&format!("{short} --kv-window 64")).out, shop.done(short).out);
    shop.refused(&format!("{short} --kv-window 4"), &["--kv-window", "at least 8"]);
    shop.refused(&format!("{short} --kv-window 100000"), &["--kv-window", "max_position_embeddings"]);
}

#[test]
fn a_kept_prompt_is_gone_on_with_and_refused_where_it_does_not_belong() {
    let shop = with_model();
    let begin = "a long beginning that is read once";
    let write = |kv: &str, prompt: &str| {
        let mut command =
            shop.command("generate model --device cpu --tokens 12 --prompt-cache kept --kv".split(' '));
        command.args([kv, "--prompt", prompt]);
        command
    };
    let first = Said::of(write("f16", begin));
    let second = Said::of(write("f16", begin));
    assert_eq!((first.code, &first.out), (Some(0), &second.out), "{first:?} {second:?}");
    assert!(second.err.contains("more known"), "{second:?}");
    let longer = format!("{begin} and more");
    let mut plain = shop.command("generate model --device cpu --tokens 12 --prompt".split(' '));
    plain.arg(&longer);
    assert_eq!(Said::of(write("f16", &longer)).out, Said::of(plain).out);
    shop.refusal(write("f16", "something else"), &["kept", "doesn't begin with", "delete it"]);
    shop.refusal(write("int8", begin), &["kept", "another runtime", "int8"]);
    let whole = shop.read("kept");
    shop.write("kept", &whole[..whole.len() - 5]);
    shop.refusal(write("f16", begin), &["kept", "cut off"]);
    shop.write("kept", "something");
    shop.refusal(write("f16", begin), &["kept", "no prompt cache"]);
    shop.write("kept", &whole);
    shop.model_with("model", |_, tensors| tensors.values_mut().for_each(|(_, values)| values[0] += 0.5));
    shop.refusal(write("f16", begin), &["kept", "another model"]);
}

#[test]
fn what_the_system_says_is_kept_for_the_next_chat() {
    let shop = with_model();
    let first = said_to(&shop, "abc\n", "--system Short. --prompt-cache kept");
    let second = said_to(&shop, "hello\nabc\n", "--system Short. --prompt-cache kept");
    assert!(second.err.contains("more known"), "{second:?}");
    assert_eq!(said_to(&shop, "abc\n", "--system Short.").out, first.out);
    shop.refused(
        "chat model --device cpu --system Long --prompt-cache kept",
        &["kept", "doesn't begin with"],
    );
}

#[test]
fn confidence_says_when_to_ask_a_larger_model() {
    let shop = with_model();
    shop.text("valid.txt", 60);
    shop.done("export model --format qat --weights ternary-g64 --embeddings int4-g32 --out packed");
    let eval = "eval packed --data valid.txt --against model --device cpu --deferral deferral.json";
    let said = shop.done(&format!("{eval} --keep 0.8 --prompts 12"));
    assert!(said.out.contains("mean_margin") && said.out.contains("wrote deferral.json"), "{said:?}");
    let found = shop.json("deferral.json");
    let measures = found["measures"].as_array().expect("measures");
    assert_eq!((measures.len(), found["answers"].as_u64()), (6, Some(12)));
    assert!(
        measures.windows(2).all(|pair| pair[0]["area"].as_f64() >= pair[1]["area"].as_f64()),
        "best first"
    );
    let said =
        shop.done("generate packed --prompt abcabc --tokens 8 --device cpu --confidence deferral.json");
    assert!(
        said.err.contains("confidence ") && said.err.contains(found["measure"].as_str().expect("a name")),
        "{said:?}"
    );
    let generate = "generate model --prompt a --tokens 8 --device cpu --confidence";
    shop.refused(&format!("{generate} deferral.json"), &["another model", "--deferral"]);
    shop.refused(&format!("{generate} valid.txt"), &["valid.txt"]);
    shop.refused(&format!("{eval} --keep 2"), &["--keep 2"]);
    shop.refused("eval packed --data valid.txt --deferral d.json", &["--against"]);
    // A model is always of its own opinion.
    let same = "eval model --data valid.txt --against model --device cpu --deferral same.json --keep 0.99 --prompts 8";
    assert!(shop.done(same).out.contains("without ever asking"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_text_and_says_how_far_it_came() {
    let shop = with_model();
    shop.model_with("model", |config, _| config["eos_token_id"] = serde_json::Value::Null);
    let line = "generate model --prompt abc --tokens 100000000 --kv-window 64 --temperature 2 --top-k 0 --device cpu";
    let mut command = shop.command(line.split_whitespace());
    let written = shop.path("written");
    command.stdout(File::create(&written).expect("a file"));
    let mut child = command.spawn().expect("the tool starts");
    while std::fs::metadata(&written).expect("the file").len() == 0 {
        assert!(child.try_wait().expect("asked").is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    let said = Said::from(child.wait_with_output().expect("ended"));
    assert!(killed.success() && said.code == Some(130), "{said:?}");
    assert!(said.err.contains("tokens, interrupted; prompt of 3"), "{said:?}");
}

//! `qat generate` and `qat doctor`: what they write, and what they refuse.

use crate::workshop::{Said, Workshop};

/// A workshop with the float model `model`.
fn with_model() -> Workshop {
    let shop = Workshop::new();
    shop.model("model");
    shop
}

fn writes(shop: &Workshop, more: &str) -> Said {
    shop.done(&format!("generate model --prompt abcabc --tokens 12 --device cpu {more}"))
}

#[test]
fn the_same_seed_writes_the_same_text_and_another_seed_another() {
    let shop = with_model();
    let greedy = writes(&shop, "").out;
    assert!(greedy.trim_end_matches('\n').chars().count() > 0, "{greedy:?}");
    assert_eq!(greedy, writes(&shop, "--seed 5").out, "a seed changes nothing where nothing is drawn");
    assert_eq!(greedy, writes(&shop, "--temperature 1 --top-k 1").out, "of one token there is no choice");
    let drawn = |seed| writes(&shop, &format!("--temperature 1.5 --top-k 0 --seed {seed}")).out;
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    let narrow = |more: &str| writes(&shop, &format!("--temperature 1 {more}")).out;
    assert_eq!(narrow("--top-p 0.0001"), greedy, "the likeliest token alone reaches so small a share");
    assert_eq!(narrow("--min-p 1"), greedy);
}

#[test]
fn the_prompt_may_come_from_standard_input_and_is_written_when_asked_for() {
    let shop = with_model();
    shop.write("prompt.txt", "abcabc");
    let mut command = shop.command("generate model --tokens 12 --device cpu --echo".split(' '));
    command.stdin(std::fs::File::open(shop.path("prompt.txt")).expect("a prompt"));
    let said = Said::of(command);
    assert_eq!(said.out, format!("abcabc{}", writes(&shop, "").out), "{said:?}");
}

#[test]
fn speed_and_device_are_told_beside_the_text() {
    let shop = with_model();
    let said = writes(&shop, "");
    assert!(said.err.contains("prompt of 6 read in") && said.err.contains("tokens/s; cpu ("), "{said:?}");
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_is() {
    let shop = with_model();
    let refused = |more: &str, parts: &[&str]| {
        shop.refused(&format!("generate model {more}"), parts);
    };
    refused("--prompt abc --device tpu", &["--device tpu", "auto, cpu or metal"]);
    refused("--prompt abc --device cuda", &["--device cuda", "--device cpu"]);
    if !cfg!(target_os = "macos") {
        refused("--prompt abc --device metal", &["--device metal", "--device cpu"]);
    }
    refused("--prompt abc --temperature -1", &["temperature -1"]);
    refused("--prompt abc --top-p 0", &["top_p 0"]);
    refused("--prompt abc --tokens 100000", &["100000 to write", "--tokens", "--context"]);
    refused("--prompt abc --context 1000000 --tokens 5", &["1000000", "max_position_embeddings"]);
    refused("--prompt abc --tokens 5 --temperature 1 --top-k 70000", &["70000", "want 1 to"]);
    shop.refused("generate nowhere --prompt abc", &["nowhere"]);
}

#[test]
fn the_doctor_finds_every_set_of_instructions_right() {
    let said = Workshop::new().done("doctor");
    for part in ["instructions", "portable", "Self-test", "int4-g32", "ternary-tensor", "All is well."] {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
    assert!(!said.out.contains("FAILED"), "{said:?}");
}

#[test]
fn the_doctor_does_not_overlook_an_instruction_set_that_is_not_there() {
    let shop = Workshop::new();
    let mut command = shop.command(["doctor"]);
    command.env("QAT_ISA", "abacus");
    shop.refusal(command, &["QAT_ISA", "abacus"]);
}

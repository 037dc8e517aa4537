//! `qat logits`: the numbers agree with what the tool says elsewhere, and bad ids are refused.

use safetensors::SafeTensors;

use crate::{model::VOCAB, workshop::Workshop};

/// Ids and logits `[ids, VOCAB]` of the file `name`.
fn written(shop: &Workshop, name: &str) -> (Vec<u32>, Vec<f32>) {
    let bytes = shop.read(name);
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (ids, logits) = (tensors.tensor("ids").expect("ids"), tensors.tensor("logits").expect("logits"));
    let ids: Vec<u32> =
        ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight")) as u32).collect();
    assert_eq!(logits.shape(), [ids.len(), VOCAB]);
    let logits =
        logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect();
    (ids, logits)
}

fn top(logits: &[f32]) -> u32 {
    let best = (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1));
    best.expect("a vocabulary").0
}

#[test]
fn the_likeliest_tokens_are_those_that_generate_writes() {
    let shop = Workshop::new();
    shop.model("model");
    shop.done("logits model --ids 97,98,99 --tokens 12 --out all.safetensors --device cpu");
    let (ids, logits) = written(&shop, "all.safetensors");
    assert_eq!(ids.len(), 15);
    assert_eq!(ids[..3], [97, 98, 99]);
    for at in 2..14 {
        assert_eq!(ids[at + 1], top(&logits[at * VOCAB..(at + 1) * VOCAB]), "after token {at}");
    }
    // The tokenizer has a token for each byte, in the order of the bytes. Bytes that begin a character are held back until it ends.
    let text: Vec<u8> = ids[3..].iter().map(|id| *id as u8).collect();
    let said = shop.done("generate model --prompt abc --tokens 12 --device cpu --kv f32");
    let text = String::from_utf8_lossy(&text);
    let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
    assert!(!whole.is_empty() && said.out == format!("{whole}\n"), "{text:?}, {said:?}");
}

#[test]
fn a_text_read_at_once_gives_the_numbers_of_one_read_token_by_token() {
    let shop = Workshop::new();
    shop.model("model");
    shop.done("logits model --ids 5,250,17 --tokens 4 --out grown.safetensors --device cpu");
    let (ids, grown) = written(&shop, "grown.safetensors");
    let list = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    shop.done(&format!("logits model --ids {list} --out read.safetensors --device cpu"));
    assert_eq!(written(&shop, "read.safetensors"), (ids, grown));
}

#[test]
fn rounded_activations_change_the_numbers_of_a_packed_model() {
    let shop = Workshop::new();
    shop.model("model");
    shop.done("export model --format qat --weights int4-g32 --out packed");
    let numbers = |inputs: &str| {
        shop.done(&format!(
            "logits packed --ids 1,2,3 --activations {inputs} --out {inputs}.safetensors --device cpu"
        ));
        written(&shop, &format!("{inputs}.safetensors")).1
    };
    assert_eq!(numbers("float"), numbers("model"), "rounded without training, it takes floats");
    assert_ne!(numbers("float"), numbers("int8"));
}

#[test]
fn ids_that_are_no_tokens_and_texts_too_long_are_refused() {
    let shop = Workshop::new();
    shop.model("model");
    shop.refused("logits model --ids 1,257 --out o", &["257"]);
    shop.refused("logits model --ids 1,2 --tokens 127 --out o", &["2 ids and 127", "128"]);
    shop.refused("logits model --ids 1,two --out o", &["two"]);
    shop.refused("logits model --ids 1 --tokens 18446744073709551615 --out o", &["don't fit"]);
    shop.refused("logits nowhere --ids 1 --out o", &["nowhere"]);
}

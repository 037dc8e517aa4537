//! GGUF files: written, and opened wherever a model is named.

use serde_json::Value;

use crate::workshop::Workshop;

/// A workshop with the packed model `packed` and its export `gguf`.
fn exported(weights: &str) -> Workshop {
    let shop = Workshop::furnished();
    shop.done(&format!("export teacher --format qat --weights {weights} --out packed"));
    let said = shop.done("export packed --format gguf --out gguf");
    assert!(said.out.contains("gguf"), "{said:?}");
    shop
}

fn score(shop: &Workshop, model: &str) -> Value {
    shop.done(&format!("eval {model} --data valid.txt --json score.json"));
    shop.json("score.json")
}

#[test]
fn an_exported_file_scores_as_the_packed_model_does_to_the_bit() {
    for weights in ["int4-g32", "ternary-g64"] {
        let shop = exported(weights);
        let packed = score(&shop, "packed");
        for model in ["gguf/model.gguf", "gguf"] {
            let file = score(&shop, model);
            for key in ["perplexity", "perplexity_se", "bits_per_byte", "tokens"] {
                assert_eq!(file[key], packed[key], "{weights}: {model}: {key}");
            }
        }
        let against =
            "eval gguf/model.gguf --data valid.txt --against packed --json against.json --require kl<1e-9";
        shop.done(against);
        shop.done("eval packed --data valid.txt --against gguf/model.gguf");
    }
}

#[test]
fn a_file_is_named_wherever_a_model_is() {
    let shop = exported("int4-g32");
    let written = |model: &str| shop.done(&format!("generate {model} --prompt x --tokens 8")).out;
    assert_eq!(written("gguf/model.gguf"), written("packed"));
    let said = shop.done("inspect gguf/model.gguf").out;
    for part in ["GGUF", "Q4_0", "Q8_0", "tokenizer of 257"] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    shop.done("bench gguf/model.gguf --pp 0 --tg 4 --reps 1 --threads 1");
    // Its values, rounded again: those of the grid fall on the grid.
    shop.done("export gguf/model.gguf --format qat --weights int8-g32 --out again");
    shop.done("eval again --data valid.txt --against gguf --require kl<0.01");
}

#[test]
fn a_file_is_the_beginning_of_a_student_and_a_teacher() {
    let shop = exported("int8-g32");
    shop.done("train tiny.toml --out run --set student.from=gguf/model.gguf --set teacher.model=teacher");
    assert!(shop.path("run/student/tokenizer.json").is_file());
    shop.done("train tiny.toml --out other --set teacher.model=gguf/model.gguf");
    // From the packed run, as from any other.
    shop.done("export run --format gguf --out of-run");
    shop.done("export run --format qat --out trained");
    shop.done("eval of-run --data valid.txt --against trained --require kl<1e-9");
}

#[test]
fn a_damaged_file_and_one_that_is_none_are_refused() {
    let shop = exported("int4-g32");
    let whole = shop.read("gguf/model.gguf");
    shop.write("short.gguf", &whole[..whole.len() / 2]);
    shop.refused("eval short.gguf --data valid.txt", &["short.gguf", "truncated"]);
    shop.write("other.gguf", "not a model");
    shop.refused("generate other.gguf --prompt x", &["other.gguf", "is it a GGUF file?"]);
    shop.refused("inspect missing.gguf", &["missing.gguf", "does not exist"]);
    shop.refused("export packed --format gguf --context 129 --out x", &["--context 129: want 1 to 128"]);
}

//! `qat init RECIPE.toml`: a recipe out of flags, which plans, trains and scores as it stands, and what is refused.

use crate::workshop::Workshop;

const FLAGS: &str = "--model teacher --data train.txt --valid valid.txt";

#[test]
fn a_recipe_of_flags_plans_and_trains_as_it_stands() {
    let shop = Workshop::furnished();
    let said = shop.done(&format!("init my.toml {FLAGS} --format int4-g32,int8-g32 --target qat,gguf"));
    assert!(said.out.contains("qat train my.toml"), "{said:?}");
    let recipe = String::from_utf8(shop.read("my.toml")).expect("UTF-8");
    for part in ["[variants.int4-g32]", "[variants.int8-g32]", "[\"qat\", \"gguf\"]", "# itself, not rounded"]
    {
        assert!(recipe.contains(part), "{part:?} is not in:\n{recipe}");
    }
    assert!(!recipe.contains("format = \"chat\""), "{recipe}");
    shop.done("plan my.toml");
    let short = "--set train.steps=2 --set train.batch=2 --set train.accumulate=1 --set data.ctx=32 --set eval.ctx=32";
    let said =
        shop.done(&format!("train my.toml --out run --device cpu {short} --set train.valid_windows=4"));
    assert!(
        said.out.contains("int4-g32: trained") && said.out.contains("int8-g32: rounded, mse"),
        "{said:?}"
    );
}

#[test]
fn text_to_score_with_may_be_missing_and_conversations_are_seen() {
    let shop = Workshop::furnished();
    shop.write("talk.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n");
    shop.done("init talk.toml --model teacher --data talk.jsonl");
    let recipe = String::from_utf8(shop.read("talk.toml")).expect("UTF-8");
    assert!(recipe.contains("format = \"chat\"") && !recipe.contains("[eval]"), "{recipe}");
    assert!(!recipe.contains("[variants"), "one format needs no variants:\n{recipe}");
}

#[test]
fn what_is_missing_misspelt_or_there_already_is_refused() {
    let shop = Workshop::furnished();
    shop.refused("init my.toml --data train.txt", &["--model is missing", "no terminal"]);
    shop.refused("init my.toml --model teacher", &["--data is missing"]);
    shop.refused("init tiny.toml --model teacher --data train.txt", &["tiny.toml", "there already"]);
    shop.refused("init my.toml --model nowhere --data train.txt", &["--model", "nowhere"]);
    shop.refused(
        "init my.toml --model teacher --data train.txt --format int4-g23",
        &["--format", "int4-g32"],
    );
    shop.refused("init my.toml --model teacher --data train.txt --format ternary-g256", &["--format", "256"]);
    shop.refused("init my.toml --model teacher --data train.txt --target mlxx", &["--target", "mlx"]);
    shop.refused("init my.toml --shape smollm2-135m --format int4-g32 --out a", &["--shape"]);
    shop.refused("init", &["RECIPE.toml"]);
}

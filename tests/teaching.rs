//! What a student is taught, from the recipe to the log: terms, a teacher that is asked once, and text of its own.

use std::fs;

use serde_json::Value;

use crate::{
    model::{RECIPE, SHIPPED},
    workshop::Workshop,
};

/// The terms that the log of the run in `out` has in its first line.
fn terms(shop: &Workshop, out: &str) -> Vec<String> {
    let log = String::from_utf8(shop.read(format!("{out}/log.jsonl"))).expect("text");
    let line: Value = serde_json::from_str(log.lines().next().expect("a line")).expect("JSON");
    line["terms"].as_object().expect("terms").keys().cloned().collect()
}

#[test]
fn a_teacher_is_asked_once_for_all_variants() {
    let shop = Workshop::furnished();
    let recipe = RECIPE.replace("model = \"teacher\"", "model = \"teacher\"\ncache = \"kept\"\ntop_k = 16");
    shop.write(
        "tiny.toml",
        format!("{recipe}[variants.a]\nseed = 1\n[variants.b]\n\"quant.weights\" = \"ternary-g64\"\n"),
    );
    shop.done("train tiny.toml --out run --variant a");
    let made =
        |name: &str| fs::metadata(shop.path("kept").join(name)).expect("a file").modified().expect("a time");
    let before = (made("shard-000000"), made("teacher.json"));
    shop.done("train tiny.toml --out run --variant b");
    assert_eq!((made("shard-000000"), made("teacher.json")), before);
    let told = shop.json("kept/teacher.json");
    assert_eq!((&told["top_k"], &told["ctx"], &told["vocab"]), (&16.into(), &32.into(), &257.into()));
    shop.refused(
        "train tiny.toml --out other --variant a --set teacher.top_k=8",
        &[
            "kept/teacher.json",
            "made with top_k = 16, this run has 8",
            "name another folder in teacher.cache",
        ],
    );
    shop.refused(
        "train tiny.toml --out other --variant a --set loss.relations=1",
        &["teacher.cache", "no hidden states"],
    );
}

#[test]
fn every_term_of_a_recipe_is_in_the_log_and_the_run_says_how_heavy_the_inner_ones_are() {
    let shop = Workshop::furnished();
    let terms_of =
        "forward_kl = 1.0\nskew_kl = 0.5\nskew_reverse_kl = 0.5\nhidden = 0.5\nrelations = 2.0\nlayer = 0";
    shop.write("tiny.toml", format!("{}{SHIPPED}", RECIPE.replace("forward_kl = 1.0", terms_of)));
    let said = shop.done("train tiny.toml --out run");
    assert_eq!(terms(&shop, "run"), ["forward_kl", "hidden", "relations", "skew_kl", "skew_reverse_kl"]);
    assert!(said.err.contains("loss.hidden = 0.5 is a factor of "), "{said:?}");
    assert!(said.err.contains("loss.relations = 2 is a factor of "), "{said:?}");
    shop.refused(
        "train tiny.toml --out other --set loss.layer=2",
        &["loss.layer = 2", "the student's 2 layers"],
    );
}

#[test]
fn a_student_that_writes_half_of_its_text_ships() {
    let shop = Workshop::furnished();
    let own = "forward_kl = 1.0\non_policy = 0.5\non_policy_every = 4\non_policy_prompt = 8";
    shop.write("tiny.toml", format!("{}{SHIPPED}", RECIPE.replace("forward_kl = 1.0", own)));
    shop.done("train tiny.toml --out run");
    assert_eq!(fs::read_dir(shop.path("run/on-policy")).expect("a folder").count(), 2);
    assert!(shop.json("run/report.json")["kl_mean"].as_f64().is_some_and(f64::is_finite));
    shop.refused(
        "train tiny.toml --out other --set loss.cross_entropy=1",
        &["loss.on_policy = 0.5", "has no right answers", "loss.cross_entropy = 0"],
    );
}

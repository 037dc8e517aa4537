//! What a run leaves for its reader: the page, the comparison of runs, and what a terminal or a pipe shows meanwhile.

use std::fs;

use crate::{
    model::{RECIPE, SHIPPED},
    workshop::Workshop,
};

/// A recipe with an evaluation, a baseline, a gate and flips in its log.
fn recipe() -> String {
    let scored = "baselines = [\"mse\"]\nrequire = [\"kl<10\"]\n";
    let logged = RECIPE.replace("[quant]", "[quant]\nlog_flips = true");
    format!("{logged}{SHIPPED}{scored}")
}

/// A workshop whose recipe was trained into `run`.
fn trained() -> Workshop {
    let shop = Workshop::furnished();
    shop.write("tiny.toml", recipe());
    let said = shop.done("train tiny.toml --out run");
    assert!(said.err.contains("report: run/report.html") && !said.err.contains("warning"), "{said:?}");
    shop
}

fn page(shop: &Workshop, name: &str) -> String {
    let page = String::from_utf8(shop.read(name)).expect("UTF-8");
    let elsewhere = page.replace("http://www.w3.org/2000/svg", "");
    for outside in ["http:", "https:", "<link", "<img", "src=", "@import", "url("] {
        assert!(!elsewhere.contains(outside), "{name} asks for {outside} of the network");
    }
    assert!(!page.contains("NaN") && !page.contains("{{"), "{name} is drawn to its end");
    let count = |part: &str| page.matches(part).count();
    for element in ["svg", "figure", "section", "table", "article"] {
        assert_eq!(count(&format!("<{element}")), count(&format!("</{element}>")), "{element} of {name}");
    }
    page
}

#[test]
fn a_run_leaves_a_page_that_tells_it_all() {
    let shop = trained();
    let page = page(&shop, "run/report.html");
    for part in [
        "Run run",
        "6 steps",
        "Quality against size",
        "Perplexity against size",
        "teacher (float)",
        "rounded, mse",
        "kl_mean&lt;10",
        "passed",
        "KL divergence from the teacher",
        "held out",
        "Learning rate",
        "tokens per second",
        "Codes that changed",
        "Rounding error before training",
        "Codes that training chose anew",
        "model.layers.1.mlp.down_proj.weight",
        "Codes of int4-g32",
        "Scales of int8-g32",
        "Weights of self_attn.q_proj",
        "Packed model",
        "[student]",
        "weights = &quot;int4-g32&quot;",
    ] {
        assert!(page.contains(part), "{part:?} is not in the page");
    }
    let samples = shop.json("run/samples.json");
    assert_eq!(samples["samples"].as_array().expect("samples").len(), 3, "{samples}");
    let scores = shop.json("run/scores.json");
    let kinds: Vec<_> =
        scores["models"].as_array().expect("models").iter().map(|m| m["kind"].clone()).collect();
    assert_eq!(kinds, ["reference", "rounded", "trained"]);
}

#[test]
fn the_page_is_made_again_from_the_folder_of_the_run() {
    let shop = trained();
    let first = page(&shop, "run/report.html");
    fs::remove_file(shop.path("run/report.html")).expect("removed");
    let said = shop.done("report run --pictures pictures");
    assert!(said.out.starts_with("run/report.html\n"), "{said:?}");
    assert!(first == page(&shop, "run/report.html"), "the same folder gives the same page");
    for name in ["forward_kl", "learning-rate", "flipped", "codes-int4-g32", "perplexity-size"] {
        let picture = String::from_utf8(shop.read(format!("pictures/{name}.svg"))).expect("UTF-8");
        assert!(picture.starts_with("<svg xmlns=") && picture.trim_end().ends_with("</svg>"), "{picture}");
    }
    // A folder whose log, scores and checkpoints are damaged still has a page, which says what is missing.
    shop.write("run/scores.json", "{");
    let log = String::from_utf8(shop.read("run/log.jsonl")).expect("UTF-8");
    shop.write("run/log.jsonl", format!("{log}{{\"step\": 7, \"lo"));
    let said = shop.done("report run");
    assert!(said.err.contains("scores.json"), "{said:?}");
    let damaged = page(&shop, "run/report.html");
    assert!(damaged.contains("1 lines of log.jsonl could not be read") && damaged.contains("Left out: "));
    assert!(damaged.contains("Learning rate") && !damaged.contains("Perplexity against size"));
    fs::remove_dir_all(shop.path("run/checkpoints")).expect("removed");
    shop.done("report run");
    assert!(!page(&shop, "run/report.html").contains("Rounding error"));
}

#[test]
fn a_run_without_export_or_evaluation_leaves_a_page_too() {
    let shop = Workshop::furnished();
    shop.done("train tiny.toml --out run");
    let page = page(&shop, "run/report.html");
    assert!(page.contains("Learning rate") && page.contains("Rounding error after training"));
    assert!(!page.contains("Quality against size") && !page.contains("Packed model"));
}

#[test]
fn a_page_that_can_not_be_written_does_not_fail_the_run() {
    let shop = Workshop::furnished();
    fs::create_dir_all(shop.path("run/report.html/taken")).expect("a folder in its place");
    let said = shop.done("train tiny.toml --out run");
    assert!(said.err.contains("warning: no report: run/report.html"), "{said:?}");
    assert!(shop.path("run/checkpoints/step-00000006").is_dir());
}

#[test]
fn a_run_that_breaks_off_leaves_its_curves() {
    let shop = Workshop::furnished();
    let said =
        shop.run("train tiny.toml --out run --set train.steps=60 --set train.log_every=1 --set optim.lr=1e4");
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("report: run/report.html") && said.err.contains("lower optim.lr"), "{said:?}");
    assert!(page(&shop, "run/report.html").contains("Gradient norm"));
}

#[test]
fn a_long_log_makes_a_small_page() {
    let shop = trained();
    let line = |n: usize| {
        format!(
            "{{\"step\":{n},\"loss\":{0},\"terms\":{{\"forward_kl\":{0},\"jsd\":1.5}},\"lr\":0.001,\"lambda\":1.0,\
             \"grad_norm\":1.5,\"tokens\":{1},\"tps\":5000.0}}\n{{\"step\":{n},\"valid_cross_entropy\":2.5,\"valid_kl\":{0}}}\n",
            1.0 + (n as f64).sin(),
            n * 128
        )
    };
    shop.write("run/log.jsonl", (1..=100_000).map(line).collect::<String>());
    shop.done("report run");
    let page = page(&shop, "run/report.html");
    assert!(page.contains("100,000 steps") && page.len() < 2_000_000, "{} bytes", page.len());
}

#[test]
fn names_in_a_run_stay_text_in_its_page() {
    let shop = Workshop::furnished();
    let evil = "<script>alert(1)<b>";
    let text = String::from_utf8(shop.read("valid.txt")).expect("UTF-8");
    shop.write("valid.txt", format!("{evil} & {text}"));
    shop.write("tiny.toml", recipe());
    fs::rename(shop.path("tiny.toml"), shop.path("<i>.toml")).expect("renamed");
    shop.done("train <i>.toml --out <u>run");
    let page = page(&shop, "<u>run/report.html");
    assert!(page.contains("&lt;u&gt;run") && page.contains("&lt;script&gt;alert(1)"), "shown as it is");
    assert!(!page.contains("<u>") && !page.contains("<script>alert") && !page.contains("<i>"));
}

#[test]
fn runs_are_put_side_by_side() {
    let shop = Workshop::furnished();
    let variants = "[variants.four]\nseed = 1\n[variants.three]\n\"quant.weights\" = \"int3-affine-g64\"\n";
    shop.write("tiny.toml", format!("{}{variants}", recipe()));
    shop.done("train tiny.toml --out runs");
    let recipe_page = page(&shop, "runs/comparison.html");
    assert!(recipe_page.contains("2 runs beside each other"));
    let said = shop.done("compare runs --html both.html");
    for part in
        ["| four ", "| three ", "four: trained", "three: rounded, mse", "teacher (float)", "quant.weights"]
    {
        assert!(said.out.contains(part), "{part:?}: {said:?}");
    }
    assert_eq!(said.out.matches("(float)").count(), 1, "the reference stands there once: {said:?}");
    assert!(!said.out.contains("train.steps"), "keys that are the same are left out: {said:?}");
    let both = page(&shop, "both.html");
    assert!(both.contains("Where the recipes differ") && both.contains("three: trained"));
    shop.done("train tiny.toml --out other --variant three");
    let said = shop.done("compare runs/three other/three");
    assert!(said.out.contains("runs/three") && said.out.contains("other/three"), "told apart: {said:?}");
    shop.refused("compare runs/three", &["one run", "name another"]);
    shop.refused("compare runs/three teacher", &["teacher", "no run of qat train", "--out"]);
    shop.refused("report nowhere", &["nowhere", "No such file"]);
    shop.done("report runs");
}

#[test]
fn a_pipe_gets_lines_whatever_is_asked_for() {
    let shop = Workshop::furnished();
    let plain = shop.done("train tiny.toml --out plain --plain");
    let said = shop.done("train tiny.toml --out run --dashboard");
    assert!(said.err.contains("--dashboard: standard output is no terminal"), "{said:?}");
    for said in [&plain, &said] {
        assert!(said.err.contains("step 6/6: loss") && !said.err.contains('\u{1b}'), "{said:?}");
    }
    shop.refused("train tiny.toml --out third --plain --dashboard", &["--dashboard", "cannot be used with"]);
}

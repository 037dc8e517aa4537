//! The main job: a model goes in, a packed one comes out, and it is proven.

use std::fs;

use serde_json::Value;

use crate::{
    model::{RECIPE, SHIPPED},
    workshop::Workshop,
};

/// Keys of a report that scripts rely on.
const STABLE: [&str; 14] = [
    "perplexity",
    "perplexity_se",
    "bits_per_byte",
    "tokens",
    "kl_mean",
    "same_top1",
    "prefill_tps",
    "decode_tps",
    "ttft_ms",
    "peak_rss_bytes",
    "bits_per_weight",
    "file_bytes",
    "device",
    "isa",
];

fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("{key} is {}", report[key]))
}

/// A report has every stable key, and what it says is possible.
fn assert_sound(report: &Value) {
    for key in STABLE {
        assert!(report.get(key).is_some_and(|value| !value.is_null()), "{key} is missing in {report}");
    }
    for key in STABLE.iter().filter(|key| !["device", "isa", "kl_mean"].contains(key)) {
        let value = number(report, key);
        assert!(value.is_finite() && value > 0.0, "{key} is {value}");
    }
    // 257 even guesses are the perplexity of a model that knows nothing; these are random models, so about that.
    assert!((1.0..2000.0).contains(&number(report, "perplexity")), "{report}");
    assert!((0.0..=1.0).contains(&number(report, "same_top1")), "{report}");
    assert!(number(report, "kl_mean") >= 0.0, "{report}");
    // One token is one byte here, so that bits per byte are the bits of the perplexity.
    let bits = number(report, "perplexity").log2();
    assert!((number(report, "bits_per_byte") / bits - 1.0).abs() < 1e-9, "{report}");
    assert_eq!(report["device"], "cpu");
}

#[test]
fn a_recipe_goes_through_to_the_verified_packed_model() {
    let shop = Workshop::furnished();
    let gates = "require = [\"kl<10\", \"perplexity>1\"]\nbaselines = [\"absmax\", \"mse\"]";
    shop.write("tiny.toml", format!("{RECIPE}{SHIPPED}{gates}"));
    let said = shop.done("train tiny.toml --out run");
    // Which device was picked and why: the CPU here, Apple's GPU on a Mac.
    assert!(said.err.lines().any(|l| l.starts_with("device: ") && l.contains(" (auto: ")), "{said:?}");
    for part in ["wrote run/qat", "read back and equal to the bit", "pass kl_mean<10", "pass perplexity>1"] {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
    for row in ["teacher (float)", "tiny: rounded, absmax", "tiny: rounded, mse", "tiny: trained", "won back"]
    {
        assert!(said.out.contains(row), "{row}: {said:?}");
    }
    for part in [
        "steps of 128 tokens",
        "step 6/6: loss",
        "tokens/s",
        "held out",
        "saved run/checkpoints/step-00000006",
    ] {
        assert!(said.err.contains(part), "{part}: {said:?}");
    }
    let report = shop.json("run/report.json");
    assert_sound(&report);
    let manifest = shop.json("run/qat/manifest.json");
    let format = |name: &str| manifest["tensors"][name]["format"].clone();
    assert_eq!(format("model.layers.0.mlp.up_proj.weight"), "int4-g32");
    assert_eq!(format("model.embed_tokens.weight"), "int8-g32");
    assert_eq!(manifest["source"]["step"], 6);
    assert_eq!(manifest["bits_per_weight"], report["bits_per_weight"]);
    let comparison = shop.json("run/comparison.json");
    let rows: Vec<&String> = comparison.as_object().expect("rows by name").keys().collect();
    assert_eq!(rows.len(), 4, "{rows:?}");
    comparison
        .as_object()
        .expect("rows by name")
        .iter()
        .filter(|(name, _)| name.starts_with("tiny"))
        .for_each(|(_, r)| assert_sound(r));
    assert_eq!(shop.read("run/qat/tokenizer.json"), shop.read("teacher/tokenizer.json"));
}

#[test]
fn a_gate_of_a_recipe_that_fails_sets_the_exit_code_and_keeps_the_model() {
    let shop = Workshop::furnished();
    shop.write("tiny.toml", format!("{RECIPE}{SHIPPED}require = [\"kl<1e-12\", \"perplexity>1\"]"));
    let said = shop.run("train tiny.toml --out run");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.out.contains("FAIL kl_mean<0.000000000001") && said.out.contains("pass perplexity>1"),
        "{said:?}"
    );
    assert_sound(&shop.json("run/report.json"));
    shop.done("eval run/qat --data valid.txt");
}

#[test]
fn training_wins_back_what_rounding_lost() {
    let shop = Workshop::furnished();
    let baselines = "baselines = [\"mse\"]";
    shop.write("tiny.toml", format!("{RECIPE}{SHIPPED}{baselines}"));
    shop.done(
        "train tiny.toml --out run --set train.steps=60 --set quant.weights=ternary-g64 --set optim.lr=3e-3",
    );
    let rows = shop.json("run/comparison.json");
    let kl = |row: &str| number(&rows[row], "kl_mean");
    let (rounded, trained) = (kl("tiny: rounded, mse"), kl("tiny: trained"));
    assert!(trained < 0.7 * rounded, "KL was {rounded} after rounding and is {trained} after training");
}

#[test]
fn variants_run_one_after_another_and_end_in_one_table() {
    let shop = Workshop::furnished();
    let variants = "[variants.four]\nseed = 1\n[variants.three]\n\"quant.weights\" = \"int3-affine-g64\"\n";
    shop.write("tiny.toml", format!("{RECIPE}{SHIPPED}{variants}"));
    let said = shop.done("train tiny.toml --out runs");
    assert!(said.out.contains("four: trained") && said.out.contains("three: trained"), "{said:?}");
    let bits = |run: &str| number(&shop.json(format!("runs/{run}/report.json")), "bits_per_weight");
    assert!(bits("three") < bits("four"));
    shop.done("train tiny.toml --out one --variant three");
    assert!(!shop.path("one/four").exists());
    assert_eq!(shop.read("one/three/qat/model.safetensors"), shop.read("runs/three/qat/model.safetensors"));
}

#[test]
fn a_float_model_is_rounded_without_training() {
    let shop = Workshop::furnished();
    let mut kl = Vec::new();
    for rule in ["absmax", "mse"] {
        let said = shop
            .done(&format!("export teacher --format qat --weights int4-g32 --scales {rule} --out {rule}"));
        assert!(
            said.out.contains("bits per weight") && said.out.contains("read back and equal to the bit"),
            "{said:?}"
        );
        let eval = format!("eval {rule} --data valid.txt --against teacher --json {rule}.json");
        let said = shop.done(&eval);
        assert!(said.out.contains("perplexity") && said.out.contains("KL to the reference"), "{said:?}");
        let report = shop.json(format!("{rule}.json"));
        assert_sound(&report);
        assert_eq!(
            report["file_bytes"],
            fs::metadata(shop.path(rule).join("model.safetensors")).expect("a file").len()
        );
        kl.push(number(&report, "kl_mean"));
    }
    assert!(kl[1] < kl[0], "the scales with the smaller error are nearer to the reference: {kl:?}");
    shop.done("export teacher --format qat --weights int8-g32 --out eight");
    shop.done("eval eight --data valid.txt --against teacher --json eight.json");
    assert!(number(&shop.json("eight.json"), "kl_mean") < 0.1 * kl[1], "eight bits lose far less than four");
}

#[test]
fn every_format_is_exported_and_scored_with_its_size() {
    let shop = Workshop::furnished();
    for (format, bits) in [
        ("int4-g32", 4.5),
        ("int8-g32", 8.5),
        ("int2-affine-g32", 3.0),
        ("int3-affine-g64", 3.5),
        ("int4-affine-g64-bf16", 4.5),
        ("ternary-g64", 2.25),
    ] {
        shop.done(&format!(
            "export teacher --format qat --weights {format} --embeddings {format} --out {format}"
        ));
        shop.done(&format!("eval {format} --data valid.txt --ctx 64 --json report.json"));
        // Norms are 5·64 floats among 90,496 weights.
        let (norms, weights) = (320.0, 90_496.0);
        let expected = (bits * (weights - norms) + 32.0 * norms) / weights;
        let found = number(&shop.json("report.json"), "bits_per_weight");
        assert!((found - expected).abs() < 1e-9, "{format}: {found}, {expected}");
    }
}

#[test]
fn float_export_and_packed_export_score_the_same() {
    let shop = Workshop::furnished();
    shop.done("train tiny.toml --out run");
    shop.done("export run --format qat --out packed");
    shop.done("export run --format hf --out float");
    shop.done("eval packed --data valid.txt --against float --json packed.json");
    shop.done("eval float --data valid.txt --against packed --json float.json");
    let (packed, float) = (shop.json("packed.json"), shop.json("float.json"));
    let (a, b) = (number(&packed, "perplexity"), number(&float, "perplexity"));
    // The same values of the grid, multiplied in the same order but for the scale, which is a factor of the block: f32
    // rounding of sums of 128 terms, far below a hundred-thousandth.
    assert!((a / b - 1.0).abs() < 1e-5, "packed {a}, float {b}");
    assert!(number(&packed, "kl_mean") < 1e-6 && number(&packed, "same_top1") > 0.999, "{packed}");
    assert!(number(&packed, "file_bytes") < 0.3 * number(&float, "file_bytes"));
    assert!((number(&float, "bits_per_weight") - 32.0).abs() < 1e-9);
}

#[test]
fn int8_activations_are_trained_shipped_and_scored() {
    let shop = Workshop::furnished();
    shop.write("tiny.toml", format!("{RECIPE}{SHIPPED}"));
    shop.done(
        "train tiny.toml --out run --set quant.activations=int8-token --set quant.weights=ternary-tensor",
    );
    let entry = &shop.json("run/qat/manifest.json")["tensors"]["model.layers.1.mlp.down_proj.weight"];
    assert_eq!((&entry["format"], &entry["activations"]), (&"ternary-tensor".into(), &"int8-token".into()));
    assert_sound(&shop.json("run/report.json"));
}

#[test]
fn a_student_from_scratch_learns_generated_stories() {
    let shop = Workshop::furnished();
    let recipe = format!("{RECIPE}{SHIPPED}")
        .replace(
            "from = \"teacher\"",
            "[student.scratch]\nconfig = \"teacher/config.json\"\ntokenizer = \"teacher/tokenizer.json\"",
        )
        .replace("[teacher]\nmodel = \"teacher\"\n", "")
        .replace("against = \"teacher\"\n", "")
        .replace("forward_kl", "cross_entropy")
        .replace("train.txt", "stories:seed=1,bytes=60000")
        .replace("valid.txt", "stories:seed=2,bytes=4000");
    shop.write("scratch.toml", recipe);
    let said = shop.done("train scratch.toml --out run --set train.steps=40 --set optim.lr=1e-2");
    let report = shop.json("run/report.json");
    assert!(number(&report, "perplexity") < 60.0, "it began at 257: {report}");
    assert!(report["kl_mean"].is_null() && report["same_top1"].is_null(), "there is no reference: {report}");
    assert!(number(&report, "entropy_floor_nats") < number(&report, "perplexity").ln(), "{report}");
    let log = String::from_utf8(shop.read("run/log.jsonl")).expect("UTF-8");
    let losses: Vec<f64> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a JSON object on every line"))
        .filter_map(|line| line["loss"].as_f64())
        .collect();
    assert!(losses.len() == 20 && losses[19] < losses[0] - 1.0, "{losses:?}, {said:?}");
}

#[test]
fn help_names_every_command_and_a_wrong_one_is_refused() {
    let shop = Workshop::new();
    let said = shop.done("--help");
    assert!(["train", "export", "eval"].iter().all(|command| said.out.contains(command)), "{said:?}");
    assert!(shop.done("--version").out.starts_with("qat "));
    shop.refused("tain x.toml", &["tain", "train"]);
    shop.refused("eval teacher", &["--data"]);
}

//! What holds for the files of every runtime: the model card, the trail back to the packed model, and what is refused.

use std::fs;

use crate::model::{RECIPE, SHIPPED};
use crate::workshop::Workshop;

fn text(shop: &Workshop, name: &str) -> String {
    String::from_utf8(shop.read(name)).expect("UTF-8")
}

#[test]
fn a_recipe_ships_several_formats_each_with_what_was_measured() {
    let shop = Workshop::furnished();
    shop.write("teacher/README.md", "---\nlicense: apache-2.0\n---\n# Teacher\n");
    shop.write("tiny.toml", format!("{RECIPE}{SHIPPED}"));
    shop.done("train tiny.toml --out run --set export.format=[\"qat\",\"hf\"]");
    let card = text(&shop, "run/hf/README.md");
    let perplexity = shop.json("run/report.json")["perplexity"].as_f64().expect("a number");
    for part in [
        "base_model: \"teacher\"".to_owned(),
        "license: \"apache-2.0\"".to_owned(),
        "quantization-aware training".to_owned(),
        "training data: train.txt".to_owned(),
        format!("perplexity {perplexity:.4} ±"),
        "KL(reference ‖ this)".to_owned(),
        "bits per weight".to_owned(),
        "| model.safetensors | ".to_owned(),
    ] {
        assert!(card.contains(&part), "{part:?} is not in:\n{card}");
    }
    let provenance = shop.json("run/hf/qat.json");
    assert_eq!(provenance["model_sha256"], shop.json("run/report.json")["model_sha256"]);
    let mut named: Vec<_> = provenance["sha256"].as_object().expect("sums").keys().cloned().collect();
    let mut present: Vec<String> = fs::read_dir(shop.path("run/hf"))
        .expect("listed")
        .map(|e| e.expect("listed").file_name().into_string().expect("UTF-8"))
        .filter(|name| name != "qat.json")
        .collect();
    named.sort();
    present.sort();
    assert_eq!(named, present, "each file has a checksum, and nothing else is there");
}

#[test]
fn run_and_packed_model_give_the_same_files() {
    let shop = Workshop::furnished();
    shop.done("train tiny.toml --out run");
    shop.done("export run --format qat --out packed");
    shop.done("export run --format hf --out of-run");
    shop.done("export packed --format hf --out of-packed");
    assert_eq!(shop.read("of-run/model.safetensors"), shop.read("of-packed/model.safetensors"));
    assert!(text(&shop, "of-packed/README.md").contains("Not measured: `qat eval`"));
}

#[test]
fn a_card_has_the_scores_of_its_own_model_only() {
    let shop = Workshop::furnished();
    for format in ["int4-g32", "int8-g32"] {
        shop.done(&format!("export teacher --format qat --weights {format} --out {format}"));
        shop.done(&format!("eval {format} --data valid.txt --json {format}.json"));
    }
    shop.done("export int4-g32 --format hf --report int4-g32.json --out float");
    assert!(text(&shop, "float/README.md").contains("- perplexity "));
    let other = "export int4-g32 --format hf --report int8-g32.json --out other";
    shop.refused(other, &["the report is of another model", "qat eval --json"]);
    shop.refused(
        "export int4-g32 --format hf --report nowhere.json --out other",
        &["--report", "nowhere.json"],
    );
}

#[test]
fn wrong_formats_and_flags_are_refused() {
    let shop = Workshop::furnished();
    shop.refused("export teacher --format gguff --out x", &["--format", "gguff", "want qat, "]);
    shop.refused("export teacher --format hf --out x", &["teacher", "float model", "--weights int4-g32"]);
    shop.refused(
        "export teacher --format hf --weights int4-g32 --dtype f64 --out x",
        &["--dtype", "f64", "f32, f16 or bf16"],
    );
    shop.refused(
        "export teacher --format hf --weights int4-g32 --dtype bf16 --out x",
        &["model.embed_tokens.weight", "exact only in f32"],
    );
    shop.refused("export teacher --format qat --weights int4-g32 --requantize --out x", &["--requantize"]);
    shop.refused("export teacher --format mlx --weights int4-g32 --tq1 --out x", &["--tq1", "mlx"]);
    shop.refused(
        "export teacher --format mlx --weights int4-g32 --context 32 --out x",
        &["--context", "mlx"],
    );
    shop.refused(
        "export teacher --format gguf --weights int4-g32 --context 0 --out x",
        &["--context 0", "want 1 to"],
    );
    shop.refused(
        "train tiny.toml --out run --set export.format=[\"hf\",\"hf\"]",
        &["export.format", "twice"],
    );
    shop.refused("train tiny.toml --out run --set export.format=[]", &["export.format"]);
}

#[test]
fn a_grid_that_the_target_lacks_is_refused_and_rounded_again_only_when_asked() {
    let shop = Workshop::furnished();
    shop.done("export teacher --format qat --weights int3-affine-g64 --out packed");
    let parts = [
        "model.layers.0",
        "gguf can't hold the grid of int3-affine-g64",
        "formats that fit",
        "int4-g32",
        "--requantize",
    ];
    shop.refused("export packed --format gguf --out gguf", &parts);
    shop.refused(
        "train tiny.toml --out run --set export.format=gguf --set quant.weights=int3-affine-g64",
        &parts,
    );
    let said = shop.done("export packed --format gguf --out gguf --requantize");
    for part in [
        "rounded again: int3-affine-g64 → int4-g32",
        "largest relative error 0.0",
        "KL(trained ‖ rounded again)",
    ] {
        assert!(said.out.contains(part), "{part:?} is not in:\n{}", said.out);
    }
    let card = text(&shop, "gguf/README.md");
    assert!(
        card.contains("**rounded again for this export**") && card.contains("Not measured for these codes"),
        "{card}"
    );
    assert!(shop.json("gguf/qat.json")["requantized"].is_string());
    // A grid that fits is not touched, asked or not.
    let said = shop.done("export packed --format mlx --out mlx --requantize");
    assert!(!said.out.contains("rounded again") && shop.json("mlx/qat.json")["requantized"].is_null());
}

#[test]
fn a_changed_packed_model_is_not_exported() {
    let shop = Workshop::furnished();
    shop.done("export teacher --format qat --weights int4-g32 --out packed");
    let mut bytes = shop.read("packed/model.safetensors");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    shop.write("packed/model.safetensors", bytes);
    shop.refused("export packed --format hf --out x", &["packed/model.safetensors", "SHA-256"]);
}

#[test]
fn a_float_model_is_rounded_by_gptq_on_a_text_and_only_with_one() {
    let shop = Workshop::furnished();
    let export = "export teacher --format qat --weights int3-affine-g32 --embeddings float";
    shop.done(&format!("{export} --scales mse --out mse"));
    shop.done(&format!("{export} --scales gptq --calibration train.txt --calibration-windows 16 --out gptq"));
    let kl = |model: &str| {
        shop.done(&format!("eval {model} --data valid.txt --against teacher --ctx 32 --json score.json"));
        let score = shop.json("score.json");
        let windows = score["per_window"].as_array().expect("a list").clone();
        assert_eq!(windows.len() as u64, score["windows"].as_u64().expect("a number"));
        let mean =
            windows.iter().map(|w| w["kl"].as_f64().expect("a number")).sum::<f64>() / windows.len() as f64;
        let whole = score["kl_mean"].as_f64().expect("a number");
        assert!((mean - whole).abs() < 1e-9, "windows of equal length: {mean} is {whole}");
        whole
    };
    assert_ne!(shop.read("mse/model.safetensors"), shop.read("gptq/model.safetensors"));
    assert!(kl("gptq").is_finite() && kl("mse").is_finite());
    assert_eq!(shop.json("gptq/manifest.json")["source"]["scales"], "gptq");
    shop.refused(&format!("{export} --scales gptq --out x"), &["--scales gptq", "--calibration TEXT"]);
    shop.refused(
        &format!("{export} --scales mse --calibration train.txt --out x"),
        &["--calibration", "only gptq", "mse"],
    );
    shop.refused(&format!("{export} --scales gptq --calibration nowhere.txt --out x"), &["nowhere.txt"]);
    shop.refused(
        &format!("{export} --scales gptq --calibration train.txt --calibration-windows 0 --out x"),
        &["calibration_windows = 0", "at least 1"],
    );
}

//! Random models and the measuring of their speed: what `qat init` writes, what `qat bench` prints, what both refuse.
//!
//! How fast something is, no test can know; that numbers agree with each other, it can.

use serde_json::{Value, json};

use crate::{
    model::{self, CONTEXT},
    workshop::{Said, Workshop},
};

/// A workshop with the shape `tiny.json`, whose rows every format can hold.
fn shaped() -> Workshop {
    let shop = Workshop::new();
    let mut config = model::config();
    (config["hidden_size"], config["intermediate_size"]) = (256.into(), 256.into());
    shop.write("tiny.json", config.to_string());
    shop
}

/// Makes the model `packed` in the tiny shape.
fn init(shop: &Workshop) {
    shop.done("init --shape tiny.json --format int4-g32 --out packed");
}

/// Values of the cells of a line of a table in Markdown.
fn cells(line: &str) -> Vec<&str> {
    let inner = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
    inner.unwrap_or_else(|| panic!("{line:?} is no line of a table")).split('|').map(str::trim).collect()
}

fn rows(said: &Said) -> Vec<Value> {
    serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"))
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} is no number: {row}"))
}

#[test]
fn a_seed_makes_the_same_model_and_another_seed_another() {
    let shop = shaped();
    for format in
        ["int4-g32", "int8-g32", "int3-affine-g64", "ternary-g64", "ternary-g256", "ternary-tensor", "float"]
    {
        for (seed, out) in [(7, "a"), (7, "b"), (8, "c")] {
            shop.done(&format!(
                "init --shape tiny.json --format {format} --seed {seed} --out {out}/{format}"
            ));
        }
        let tensors = |out| shop.read(format!("{out}/{format}/model.safetensors"));
        assert_eq!(tensors("a"), tensors("b"), "{format}");
        assert_ne!(tensors("a"), tensors("c"), "{format}");
    }
}

#[test]
fn a_packed_random_model_is_what_export_makes_of_the_float_one() {
    let shop = shaped();
    shop.done("init --shape tiny.json --format float --out float");
    shop.write("float/tokenizer.json", model::tokenizer().to_string());
    for weights in ["int4-g32", "int4-affine-g32", "ternary-g256", "ternary-tensor"] {
        shop.done(&format!(
            "init --shape tiny.json --format {weights} --embeddings int8-g32 --out random/{weights}"
        ));
        shop.done(&format!(
            "export float --format qat --weights {weights} --embeddings int8-g32 --scales absmax --out exported/{weights}"
        ));
        let tensors = |from| shop.read(format!("{from}/{weights}/model.safetensors"));
        assert!(tensors("random") == tensors("exported"), "{weights}");
    }
}

#[test]
fn formats_and_activations_are_those_that_were_asked_for() {
    let shop = shaped();
    shop.done(
        "init --shape tiny.json --format ternary-g64 --embeddings int4-g32 --activations int8 --out packed",
    );
    shop.done("init --shape tiny.json --format int4-g32 --out default");
    let entry = |dir: &str, name: &str| {
        let entry = shop.json(format!("{dir}/manifest.json"))["tensors"][name].clone();
        (entry["format"].clone(), entry["activations"].clone())
    };
    let (head, layer) = ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight");
    assert_eq!(entry("packed", head), (json!("int4-g32"), json!("float")));
    assert_eq!(entry("packed", layer), (json!("ternary-g64"), json!("int8-token")));
    assert_eq!(entry("default", head), (json!("int8-g32"), json!("float")));
    assert_eq!(entry("default", layer), (json!("int4-g32"), json!("float")));
}

#[test]
fn a_model_without_a_tokenizer_reads_no_text() {
    let shop = shaped();
    init(&shop);
    shop.done("init --shape packed --format float --out float");
    shop.write("text.txt", "Once upon a time");
    for dir in ["packed", "float"] {
        shop.refused(
            &format!("eval {dir} --data text.txt"),
            &[dir, "text can't be read without a tokenizer"],
        );
    }
    shop.refused(
        "export float --format qat --weights int4-g32 --out x",
        &["float", "text can't be read without a tokenizer: missing tokenizer.json"],
    );
}

#[test]
fn the_table_is_markdown_with_the_columns_of_llama_bench() {
    let shop = shaped();
    init(&shop);
    let said = shop.done("bench packed --pp 8,16 --tg 0 --depth 0,4 --threads 1,2 --reps 2");
    let mut lines = said.out.lines();
    let header = cells(lines.next().expect("a header"));
    for column in ["model", "size", "params", "backend", "threads", "test", "t/s"] {
        assert!(header.contains(&column), "{column} is not in {header:?}");
    }
    assert!(cells(lines.next().expect("a rule")).iter().all(|cell| cell.bytes().all(|b| b == b'-')));
    let at = |name| header.iter().position(|column| *column == name).expect("a column");
    let found: Vec<_> = lines
        .take_while(|line| !line.is_empty())
        .map(|line| {
            let row = cells(line);
            assert_eq!(row.len(), header.len(), "{line}");
            let (mean, deviation) = row[at("t/s")].split_once(" ± ").expect("mean ± deviation");
            assert!(mean.parse::<f64>().is_ok_and(|mean| mean > 0.0), "{line}");
            assert!(deviation.parse::<f64>().is_ok_and(|deviation| deviation >= 0.0), "{line}");
            assert!(
                row[at("model")].contains("llama") && row[at("model")].contains("int4-g32, head int8-g32")
            );
            (row[at("threads")].to_owned(), row[at("test")].to_owned())
        })
        .collect();
    let tests = ["pp8", "pp16", "pp8 @ d4", "pp16 @ d4"];
    let want: Vec<_> =
        ["1", "2"].iter().flat_map(|n| tests.map(|test| (n.to_string(), test.to_owned()))).collect();
    assert_eq!(found, want);
}

#[test]
fn json_has_the_fields_of_llama_bench_and_its_numbers_agree() {
    let shop = shaped();
    init(&shop);
    shop.done("init --shape tiny.json --format float --out float");
    let said = shop.done(
        "bench packed float --pp 0 --tg 9 --depth 3 --threads 2 --reps 3 --format json --json rows.json",
    );
    let rows = rows(&said);
    assert_eq!(shop.json("rows.json"), Value::Array(rows.clone()), "the file says what was printed");
    assert_eq!(rows.len(), 2);
    for (row, dir) in rows.iter().zip(["packed", "float"]) {
        let text = |field: &str| row[field].as_str().unwrap_or_else(|| panic!("{field}: {row}"));
        assert_eq!(text("model_filename"), dir);
        assert_eq!(
            ["n_threads", "n_prompt", "n_gen", "n_depth"].map(|f| number(row, f)),
            [2.0, 0.0, 9.0, 3.0]
        );
        assert!(!text("cpu_info").is_empty() && !text("isa").is_empty() && text("test_time").ends_with('Z'));
        assert_eq!((text("backends"), text("test")), ("CPU", "tg9 @ d3"));
        let list = |field: &str| -> Vec<f64> {
            let values = row[field].as_array().unwrap_or_else(|| panic!("{field} is no list: {row}"));
            values.iter().map(|value| value.as_f64().expect("a number")).collect()
        };
        let (rates, times) = (list("samples_ts"), list("samples_ns"));
        assert_eq!((rates.len(), times.len()), (3, 3));
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs();
        assert!(rates.iter().zip(&times).all(|(rate, ns)| close(rate * ns * 1e-9, 9.0)), "{row}");
        let mean = rates.iter().sum::<f64>() / 3.0;
        let deviation = (rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
        assert!(close(number(row, "avg_ts"), mean) && close(number(row, "stddev_ts"), deviation), "{row}");
        // Nanoseconds are whole.
        assert!((number(row, "avg_ns") - times.iter().sum::<f64>() / 3.0).abs() <= 0.5, "{row}");
        assert!(close(number(row, "bytes_per_second"), number(row, "bytes_per_token") * mean));
        for kind in ["triad", "read"] {
            let memory = number(row, &format!("{kind}_bytes_per_second"));
            assert!(close(number(row, &format!("of_{kind}")), number(row, "bytes_per_second") / memory));
        }
        // All the weights, with at most 15 rows of f16 to fill the last panel of 257; and of the seven tokens before
        // the middle one, in both layers, keys and values in f16 of 128 elements.
        let beside = number(row, "bytes_per_token") - number(row, "model_size");
        let kv = 7.0 * 2.0 * 2.0 * 128.0 * 2.0;
        assert!((kv..=kv + 16.0 * 256.0 * 2.0).contains(&beside), "{beside} beside the weights: {row}");
    }
    let stored = shop.read("float/model.safetensors").len() as f64;
    let (packed, float) = (number(&rows[0], "model_size"), number(&rows[1], "model_size"));
    assert!(packed < float && float <= stored && stored < float + 8192.0, "{packed}, {float}, {stored}");
}

#[test]
fn csv_has_a_value_for_each_name() {
    let shop = shaped();
    init(&shop);
    let said = shop.done("bench packed --pp 8 --tg 0 --reps 1 --threads 1 --format csv");
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines.len(), 2, "{said:?}");
    let names: Vec<&str> = lines[0].split(',').collect();
    let values: Vec<&str> = lines[1]
        .strip_prefix('"')
        .and_then(|l| l.strip_suffix('"'))
        .expect("quotes")
        .split("\",\"")
        .collect();
    assert_eq!(names.len(), values.len(), "{said:?}");
    for (name, value) in [("n_prompt", "8"), ("n_gen", "0"), ("n_threads", "1"), ("model_filename", "packed")]
    {
        let at = names.iter().position(|n| *n == name).unwrap_or_else(|| panic!("{name} in {names:?}"));
        assert_eq!(values[at], value);
    }
    assert!(["model_type", "model_size", "avg_ts", "stddev_ts"].iter().all(|name| names.contains(name)));
}

#[test]
fn a_test_longer_than_the_context_is_refused() {
    let shop = shaped();
    init(&shop);
    let context = CONTEXT.to_string();
    for (flags, test) in [
        ("--pp 129 --tg 0", "pp129"),
        ("--pp 0 --tg 129", "tg129"),
        ("--pp 8 --tg 64 --depth 65", "tg64 @ d65"),
        ("--pp 8 --depth 18446744073709551615", "pp8 @ d18446744073709551615"),
    ] {
        shop.refused(
            &format!("bench packed {flags}"),
            &["packed", test, &context, "max_position_embeddings"],
        );
    }
    shop.done(&format!("bench packed --pp {} --tg 0 --depth 1 --reps 1", CONTEXT - 1));
}

#[test]
fn what_is_no_model_is_not_measured() {
    let shop = shaped();
    init(&shop);
    shop.write("folder/notes.txt", "");
    shop.refused("bench nowhere", &["nowhere", "does not exist"]);
    shop.refused("bench packed nowhere --pp 8 --tg 8", &["nowhere", "does not exist"]);
    shop.refused("bench tiny.json", &["tiny.json", "is not a directory"]);
    shop.refused("bench folder", &["folder", "missing config.json"]);
    shop.refused("bench", &["DIR"]);
    shop.refused("bench packed --pp 0 --tg 0", &["nothing to measure", "--pp", "--tg"]);
    shop.refused("bench packed --pp eight", &["eight", "--pp"]);
    shop.refused("bench packed --threads 0", &["--threads"]);
    shop.refused("bench packed --threads 99999", &["--threads 99999", "1024"]);
    shop.refused("bench packed --reps 0", &["--reps"]);
    shop.refused("bench packed --format xml", &["xml", "md, csv, json"]);
}

#[test]
fn what_was_measured_is_shown_although_the_next_model_is_damaged() {
    let shop = shaped();
    init(&shop);
    shop.done("init --shape tiny.json --format int8-g32 --out damaged");
    let mut bytes = shop.read("damaged/model.safetensors");
    *bytes.last_mut().expect("bytes") ^= 1;
    shop.write("damaged/model.safetensors", bytes);
    let line = "bench packed damaged --pp 4 --tg 0 --reps 1 --format json";
    let said = shop.refused(line, &["damaged/model.safetensors", "SHA-256"]);
    assert_eq!(rows(&said).len(), 1, "{said:?}");
    assert_eq!(shop.refused("bench damaged --pp 4 --tg 0", &["SHA-256"]).out, "");
}

#[test]
fn shapes_and_formats_that_do_not_exist_are_refused() {
    let shop = shaped();
    let init = "init --format int4-g32 --out x --shape";
    shop.refused(
        &format!("{init} smollm2-1t"),
        &["smollm2-1t", "smollm2-135m", "bitnet-24x1024", "config.json"],
    );
    shop.write("gpt.json", json!({"model_type": "gpt2"}).to_string());
    shop.refused(&format!("{init} gpt.json"), &["gpt.json", "model_type", "gpt2", "llama"]);
    shop.write("broken.json", "{");
    shop.refused(&format!("{init} broken.json"), &["broken.json", "JSON"]);
    let init = "init --shape tiny.json --out x --format";
    shop.refused(&format!("{init} int4"), &["--format", "\"int4\"", "int4-g32"]);
    shop.refused(&format!("{init} int4-g32 --embeddings int5"), &["--embeddings", "\"int5\""]);
    shop.refused(&format!("{init} float --embeddings int8-g32"), &["--embeddings", "float"]);
    shop.refused(&format!("{init} float --activations int8"), &["--activations int8", "float"]);
    shop.refused(&format!("{init} int4-g32 --activations int3"), &["int3", "int8, float"]);
    let mut narrow = model::config();
    narrow["intermediate_size"] = 96.into();
    shop.write("narrow.json", narrow.to_string());
    shop.refused(
        "init --shape narrow.json --format ternary-g64 --out x",
        &["model.layers.0.mlp.down_proj.weight", "96", "ternary-tensor"],
    );
    shop.write("photos/cat.png", "purr");
    shop.refused("init --shape tiny.json --format int4-g32 --out photos", &["photos", "not replaced"]);
    shop.refused("init --shape tiny.json --format float --out photos", &["photos", "not replaced"]);
}

/// The measurement of the furnished recipe, six steps in all.
fn trained(shop: &Workshop, more: &str) -> Value {
    let line = format!("bench --train tiny.toml --steps 3 --device cpu --format json {more}");
    serde_json::from_str(&shop.done(&line).out).expect("JSON")
}

#[test]
fn a_recipe_is_measured_without_its_data_and_nothing_is_written() {
    let shop = Workshop::furnished();
    let before = shop.path("").read_dir().expect("listed").count();
    let float = trained(&shop, "--set data.train=[\"nowhere.txt\"]");
    assert_eq!(shop.path("").read_dir().expect("listed").count(), before);
    let losses = float["losses"].as_array().expect("losses");
    assert_eq!((losses.len(), float["samples_seconds"].as_array().map(Vec::len)), (6, Some(3)));
    let per_second = number(&float, "tokens_per_step") / number(&float, "step_seconds");
    assert!((number(&float, "tokens_per_second") / per_second - 1.0).abs() < 1e-9, "{float}");
    assert!(number(&float, "update_seconds") <= number(&float, "step_seconds"), "{float}");
    assert!(number(&float, "peak_rss_bytes") > 1e6, "{float}");
    assert_eq!(trained(&shop, "")["losses"], float["losses"], "the same steps on the same random tokens");
    assert_ne!(trained(&shop, "--set seed=2")["losses"], float["losses"]);
    let table = shop.done("bench --train tiny.toml --steps 1 --device cpu").out;
    assert!(table.contains("tokens/s") && table.contains("| tiny"), "{table}");
}

#[test]
fn a_measurement_of_training_that_makes_no_sense_is_refused() {
    let shop = Workshop::furnished();
    let train = "bench --train tiny.toml --device cpu";
    shop.refused("bench --train nowhere.toml", &["nowhere.toml", "cannot read"]);
    shop.refused(&format!("{train} --format csv"), &["--format csv", "json"]);
    shop.refused(&format!("{train} --steps 0"), &["--steps"]);
    shop.refused(&format!("{train} --pp 8"), &["--train", "--pp"]);
    shop.refused("bench teacher --steps 3", &["--steps", "cannot be used with", "DIR"]);
    shop.refused(&format!("{train} --variant other"), &["--variant other", "it has none"]);
    shop.refused(&format!("{train} --set quant.weights=int5"), &["int5"]);
    let two = "\n[variants.a]\nseed = 2\n[variants.b]\nseed = 3\n";
    shop.write("two.toml", [shop.read("tiny.toml"), two.into()].concat());
    shop.refused("bench --train two.toml --device cpu", &["two.toml", "--variant", "a, b"]);
    shop.done("bench --train two.toml --variant b --steps 1 --device cpu");
}

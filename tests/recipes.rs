//! Recipes that can't be honoured: each is refused before anything is made, with the key, what was wanted, and the fix.

use crate::{
    model::{RECIPE, SHIPPED},
    workshop::Workshop,
};

const TRAIN: &str = "train tiny.toml --out run";

/// A furnished workshop with the recipe changed.
fn with(from: &str, to: &str) -> Workshop {
    let shop = Workshop::furnished();
    let recipe = format!("{RECIPE}{SHIPPED}");
    assert!(recipe.contains(from), "{from:?} is in the recipe");
    shop.write("tiny.toml", recipe.replace(from, to));
    shop
}

#[test]
fn a_misspelt_key_is_answered_with_the_nearest_one() {
    let shop = with("checkpoint_every = 3", "chekpoint_every = 3");
    shop.refused(
        TRAIN,
        &["tiny.toml", "unknown field `chekpoint_every`", "did you mean `checkpoint_every`?", "line 19"],
    );
}

#[test]
fn a_misspelt_table_is_answered_with_the_nearest_one() {
    let shop = with("[optim]", "[optimizer]");
    shop.refused(TRAIN, &["tiny.toml", "unknown field `optimizer`", "`optim`"]);
}

#[test]
fn a_value_of_a_wrong_type_names_line_key_and_types() {
    let shop = with("steps = 6", "steps = \"six\"");
    shop.refused(TRAIN, &["tiny.toml", "steps = \"six\"", "string \"six\", expected usize"]);
}

#[test]
fn a_misspelt_set_names_the_argument() {
    let shop = Workshop::furnished();
    shop.refused(
        "train tiny.toml --out run --set optim.l=1",
        &["--set optim.l=1", "unknown field `l`", "did you mean `lr`?"],
    );
    shop.refused(
        "train tiny.toml --out run --set train.steps=many",
        &["--set train.steps=many", "expected usize"],
    );
    shop.refused("train tiny.toml --out run --set train.steps", &["--set train.steps", "want key=value"]);
    shop.refused(
        "train tiny.toml --out run --set seed.x=1",
        &["--set seed.x=1", "`seed` is a value, not a table"],
    );
}

#[test]
fn an_unknown_variant_lists_those_that_exist() {
    let shop = with("[export]", "[variants.a]\nseed = 1\n[variants.b]\nseed = 2\n[export]");
    shop.refused(&format!("{TRAIN} --variant c"), &["--variant c", "it has a, b"]);
    let shop = Workshop::furnished();
    shop.refused(&format!("{TRAIN} --variant c"), &["--variant c", "it has none"]);
}

#[test]
fn a_value_out_of_range_names_its_key_and_the_range() {
    let shop = Workshop::furnished();
    for (set, want) in [
        ("train.steps=0", "train.steps = 0: want at least 1"),
        ("optim.lr=0.0", "optim.lr = 0: want a finite number above 0"),
        ("quant.gradient=magic", "quant.gradient = \"magic\": want ste, clipped-ste, lsq or seq"),
        ("quant.weights=int4", "int4-g32"),
        ("optim.schedule=step", "want cosine, wsd or constant"),
        ("data.train=[]", "data.train"),
        ("train.precision=fp16", "train.precision = \"fp16\": want \"f32\" or \"bf16\""),
    ] {
        shop.refused(&format!("{TRAIN} --set {set}"), &["tiny.toml", want]);
    }
}

#[test]
fn a_missing_recipe_is_named() {
    Workshop::new()
        .refused("train nowhere.toml", &["nowhere.toml", "cannot read the recipe", "No such file"]);
}

#[test]
fn a_recipe_that_is_not_toml_names_the_line() {
    let shop = with("weights = \"int4-g32\"", "weights = int4-g32");
    shop.refused(TRAIN, &["tiny.toml", "line 7"]);
}

#[test]
fn missing_text_is_named_before_training() {
    let shop = with("train.txt", "trian.txt");
    shop.refused(TRAIN, &["trian.txt", "No such file"]);
    let shop = with("valid.txt", "vaild.txt");
    shop.refused(TRAIN, &["vaild.txt", "No such file"]);
}

#[test]
fn text_of_a_kind_that_is_not_read_lists_what_is() {
    let shop = with("train.txt", "train.pdf");
    shop.write("train.pdf", "%PDF");
    shop.refused(TRAIN, &["train.pdf", "can't read .pdf", ".jsonl", ".parquet", "stories:seed="]);
}

#[test]
fn empty_text_is_refused() {
    let shop = Workshop::furnished();
    shop.write("train.txt", "");
    shop.refused(TRAIN, &["train.txt", "no text in it"]);
    shop.write("train.txt", " \n\t\n");
    shop.refused(TRAIN, &["train.txt", "no text in it"]);
    shop.write("valid.txt", "");
    shop.refused("eval teacher --data valid.txt", &["valid.txt", "no text in it"]);
}

#[test]
fn text_too_short_for_a_window_says_how_much_there_is() {
    let shop = Workshop::furnished();
    shop.write("train.txt", "Too short.");
    shop.refused(TRAIN, &["11 tokens", "33"]);
}

#[test]
fn a_missing_model_directory_says_what_belongs_into_one() {
    let shop = with("from = \"teacher\"", "from = \"techer\"");
    shop.refused(TRAIN, &["techer", "does not exist", "config.json, tokenizer.json, model.safetensors"]);
    let shop = with("model = \"teacher\"", "model = \"techer\"");
    shop.refused(TRAIN, &["techer", "does not exist"]);
    let shop = with("against = \"teacher\"", "against = \"techer\"");
    shop.refused(TRAIN, &["techer", "does not exist"]);
}

#[test]
fn a_window_longer_than_the_context_is_refused() {
    let shop = Workshop::furnished();
    shop.refused(&format!("{TRAIN} --set data.ctx=129"), &["data.ctx = 129", "max_position_embeddings 128"]);
    shop.refused("eval teacher --data valid.txt --ctx 129", &["129", "128"]);
    let shop = with("[eval]", "[eval]\nctx = 129");
    shop.refused(TRAIN, &["eval.ctx = 129", "max_position_embeddings 128"]);
}

#[test]
fn a_row_that_does_not_fit_names_tensor_formats_and_the_padding() {
    let shop = Workshop::furnished();
    shop.model_with("teacher", |config, tensors| {
        config["intermediate_size"] = 100.into();
        *tensors = crate::model::tensors(config);
    });
    let parts =
        ["model.layers.0.mlp.down_proj.weight", "100", "32", "ternary-tensor", "pad_intermediate = 64"];
    shop.refused(TRAIN, &parts);
    shop.refused("export teacher --format qat --weights int4-g32 --out packed", &parts);
    shop.done("export teacher --format qat --weights int4-g32 --pad-intermediate 32 --out packed");
    assert_eq!(shop.json("packed/config.json")["intermediate_size"], 128);
}

#[test]
fn an_override_that_matches_nothing_is_refused() {
    let shop = Workshop::furnished();
    shop.refused(
        &format!("{TRAIN} --set quant.overrides.model.layer.0.*=float"),
        &["quant.overrides.\"model.layer.0.*\"", "model.embed_tokens.weight"],
    );
}

#[test]
fn a_teacher_with_another_tokenizer_is_refused() {
    let shop = with("model = \"teacher\"", "model = \"stranger\"");
    shop.model("stranger");
    let other =
        String::from_utf8(shop.read("stranger/tokenizer.json")).expect("UTF-8").replace("<|end|>", "<|fin|>");
    shop.write("stranger/tokenizer.json", other);
    shop.refused(
        TRAIN,
        &["stranger: the teacher's tokenizer differs from the student's", "teacher/tokenizer.json"],
    );
}

#[test]
fn a_teacher_with_another_vocabulary_is_refused() {
    let shop = with("model = \"teacher\"", "model = \"stranger\"");
    shop.model_with("stranger", |config, tensors| {
        config["vocab_size"] = 300.into();
        *tensors = crate::model::tensors(config);
    });
    shop.refused(TRAIN, &["stranger", "vocab_size is 300, the student's 257"]);
}

#[test]
fn a_device_that_is_not_here_is_refused() {
    let shop = Workshop::furnished();
    shop.refused(&format!("{TRAIN} --device gpu"), &["gpu", "auto, cpu, metal or cuda"]);
    shop.refused("eval teacher --data valid.txt --device gpu", &["--device gpu", "auto, cpu or metal"]);
    if !cfg!(target_os = "macos") {
        shop.refused("eval teacher --data valid.txt --device metal", &["--device metal", "--device cpu"]);
    }
}

#[test]
fn a_precision_that_the_device_has_not_is_refused_with_both_ways_out() {
    let shop = Workshop::furnished();
    let line = format!("{TRAIN} --device cpu --set train.precision=bf16");
    shop.refused(&line, &["train.precision = \"bf16\"", "train.precision = \"f32\"", "--device cuda"]);
}

#[test]
fn a_gate_that_can_not_be_read_is_refused_before_training() {
    let shop = with("[eval]", "[eval]\nrequire = [\"perplexety<5\"]");
    shop.refused(TRAIN, &["eval.require", "perplexety", "perplexity"]);
    let shop = with("against = \"teacher\"", "require = [\"kl<5\"]");
    shop.refused(TRAIN, &["eval.require", "kl<5", "against"]);
}

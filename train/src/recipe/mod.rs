//! From a TOML file and `--set key=value` to checked plans, one for each variant.
//!
//! Two types, two stages: [`Recipe`] is what the user wrote, [`Plan`] what will run. Every error names the key and the file or the
//! argument it came from, and a misspelt key is answered with the nearest one that exists.

mod data;
mod plan;
#[cfg(test)]
mod properties;
mod quant;
mod raw;
mod rules;
mod teaching;
mod written;

use std::path::Path;

use serde::Deserialize as _;

pub use data::{ChatPlan, DataPlan};
pub use plan::{BlocksPlan, EvalPlan, ExportPlan, MuonPlan, OptimPlan, Origin, Plan, Schedule};
pub use quant::{Learn, Mix, Quantization, Rounding, Warmup};
pub use raw::Recipe;
pub use rules::{Choice, Rules};
pub use teaching::{CachePlan, FeaturePlan, LossPlan, OnPolicyPlan, TeacherPlan};

use crate::{Error, Result};

/// A recipe under its name: the base recipe has none, a variant has the key under `[variants]`.
#[derive(Debug, Clone)]
pub struct Named {
    /// The variant's name.
    pub variant: Option<String>,
    /// What it asks for.
    pub recipe: Recipe,
}

/// Reads the recipe at `path`, applies `sets` (`key=value`, dotted keys) and spreads it into its variants.
///
/// # Errors
/// Unreadable file, TOML that doesn't parse, an unknown key or a wrong type: with file, line or argument, and the nearest key.
pub fn load(path: &Path, sets: &[String]) -> Result<Vec<Named>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("cannot read the recipe", path, e))?;
    parse(&text, path, sets)
}

/// [`load`] for text that is already in memory; `origin` is named in errors.
///
/// # Errors
/// See [`load`].
pub fn parse(text: &str, origin: &Path, sets: &[String]) -> Result<Vec<Named>> {
    // Parsed once as written, so that an error can point into the file.
    toml::from_str::<Recipe>(text).map_err(|e| Error::file(origin, explain(&e.to_string())))?;
    let mut table: toml::Table = toml::from_str(text).map_err(|e| Error::file(origin, e.to_string()))?;
    apply(sets, &mut table)?;
    let base = typed(&table).map_err(|e| Error::file(origin, e))?;
    if base.variants.is_empty() {
        return Ok(vec![Named { variant: None, recipe: base }]);
    }
    table.remove("variants");
    base.variants.iter().map(|(name, changes)| variant(&table, name, changes, sets, origin)).collect()
}

/// Puts the values of the command line into `table`.
fn apply(sets: &[String], table: &mut toml::Table) -> Result<()> {
    for set in sets {
        let (key, value) = set
            .split_once('=')
            .ok_or_else(|| Error::Config(format!("--set {set}: want key=value, such as train.steps=100")))?;
        let at = |e: String| Error::Config(format!("--set {set}: {e}"));
        assign(table, key.trim(), scalar(value.trim())).map_err(at)?;
        typed(table).map_err(at)?;
    }
    Ok(())
}

fn variant(
    base: &toml::Table,
    name: &str,
    changes: &toml::Table,
    sets: &[String],
    origin: &Path,
) -> Result<Named> {
    if name.is_empty()
        || name.starts_with('.')
        || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    {
        return Err(Error::file(
            origin,
            format!("[variants.{name}]: it names a folder; use letters, digits, '-', '_' and '.'"),
        ));
    }
    let mut table = base.clone();
    for (key, value) in changes {
        let at = |e: String| Error::file(origin, format!("[variants.{name}] {key}: {e}"));
        assign(&mut table, key, value.clone()).map_err(at)?;
        typed(&table).map_err(at)?;
    }
    // What the command line says holds for every variant, also where the variant says otherwise.
    apply(sets, &mut table)?;
    let recipe = typed(&table).map_err(|e| Error::file(origin, e))?;
    Ok(Named { variant: Some(name.to_owned()), recipe })
}

/// Puts `value` at the dotted `key`, making tables on the way.
fn assign(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<(), String> {
    let mut parts: Vec<&str> = key.split('.').collect();
    // Override patterns hold dots themselves: everything behind `quant.overrides.` is one key.
    if parts.len() > 3 && parts[..2] == ["quant", "overrides"] {
        parts = vec!["quant", "overrides", &key["quant.overrides.".len()..]];
    }
    let (last, parents) = parts.split_last().ok_or("empty key")?;
    let mut at = table;
    for part in parents {
        let next = at.entry(part.to_string()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = next.as_table_mut().ok_or_else(|| format!("`{part}` is a value, not a table"))?;
    }
    at.insert((*last).to_owned(), value);
    Ok(())
}

/// A `--set` value: TOML where it is TOML (numbers, booleans, arrays, quoted text), else the text itself.
fn scalar(text: &str) -> toml::Value {
    toml::from_str::<toml::Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

fn typed(table: &toml::Table) -> Result<Recipe, String> {
    Recipe::deserialize(table.clone()).map_err(|e| explain(e.to_string().trim()))
}

/// Adds the nearest existing spelling to serde's "unknown field `x`, expected one of `a`, `b`".
fn explain(message: &str) -> String {
    let mut quoted = message
        .split_once("unknown field ")
        .map(|(_, rest)| rest.split('`').skip(1).step_by(2))
        .into_iter()
        .flatten();
    let Some(wrong) = quoted.next() else { return message.to_owned() };
    match quoted.min_by_key(|known| edit_distance(wrong, known)) {
        Some(near) if edit_distance(wrong, near) <= 1 + near.len() / 3 => {
            format!("{}\ndid you mean `{near}`?", message.trim_end())
        }
        _ => message.to_owned(),
    }
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
[student]
from = "teacher"
[teacher]
model = "teacher"
[quant]
weights = "int4-g32"
[data]
train = ["a.txt"]
ctx = 64
[loss]
forward_kl = 1.0
[train]
steps = 10
batch = 2
"#;

    fn message(text: &str, sets: &[&str]) -> String {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        parse(text, Path::new("r.toml"), &sets)
            .and_then(|r| Plan::new(&r[0].recipe))
            .expect_err("refused")
            .to_string()
    }

    #[test]
    fn a_misspelt_key_is_refused_with_the_nearest_one() {
        let text = SMALL.replace("weights =", "wieghts =");
        let m = message(&text, &[]);
        assert!(m.starts_with("r.toml: ") && m.contains("line 7"), "{m}");
        assert!(m.contains("unknown field `wieghts`") && m.ends_with("did you mean `weights`?"), "{m}");
    }

    #[test]
    fn a_misspelt_set_names_the_argument() {
        let m = message(SMALL, &["train.stesp=3"]);
        assert!(m.starts_with("--set train.stesp=3: ") && m.contains("did you mean `steps`?"), "{m}");
        let m = message(SMALL, &["train.steps"]);
        assert!(m.contains("want key=value"), "{m}");
    }

    #[test]
    fn a_wrong_type_names_line_and_types() {
        let m = message(&SMALL.replace("steps = 10", "steps = \"ten\""), &[]);
        assert!(
            m.contains("steps = \"ten\"") && m.contains("invalid type: string \"ten\", expected usize"),
            "{m}"
        );
    }

    #[test]
    fn variants_change_only_what_they_name() {
        let text =
            format!("{SMALL}\n[variants.a]\n\"quant.weights\" = \"ternary-g64\"\n[variants.b]\nseed = 7\n");
        let all = parse(&text, Path::new("r.toml"), &["train.steps=3".to_owned()]).expect("parses");
        let names: Vec<_> = all.iter().map(|n| n.variant.as_deref().unwrap_or("")).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!((all[0].recipe.quant.weights.as_str(), all[0].recipe.seed), ("ternary-g64", 0));
        assert_eq!((all[1].recipe.quant.weights.as_str(), all[1].recipe.seed), ("int4-g32", 7));
        assert!(all.iter().all(|n| n.recipe.train.steps == 3));
        let all = parse(&text, Path::new("r.toml"), &["seed=5".to_owned()]).expect("parses");
        assert!(all.iter().all(|n| n.recipe.seed == 5), "the command line has the last word");
        let wrong = format!("{SMALL}\n[variants.a]\n\"quant.wights\" = \"float\"\n");
        let m = parse(&wrong, Path::new("r.toml"), &[]).expect_err("refused").to_string();
        assert!(m.contains("[variants.a] quant.wights") && m.contains("did you mean `weights`?"), "{m}");
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        for (set, want) in [
            ("train.steps=0", "train.steps = 0: want at least 1"),
            ("data.ctx=1", "data.ctx = 1: want at least 2"),
            ("quant.weights=int5-g32", "quant.weights"),
            ("quant.overrides.model.layers.0.*=int9", "quant.overrides.\"model.layers.0.*\""),
            ("optim.schedule=linear", "optim.schedule = \"linear\": want cosine, wsd or constant"),
            ("quant.kv=fp8", "quant.kv = \"fp8\": want float, f16, int8 or int4"),
            ("train.mode=layers", "train.mode = \"layers\": want whole or blocks"),
            ("train.scale_steps=2", "train.scale_steps = 2: want train.mode = \"blocks\" beside it"),
            ("optim.kind=sgd", "optim.kind = \"sgd\": want adamw or muon"),
            ("optim.momentum=1.0", "optim.momentum = 1.0: want a number from 0 to below 1"),
            ("optim.lr=-1.0", "optim.lr = -1: want a finite number above 0"),
            ("loss.forward_kl=0.0", "[loss]: every weight is 0"),
            ("loss.relations=-1.0", "loss.relations = -1: want a finite number, 0 or more"),
            ("loss.skew_alpha=1.0", "loss.skew_alpha = 1.0: want a number between 0 and 1"),
            ("teacher.cache=", "teacher.cache = \"\": want a folder"),
            ("data.format=sft", "data.format = \"sft\": want text or chat"),
            ("data.learn=all", "data.learn = \"all\": want data.format = \"chat\" beside it"),
            ("data.held_out=0.9", "data.held_out = 0.9: want more than 0 and at most 0.5"),
            ("quant.scales=awq", "quant.scales = \"awq\": \"awq\" is no rule"),
            ("quant.gradient=dorefa", "quant.gradient = \"dorefa\": want ste, clipped-ste, lsq or seq"),
            ("quant.warmup=step", "quant.warmup = \"step\": want linear or cosine"),
            ("quant.begin=end", "quant.begin = \"end\": want start or decay"),
            ("quant.noise=0.0", "quant.noise = 0.0: want a share above 0 and at most 1"),
            ("quant.learn=codes", "quant.learn = \"codes\": want all or scales"),
            ("quant.calibration_windows=0", "quant.calibration_windows = 0: want at least 1"),
        ] {
            let m = message(SMALL, &[set]);
            assert!(m.contains(want), "{set}: {m}");
        }
        let m = message(&SMALL.replace("[teacher]\nmodel = \"teacher\"\n", ""), &[]);
        assert!(m.contains("loss.forward_kl") && m.contains("needs a [teacher]"), "{m}");
    }

    #[test]
    fn keys_that_do_not_go_together_are_refused() {
        let scratch = "[student.scratch]\nconfig = \"c.json\"\ntokenizer = \"tokenizer.json\"\n";
        let m = message(&format!("{SMALL}{scratch}"), &[]);
        assert_eq!(m, "[student]: `from` and [student.scratch] exclude each other");
        let m = message(&SMALL.replace("from = \"teacher\"", ""), &[]);
        assert!(m.starts_with("[student]: want `from` (a model directory) or [student.scratch]"), "{m}");
        let m = message(&format!("{SMALL}[eval]\ndata = [\"b.txt\"]\n"), &[]);
        assert!(m.contains("[eval] scores the exported model: add [export]"), "{m}");
        let m = |sets: &[&str]| message(SMALL, sets);
        let kept = "scales that are chosen anew in each step keep nothing of it";
        assert!(m(&["quant.gradient=ste", "quant.scales=gptq"]).contains(kept));
        assert!(m(&["quant.gradient=clipped-ste", "quant.learn=scales"]).contains(kept));
        assert!(m(&["quant.gradient=seq", "quant.scales=absmax"]).contains("start at least squared error"));
        assert!(
            m(&["quant.learn=scales", "quant.warmup_steps=5"])
                .contains("leave quant.warmup_steps and quant.noise out")
        );
        assert!(m(&["quant.begin=decay"]).contains("only optim.schedule = \"wsd\" has a decay"));
        assert!(
            m(&["quant.begin=decay", "optim.schedule=wsd", "quant.scales=gptq"]).contains("begin with codes")
        );
        for set in [
            "data.separator=x",
            "data.bos=true",
            "train.mode=blocks",
            "loss.hidden=1.0",
            "data.field=messages",
        ] {
            assert!(
                m(&["data.format=chat", set]).contains("leave it out with data.format = \"chat\""),
                "{set}"
            );
        }
        assert!(m(&["quant.target_bpw=4.0"]).contains("at least two formats"));
        assert!(m(&["quant.candidates=[\"int4-g32\", \"int8-g32\"]"]).contains("quant.target_bpw beside it"));
        assert!(
            m(&["quant.embeddings=candidates"]).contains("quant.candidates and quant.target_bpw beside it")
        );
        let twice = "quant.candidates=[\"int4-g32\", \"int4-g32\"]";
        assert!(m(&["quant.target_bpw=4.0", twice]).contains("\"int4-g32\" is listed twice"));
        assert!(m(&["quant.learn=scales", "teacher.model=latent"]).contains("keeps no float weights"));
        let m = message(SMALL, &["teacher.cache=c", "teacher.model=latent"]);
        assert!(
            m.contains("teacher.cache = \"c\": the latent weights say something else after every step"),
            "{m}"
        );
        let m = message(SMALL, &["teacher.cache=c", "loss.forward_kl=0.0", "loss.cross_entropy=1.0"]);
        assert!(m.contains("teacher.cache = \"c\": no term of [loss] reads it"), "{m}");
        let m = message(SMALL, &["teacher.cache=c", "loss.hidden=1.0"]);
        assert!(m.contains("it keeps predictions and no hidden states"), "{m}");
        for (set, want) in [
            ("loss.cross_entropy=0.1", "what the student writes has no right answers"),
            ("teacher.cache=c", "a cache knows nothing of what the student writes"),
            ("loss.on_policy=0.2", "less than half a window of a batch of 2"),
            ("loss.on_policy=1.5", "want a share from 0 to 1"),
            ("loss.on_policy_every=0", "loss.on_policy_every = 0: want at least 1"),
            (
                "loss.on_policy_prompt=64",
                "loss.on_policy_prompt = 64: want at least 1 and less than data.ctx = 64",
            ),
        ] {
            let m = message(SMALL, &["loss.on_policy=0.5", set]);
            assert!(m.contains(want), "{set}: {m}");
        }
        let m = message(SMALL, &["teacher.cache=c", "teacher.top_k=0"]);
        assert_eq!(m, "teacher.top_k = 0: want at least 1");
        let m = message(&format!("{SMALL}[variants.\"a/b\"]\nseed = 1\n"), &[]);
        assert!(m.contains("[variants.a/b]: it names a folder"), "{m}");
    }

    #[test]
    fn a_set_replaces_what_the_file_says_and_text_needs_no_quotes() {
        let sets = [
            "quant.weights=ternary-g64",
            "data.train=[\"x.txt\", \"y.txt\"]",
            "optim.lr=1",
            "teacher.model=latent",
        ];
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        // A whole number where a float is wanted is one.
        let recipe = parse(SMALL, Path::new("r.toml"), &sets).expect("parses").remove(0).recipe;
        assert_eq!((recipe.quant.weights.as_str(), recipe.data.train.len()), ("ternary-g64", 2));
        assert_eq!(recipe.optim.lr, 1.0);
        assert_eq!(Plan::new(&recipe).expect("valid").teacher, TeacherPlan::Latent);
        let m = message(SMALL, &["seed.x=1"]);
        assert!(m.starts_with("--set seed.x=1: "), "{m}");
    }

    #[test]
    fn a_recipe_survives_the_json_of_a_checkpoint() {
        let text =
            format!("{SMALL}[export]\nformat = \"qat\"\n[quant.overrides]\n\"*.down_proj.*\" = \"float\"\n");
        let recipe = parse(&text, Path::new("r.toml"), &[]).expect("parses").remove(0).recipe;
        let json = serde_json::to_string(&recipe).expect("JSON");
        let back: Recipe = serde_json::from_str(&json).expect("a recipe");
        assert_eq!(serde_json::to_string(&back).expect("JSON"), json);
    }
}

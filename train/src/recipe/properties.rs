//! Recipes that nobody would write: whatever the text and whatever the values, reading it ends in a plan or in an error that names
//! the place.
//!
//! Knows no key by name: the list of keys is what the schema itself says it expects, and every one of them is tried.

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{Plan, Recipe, parse};

/// What every message about the file begins with.
const ORIGIN: &str = "r.toml";

/// A recipe with every table, so that a key of any can be put into it; it is accepted as it is.
const WHOLE: &str = r#"
seed = 3
[student]
from = "teacher"
[teacher]
model = "teacher"
[quant]
weights = "int4-g32"
[quant.overrides]
"*.down_proj.*" = "float"
[data]
train = ["a.txt"]
ctx = 64
[loss]
forward_kl = 1.0
[optim]
kind = "muon"
[train]
steps = 10
batch = 2
[export]
format = ["qat", "gguf"]
[eval]
data = ["b.txt"]
"#;

/// Values that some key is sure not to want: other kinds, ends of ranges, what has no end and what is no number.
const VALUES: [&str; 28] = [
    "\"\"",
    "\"x\"",
    "\"int4-g32\"",
    "\"blocks\"",
    "\"chat\"",
    "\"latent\"",
    "\"\\u0000\\n\\\"🦀\"",
    "true",
    "false",
    "0",
    "-1",
    "1",
    "2",
    "9223372036854775807",
    "-9223372036854775808",
    "0.0",
    "-0.0",
    "1.5",
    "1e308",
    "5e-324",
    "inf",
    "-inf",
    "nan",
    "1979-05-27T07:32:00Z",
    "[]",
    "[\"\", \"x\", \"x\"]",
    "[[0.5], [0.5]]",
    "{ x = 1 }",
];

/// What the schema expects in `[table]`, or at the top; asked of it by a key that it can't have.
fn expected(table: &str) -> Vec<String> {
    let text = if table.is_empty() { "zz = 1".to_owned() } else { format!("[{table}]\nzz = 1") };
    let message = toml::from_str::<Recipe>(&text).expect_err("no such key").to_string();
    let listed = message.split_once("unknown field `zz`").expect("it is unknown").1;
    listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Every key that has a value, with dots; those of `student.scratch` too.
fn keys() -> Vec<String> {
    let mut found = Vec::new();
    for name in expected("") {
        match name.as_str() {
            "seed" => found.push(name),
            "variants" => {}
            table => found.extend(expected(table).into_iter().map(|key| format!("{table}.{key}"))),
        }
    }
    found.extend(expected("student.scratch").into_iter().map(|key| format!("student.scratch.{key}")));
    found
}

/// Plans of every variant, or the first error.
fn planned(text: &str, sets: &[String]) -> Result<Vec<Plan>, String> {
    let recipes = parse(text, Path::new(ORIGIN), sets).map_err(|e| e.to_string())?;
    recipes.iter().map(|named| Plan::new(&named.recipe).map_err(|e| e.to_string())).collect()
}

/// A plan's recipe is kept with checkpoints, as JSON: it has to come back as it was.
fn survives(plan: &Plan) {
    let json = serde_json::to_string(&plan.recipe).expect("JSON");
    let back: Recipe = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{json} isn't read again: {e}"));
    assert_eq!(serde_json::to_string(&back).expect("JSON"), json);
}

/// Whether `message` names `key`, or its table where what is wrong is the table as a whole.
fn names(message: &str, key: &str) -> bool {
    let table = key.split_once('.').map_or(key, |(table, _)| table);
    message.contains(key) || message.contains(&format!("[{table}]"))
}

/// Whether `message` says where in the file: a line, a key of the schema, or a table.
fn names_a_place(message: &str, keys: &[String]) -> bool {
    let is_in_the_file = message.contains("at line ") || message.contains("[variants.");
    is_in_the_file || keys.iter().any(|key| names(message, key))
}

/// The same inputs in every run.
fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn the_schema_is_known_whole() {
    let keys = keys();
    for key in ["seed", "quant.weights", "train.steps", "eval.require", "student.scratch.config"] {
        assert!(keys.iter().any(|known| known == key), "{key} is not among {keys:?}");
    }
    let whole = planned(WHOLE, &[]).expect("accepted");
    assert_eq!(whole.len(), 1);
}

#[test]
fn any_value_for_any_key_is_taken_or_refused_by_its_name() {
    let (mut refused, mut unnamed) = (0, Vec::new());
    let keys = keys();
    for key in &keys {
        for value in VALUES {
            let set = format!("{key}={value}");
            match planned(WHOLE, std::slice::from_ref(&set)) {
                Ok(plans) => plans.iter().for_each(survives),
                Err(message) => {
                    refused += 1;
                    if !names(&message, key) {
                        unnamed.push(format!("{set}: {message}"));
                    }
                }
            }
        }
    }
    assert!(unnamed.is_empty(), "{}", unnamed.join("\n"));
    assert!(refused > keys.len(), "each key refuses something: {refused} of {}", keys.len() * VALUES.len());
}

#[test]
fn a_wrong_value_in_the_file_is_found_by_its_line() {
    for key in keys().iter().filter(|key| key.split('.').count() == 2) {
        let (table, name) = key.split_once('.').expect("a table");
        for value in VALUES {
            let text = format!("[{table}]\n\n\n{name} = {value}\n");
            let Err(message) = parse(&text, Path::new(ORIGIN), &[]) else {
                panic!("most tables are missing")
            };
            let message = message.to_string();
            assert!(message.starts_with("r.toml: "), "{message}");
            // What is right so far leaves a message on what is missing.
            assert!(
                message.contains("at line 4, ") || message.contains("missing field `"),
                "{key} = {value}: {message}"
            );
        }
    }
}

#[test]
fn several_values_at_once_are_taken_or_one_of_them_is_named() {
    let keys = keys();
    let change = (0..keys.len(), 0..VALUES.len());
    let changes = prop::collection::vec(change, 2..5);
    runner(3000)
        .run(&changes, |changes| {
            let sets: Vec<String> =
                changes.iter().map(|(key, value)| format!("{}={}", keys[*key], VALUES[*value])).collect();
            match planned(WHOLE, &sets) {
                Ok(plans) => plans.iter().for_each(survives),
                Err(message) => {
                    let is_named = changes.iter().any(|(key, _)| names(&message, &keys[*key]));
                    prop_assert!(is_named, "{sets:?}: {message}");
                }
            }
            Ok(())
        })
        .expect("named");
}

/// Pieces of which texts that look like recipes are made.
const PIECES: [&str; 44] = [
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ".",
    ",",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "#",
    "\\",
    "\n",
    "\n",
    "\n",
    " ",
    "\r\n",
    "\u{feff}",
    "\0",
    "é",
    "\\uD800",
    "\\UFFFFFFFF",
    "+",
    "-",
    "_",
    "0x",
    "1e",
    "1_000",
    "99999999999999999999999",
    "nan",
    "inf",
    "true",
    "07:32",
    "variants",
    "variants.a",
    "quant.overrides",
    "__proto__",
    "train",
    "steps",
    "\"quant.weights\"",
    "zz",
];

/// `text` with pieces put in, taken out and doubled, at places between characters.
fn damaged(text: &str, damages: &[(usize, usize, usize, usize)]) -> String {
    let mut text: Vec<char> = text.chars().collect();
    for &(kind, at, len, piece) in damages {
        let at = at % (text.len() + 1);
        let end = (at + len).min(text.len());
        match kind % 4 {
            0 => drop(text.splice(at..at, PIECES[piece % PIECES.len()].chars()).collect::<Vec<_>>()),
            1 => drop(text.drain(at..end)),
            2 => {
                let copy: Vec<char> = text[at..end].to_vec();
                let to = piece * 7919 % (text.len() + 1);
                drop(text.splice(to..to, copy).collect::<Vec<_>>());
            }
            _ => drop(text.splice(at..end, PIECES[piece % PIECES.len()].chars()).collect::<Vec<_>>()),
        }
    }
    text.into_iter().collect()
}

/// The recipes that come with the project.
fn recipes() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let listed = std::fs::read_dir(folder).expect("listed").map(|entry| entry.expect("listed").path());
    let mut paths: Vec<_> = listed.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    paths.sort();
    let mut texts: Vec<String> =
        paths.iter().map(|path| std::fs::read_to_string(path).expect("a recipe")).collect();
    assert!(texts.len() > 3, "configs/ holds recipes");
    texts.push(WHOLE.to_owned());
    texts
}

fn is_planned_or_names_a_place(text: &str, keys: &[String]) -> Result<(), TestCaseError> {
    match planned(text, &[]) {
        Ok(plans) => plans.iter().for_each(survives),
        Err(message) => prop_assert!(names_a_place(&message, keys), "{text}\n--\n{message}"),
    }
    Ok(())
}

#[test]
fn a_damaged_recipe_is_planned_or_its_error_names_a_place() {
    let (recipes, keys) = (recipes(), keys());
    let damage = (any::<usize>(), any::<usize>(), 1usize..40, any::<usize>());
    let damages = (0..recipes.len(), prop::collection::vec(damage, 1..6));
    runner(4000)
        .run(&damages, |(which, damages)| {
            is_planned_or_names_a_place(&damaged(&recipes[which], &damages), &keys)
        })
        .expect("named");
}

#[test]
fn any_text_is_planned_or_its_error_names_a_place() {
    let keys = keys();
    runner(2000).run(&".{0,200}", |text| is_planned_or_names_a_place(&text, &keys)).expect("named");
    let pieces = prop::collection::vec(0..PIECES.len(), 0..60);
    runner(4000)
        .run(&pieces, |pieces| {
            let text: String = pieces.iter().map(|piece| PIECES[*piece]).collect();
            is_planned_or_names_a_place(&text, &keys)
        })
        .expect("named");
}

#[test]
fn any_argument_is_taken_or_named_as_it_was_given() {
    let keys = keys();
    let key = prop_oneof![(0..keys.len()).prop_map(|at| keys[at].clone()), "[a-z.\" ]{0,20}", ".{0,10}"];
    let value = prop_oneof![(0..VALUES.len()).prop_map(|at| VALUES[at].to_owned()), ".{0,20}"];
    let glue = prop_oneof![Just("="), Just(" = "), Just(""), Just("==")];
    runner(4000)
        .run(&(key, glue, value), |(key, glue, value)| {
            let set = format!("{key}{glue}{value}");
            match planned(WHOLE, std::slice::from_ref(&set)) {
                Ok(plans) => plans.iter().for_each(survives),
                Err(message) => {
                    let as_given = message.starts_with(&format!("--set {set}: "));
                    prop_assert!(as_given || names_a_place(&message, &keys), "{set:?}: {message}");
                }
            }
            Ok(())
        })
        .expect("named");
}

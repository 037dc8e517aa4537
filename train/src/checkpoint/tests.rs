//! What a checkpoint accepts back, and which ones stay. Whole runs that resume are in the trainer's tests.

use qat_infer::model::params;

use super::*;
use crate::ranks::Ranks;
use crate::{
    optim::Optimizer,
    recipe::{self, Plan, Quantization, Rules},
    student::Student,
    tiny,
};

const RECIPE: &str = r#"
[student]
from = "model"
[quant]
weights = "int4-g32"
[data]
train = ["a.txt"]
ctx = 64
[loss]
cross_entropy = 1.0
[train]
steps = 10
batch = 2
"#;

fn plan(sets: &[&str]) -> Plan {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let named = recipe::parse(RECIPE, Path::new("r.toml"), &sets).expect("a recipe");
    Plan::new(&named[0].recipe).expect("valid")
}

fn state(step: usize) -> State {
    let cursor = Cursor { seed: 0, step: step as u64, data: "00".into() };
    let recipe = plan(&[]).recipe;
    State { qat: VERSION, step, recipe, cursor, start_loss: None, sha256: BTreeMap::new() }
}

/// A float student of `layers` layers, and an optimizer for it.
fn student(layers: usize, seed: u64) -> (Student, Optimizer) {
    let config = tiny::config(
        serde_json::json!({"num_hidden_layers": layers, "hidden_size": 32, "intermediate_size": 32}),
    );
    let quantization = Quantization { rules: Rules::float(), ..plan(&[]).quantization };
    let student = Student::new(&tiny::floats(config, seed), quantization, &Device::Cpu).expect("student");
    let optimizer = Optimizer::new(plan(&[]).optim, student.variables(), &Ranks::alone()).expect("state");
    (student, optimizer)
}

fn names(checkpoints: &Checkpoints) -> Vec<String> {
    let list = checkpoints.list().expect("a folder");
    list.iter().map(|p| p.file_name().expect("a name").to_string_lossy().into_owned()).collect()
}

#[test]
fn the_newest_are_kept_and_foreign_files_are_left_alone() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let checkpoints = Checkpoints::of(dir.path());
    let (student, optimizer) = student(1, 1);
    for step in [1, 2, 3] {
        checkpoints.save(state(step), &student, optimizer.state().expect("a state"), 2).expect("saved");
        fs::create_dir_all(dir.path().join("checkpoints/step-mine")).expect("a free disk");
    }
    assert_eq!(names(&checkpoints), ["step-00000002", "step-00000003"]);
    assert!(dir.path().join("checkpoints/step-mine").is_dir());
    let (newest, damaged) = checkpoints.newest().expect("a folder");
    assert_eq!((newest.as_ref().map(|c| c.state.step), damaged.len()), (Some(3), 0));
    fs::write(dir.path().join("checkpoints/step-00000003/optimizer.safetensors"), "x").expect("a free disk");
    let (older, damaged) = checkpoints.newest().expect("a folder");
    assert_eq!((older.as_ref().map(|c| c.state.step), damaged.len()), (Some(2), 1));
    checkpoints.discard_beyond(older.as_ref()).expect("removed");
    assert_eq!(names(&checkpoints), ["step-00000002"]);
    checkpoints.discard_beyond(None).expect("removed");
    assert!(names(&checkpoints).is_empty());
}

#[test]
fn what_a_kill_left_beside_the_newest_goes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let checkpoints = Checkpoints::of(dir.path());
    let (student, optimizer) = student(1, 1);
    for step in [1, 2, 3] {
        checkpoints.save(state(step), &student, optimizer.state().expect("a state"), 3).expect("saved");
    }
    // Killed before the oldest was removed, and in the middle of the next.
    let half = dir.path().join("checkpoints/.step-00000004.partial");
    fs::create_dir(&half).expect("a free disk");
    checkpoints.keep_newest(2).expect("removed");
    assert_eq!(names(&checkpoints), ["step-00000002", "step-00000003"]);
    assert!(!half.exists());
}

#[test]
fn variables_and_moments_come_back_as_they_were() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let checkpoints = Checkpoints::of(dir.path());
    let (saved, mut optimizer) = student(1, 1);
    let ones = |s: &Student| -> Vec<Tensor> {
        s.variables().iter().map(|v| v.var.ones_like().expect("ones")).collect()
    };
    optimizer.step(&ones(&saved), 1.0).expect("a step");
    checkpoints.save(state(1), &saved, optimizer.state().expect("a state"), 1).expect("saved");
    let (other, mut fresh) = student(1, 2);
    let checkpoint = checkpoints.newest().expect("a folder").0.expect("whole");
    checkpoint.restore(&other, &mut fresh, 1).expect("the same model");
    // A second step depends on everything that was saved: values, both moments and the number of steps.
    optimizer.step(&ones(&saved), 1.0).expect("a step");
    fresh.step(&ones(&other), 1.0).expect("a step");
    for (a, b) in saved.variables().iter().zip(other.variables()) {
        let values = |v: &Variable| v.var.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values");
        assert!(values(a) == values(b), "{}", a.name);
    }
}

#[test]
fn a_checkpoint_of_another_model_or_layout_names_what_differs() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let checkpoints = Checkpoints::of(dir.path());
    let (small, optimizer) = student(1, 1);
    let path = checkpoints.save(state(1), &small, optimizer.state().expect("a state"), 1).expect("saved");
    let checkpoint = checkpoints.newest().expect("a folder").0.expect("whole");
    let (large, _) = student(2, 1);
    let m = checkpoint.restore_variables(large.variables()).expect_err("one layer").to_string();
    assert!(
        m.contains("model.layers.1.") && m.contains("is missing; the checkpoint is of another model"),
        "{m}"
    );
    let wide =
        tiny::config(serde_json::json!({"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}));
    assert!(params(&wide).iter().any(|p| p.shape == [64, 32]));
    let quantization = Quantization { rules: Rules::float(), ..plan(&[]).quantization };
    let wide = Student::new(&tiny::floats(wide, 1), quantization, &Device::Cpu).expect("student");
    let m = checkpoint.restore_variables(wide.variables()).expect_err("narrow").to_string();
    assert!(m.contains("mlp.gate_proj.weight: want F32 [64, 32], found F32 [32, 32]"), "{m}");
    let json = fs::read_to_string(path.join(STATE)).expect("state").replacen("\"qat\": 1", "\"qat\": 2", 1);
    fs::write(path.join(STATE), json).expect("a free disk");
    let (_, damaged) = checkpoints.newest().expect("a folder");
    assert!(damaged[0].ends_with("layout version 2, this qat reads 1"), "{damaged:?}");
}

#[test]
fn a_resumed_recipe_may_differ_in_free_keys_only() {
    let check = |sets: &[&str]| same_recipe(&plan(&[]).recipe, &plan(sets).recipe, Path::new("out"));
    let free = [
        "train.log_every=3",
        "train.valid_every=2",
        "train.checkpoint_every=1",
        "export.format=qat",
        "eval.data=[\"b.txt\"]",
    ];
    check(&free).expect("free keys");
    for (set, key, now, then) in [
        ("train.steps=11", "train.steps", "11", "10"),
        ("quant.weights=ternary-g64", "quant.weights", "\"ternary-g64\"", "\"int4-g32\""),
        ("quant.overrides.*.down_proj.*=float", "quant.overrides.*.down_proj.*", "\"float\"", "not set"),
        ("data.train=[\"b.txt\"]", "data.train", "[\"b.txt\"]", "[\"a.txt\"]"),
        ("seed=3", "seed", "3", "0"),
    ] {
        let m = check(&[set]).expect_err("refused").to_string();
        let want = format!("--resume: {key} is {now} now, but the run in out began with {then}; restore it");
        assert!(m.starts_with(&want), "{set}: {m}");
    }
}

//! Whole runs on a model of two layers and a few stories. This file has what they share: a place, a recipe, a way to run.

mod bits;
mod blocks;
mod cache;
mod documents;
mod freezing;
mod gradients;
mod on_policy;
mod phases;
mod pieces;
mod precision;
mod ranks;
mod rounding;
mod trouble;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::Device;
use qat_infer::{
    files::HfWriter,
    model::{Config, params},
};
use qat_quant::kernels::FloatType;
use serde_json::json;

use super::*;
use crate::{
    recipe,
    tiny::{self, tokenizer_files, tokenizer_folder},
};

/// A folder with the shape of a model, and runs in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("temporary folder"));
        let config = format!("{:#}", shape().to_json());
        std::fs::write(place.path("config.json"), config).expect("a free disk");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A float model of the tests' shape in the folder `name`, as a student's start or a teacher; its path as text.
    fn model(&self, name: &str, seed: u64) -> String {
        self.model_of(shape(), name, seed)
    }

    fn model_of(&self, config: Config, name: &str, seed: u64) -> String {
        let floats = tiny::floats(config, seed);
        let (target, json) = (self.path(name), floats.config.to_json());
        let mut writer = HfWriter::create(&target, &json, &tokenizer_files(), FloatType::F32, &json!({}))
            .expect("a new directory");
        for param in params(&floats.config) {
            writer.add(&param.name, &param.shape, &floats.tensors[&param.name]).expect("a tensor");
        }
        writer.finish().expect("written");
        target.display().to_string()
    }

    /// The recipe below with `sets`.
    fn plan(&self, sets: &[&str]) -> Plan {
        let text = format!(
            r#"
            seed = 5
            [student.scratch]
            config = {:?}
            tokenizer = {:?}
            [quant]
            weights = "int4-g32"
            [data]
            train = ["stories:seed=3,bytes=60000"]
            eos = false
            ctx = 32
            [loss]
            cross_entropy = 1.0
            [optim]
            lr = 3e-3
            warmup_steps = 2
            [train]
            steps = 10
            batch = 4
            log_every = 1
            valid_windows = 4
            "#,
            self.path("config.json"),
            tokenizer_folder().join("tokenizer.json"),
        );
        self.plan_of(&text, sets)
    }

    /// The same recipe for a student that starts from the model in `from`.
    fn plan_from(&self, from: &str, sets: &[&str]) -> Plan {
        let plan = self.plan(sets);
        let mut recipe = plan.recipe;
        recipe.student.scratch = None;
        recipe.student.from = Some(from.to_owned());
        Plan::new(&recipe).expect("a valid recipe")
    }

    fn plan_of(&self, text: &str, sets: &[&str]) -> Plan {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        let named = recipe::parse(text, Path::new("test.toml"), &sets).expect("a recipe");
        Plan::new(&named[0].recipe).expect("a valid recipe")
    }

    /// Trains in the folder `out`, until `stop_after` steps are done if a number is given.
    fn train(&self, plan: &Plan, out: &str, start: Start, stop_after: Option<usize>) -> Run {
        self.train_as(Ranks::alone(), plan, out, (start, stop_after))
    }

    /// The same as one of `ranks`.
    fn train_as(
        &self,
        ranks: Ranks,
        plan: &Plan,
        out: &str,
        (start, stop_after): (Start, Option<usize>),
    ) -> Run {
        let stop = AtomicBool::new(false);
        let mut events = Vec::new();
        let (out, cache) = (self.path(out), self.path("cache"));
        let job = Job { plan, out: &out, cache: &cache, device: Device::Cpu, start, ranks };
        let mut report = |event: Event| {
            if matches!(&event, Event::Step(line) if Some(line.step) == stop_after) {
                stop.store(true, Ordering::Relaxed);
            }
            events.push(event);
        };
        let outcome = train(&job, &mut report, &stop);
        let _ = outcome.as_ref().inspect_err(|error| job.ranks.part(error));
        Run { outcome, events, out }
    }

    /// A run from its beginning to its end.
    fn finish(&self, plan: &Plan, out: &str) -> Run {
        let run = self.train(plan, out, Start::Fresh, None);
        assert_eq!(run.outcome.as_ref().expect("a run that goes through"), &Outcome::Finished);
        run
    }
}

/// What became of a run.
struct Run {
    outcome: Result<Outcome>,
    events: Vec<Event>,
    out: PathBuf,
}

impl Run {
    fn losses(&self) -> Vec<f64> {
        self.events
            .iter()
            .filter_map(|e| if let Event::Step(line) = e { Some(line.loss) } else { None })
            .collect()
    }

    fn notes(&self) -> Vec<&str> {
        self.events
            .iter()
            .filter_map(|e| if let Event::Note(note) = e { Some(note.as_str()) } else { None })
            .collect()
    }

    fn refusal(self) -> String {
        self.outcome.expect_err("refused").to_string()
    }

    /// Bytes of the variables and of the moments after `step` steps.
    fn checkpoint(&self, step: usize) -> [Vec<u8>; 2] {
        let folder = self.out.join("checkpoints").join(format!("step-{step:08}"));
        ["model.safetensors", "optimizer.safetensors"]
            .map(|file| std::fs::read(folder.join(file)).expect("a checkpoint"))
    }

    fn checkpoints(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.out.join("checkpoints")) else { return Vec::new() };
        let names = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

fn shape() -> Config {
    tiny::config(
        json!({"vocab_size": 1536, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
        "num_key_value_heads": 1}),
    )
}

//! Small models of random weights, written and read; in each file one of the promises.

mod damage;
mod files;
mod graph;

use std::path::{Path, PathBuf};

use qat_quant::kernels::FloatType;
use qat_quant::{Format, ScaleRule, Scales, pack};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::export::{Export, Target};
use crate::files::{Activations, PackedWriter};
use crate::model::{Config, params};

/// A packed model of random weights, its export, and the folder of both.
struct Exported {
    folder: TempDir,
    source: Source,
}

/// Two layers, wide enough for blocks of 256. Its family's defaults decide about biases and norms of heads.
fn config(family: &str, tied: bool) -> Value {
    json!({
        "model_type": family, "vocab_size": 40, "hidden_size": 256, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2,
    })
}

/// How a tensor is stored, and what its inputs are rounded to.
type Choice = Option<(Format, Activations)>;

fn all(format: &str) -> impl Fn(&Param) -> Choice {
    let format = format.parse().expect("a format");
    move |_| Some((format, Activations::Float))
}

/// A packed model with each matrix as `choose` says, or in f32.
fn packed(
    config: &Value,
    choose: impl Fn(&Param) -> Choice,
    companions: &[(&str, &str)],
) -> (TempDir, Source) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("packed");
    let companion = |(name, content): &(&str, &str)| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("a companion");
        path
    };
    let companions: Vec<PathBuf> = companions.iter().map(companion).collect();
    let mut writer = PackedWriter::create(&path, config, &companions, json!({})).expect("a writer");
    let plan = Config::from_json(config, Path::new("config.json")).expect("a config");
    let mut state = 1_u32;
    for param in params(&plan) {
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let values: Vec<f32> = (0..param.shape.iter().product()).map(|_| noise()).collect();
        let written = match (&*param.shape, choose(&param)) {
            (&[rows, cols], Some((format, activations))) => {
                let scales = Scales::choose(format, ScaleRule::Absmax, &values, rows, cols);
                let packed = pack(&param.name, format, &values, rows, cols, &scales).expect("fits");
                writer.packed(&param.name, packed.as_ref(), activations)
            }
            _ => writer.float(&param.name, FloatType::F32, &param.shape, &values),
        };
        written.expect("written");
    }
    writer.finish().expect("finished");
    let source = Source::open(&path).expect("a packed model");
    (folder, source)
}

fn try_export(folder: &TempDir, options: &Options) -> Result<()> {
    let job = Export { target: Target::Onnx, options, requantize: false, report: None };
    job.run(&folder.path().join("packed"), Export::stage(&folder.path().join("onnx"))?)?;
    Ok(())
}

impl Exported {
    /// A packed model, exported by the driver, which has read it back.
    fn new(config: &Value, choose: impl Fn(&Param) -> Choice) -> Self {
        Self::with(config, choose, &Options::default())
    }

    fn with(config: &Value, choose: impl Fn(&Param) -> Choice, options: &Options) -> Self {
        let (folder, source) = packed(config, choose, &[]);
        try_export(&folder, options).expect("exported");
        Self { folder, source }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("onnx")
    }

    fn model(&self) -> proto::ModelProto {
        let bytes = std::fs::read(self.dir().join(MODEL_FILE)).expect("model.onnx");
        proto::ModelProto::decode(&*bytes).expect("a model")
    }

    fn written(&self) -> Result<Written> {
        Written::open(&self.dir(), self.source.config.tie_word_embeddings)
    }
}

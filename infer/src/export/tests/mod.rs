//! What the exporters promise, one sentence a test, on small models of random weights and on those of the shared folder.
#![allow(clippy::unwrap_used, reason = "a test says by a panic what went wrong")]

mod bitnet;
mod mlx;
mod ollama;
mod table;

use std::path::{Path, PathBuf};

use qat_quant::kernels::FloatType;
use qat_quant::{Format, ScaleRule, Scales, pack};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::files::{Activations, HfDir, PackedWriter, companions};
use crate::model::{Role, Stored, params};

/// A packed model and where its exports go.
struct Place {
    dir: TempDir,
    source: Source,
}

/// `config.json` of a tiny model: two layers, an untied head where `tied` is false.
fn tiny(model_type: &str, tied: bool) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 96, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu", "tie_word_embeddings": tied, "eos_token_id": 2,
    })
}

fn format(spelling: &str) -> Format {
    spelling.parse().unwrap()
}

impl Place {
    /// A model of seeded noise, each matrix in the format that `choose` says, or in F32.
    fn random(config: &Value, choose: impl Fn(&Param) -> Option<Format>) -> Self {
        let mut state = 1_u32;
        let noise = |param: &Param| {
            let next = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            (0..param.shape.iter().product()).map(next).collect()
        };
        Self::packed(config, &[], choose, noise)
    }

    /// The float model in `from`, rounded.
    fn rounded(from: &Path, choose: impl Fn(&Param) -> Option<Format>) -> Self {
        let hf = HfDir::open(from).unwrap();
        let config = Config::from_json(&hf.config, &hf.config_path()).unwrap();
        let values = |param: &Param| {
            let stored = Stored::of(param, &config, |name| hf.tensors.contains(name));
            hf.tensors.stored_f32(&stored).unwrap()
        };
        Self::packed(&hf.config, &companions(from).unwrap(), choose, values)
    }

    /// The matrices of `values` on the grids that `scales` gives for them.
    fn with_scales(
        config: &Value,
        choose: impl Fn(&Param) -> Option<Format>,
        values: impl FnMut(&Param) -> Vec<f32>,
        scales: impl Fn(&[f32]) -> Scales,
    ) -> Self {
        Self::on_grids(config, &[], choose, values, |_, values, _| scales(values))
    }

    fn packed(
        config: &Value,
        companions: &[PathBuf],
        choose: impl Fn(&Param) -> Option<Format>,
        values: impl FnMut(&Param) -> Vec<f32>,
    ) -> Self {
        let absmax = |format, values: &[f32], [rows, cols]: [usize; 2]| {
            Scales::choose(format, ScaleRule::Absmax, values, rows, cols)
        };
        Self::on_grids(config, companions, choose, values, absmax)
    }

    fn on_grids(
        config: &Value,
        companions: &[PathBuf],
        choose: impl Fn(&Param) -> Option<Format>,
        mut values: impl FnMut(&Param) -> Vec<f32>,
        scales: impl Fn(Format, &[f32], [usize; 2]) -> Scales,
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("packed");
        let mut writer = PackedWriter::create(&path, config, companions, json!("test")).unwrap();
        for param in params(&Config::from_json(config, Path::new("config.json")).unwrap()) {
            let values = values(&param);
            match (&*param.shape, choose(&param)) {
                (&[rows, cols], Some(format)) => {
                    let scales = scales(format, &values, [rows, cols]);
                    let packed = pack(&param.name, format, &values, rows, cols, &scales).unwrap();
                    let activations = match format {
                        Format::TernaryTensor => Activations::Int8Token,
                        _ => Activations::Float,
                    };
                    writer.packed(&param.name, packed.as_ref(), activations).unwrap();
                }
                _ => writer.float(&param.name, FloatType::F32, &param.shape, &values).unwrap(),
            }
        }
        writer.finish().unwrap();
        Self { source: Source::open(&path).unwrap(), dir }
    }

    /// The export as `target`, in place, or the message of its refusal.
    fn export(&self, target: Target, options: &Options) -> Result<PathBuf, String> {
        let out = self.dir.path().join(target.to_string());
        let job = Export { target, options, requantize: false, report: None };
        let staged = Export::stage(&out).unwrap();
        let written = job.run(&self.source.dir.path, staged).map_err(|e| e.to_string())?;
        assert_eq!(written.path, out);
        Ok(out)
    }
}

/// The JSON file `name` in `dir`.
fn read_json(dir: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
}

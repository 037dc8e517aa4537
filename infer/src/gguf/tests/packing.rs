//! Fixtures packed in chosen formats, and exported as GGUF.

use std::path::{Path, PathBuf};

use qat_quant::kernels::FloatType;
use qat_quant::{Format, ScaleRule, Scales, pack};
use serde_json::{Value as Json, json};

use crate::export::{Export, Options, Target};
use crate::files::{Activations, HfDir, PackedWriter, companions};
use crate::gguf::GGUF_FILE;
use crate::model::{Config, Param, Role, params};
use crate::shared::shared;

/// A folder that is gone with this value, the packed model in it, and where the export goes.
pub struct Packed {
    folder: tempfile::TempDir,
    pub packed: PathBuf,
}

/// The format of each matrix: of the layers, of the embedding, of the head; none: float.
#[derive(Clone, Copy)]
pub struct Formats(pub Option<Format>, pub Option<Format>, pub Option<Format>);

impl Formats {
    /// All matrices in one.
    pub fn all(format: Format) -> Self {
        Self(Some(format), Some(format), Some(format))
    }

    fn of(self, param: &Param) -> Option<Format> {
        match param.role {
            Role::Projection => self.0,
            Role::Embedding => self.1,
            Role::Head => self.2,
            Role::Norm | Role::Bias | Role::Conv => None,
        }
    }
}

impl Packed {
    /// The model in `dir` in `formats`, with the scales that llama.cpp chooses for int4-g32.
    pub fn of(dir: &Path, formats: Formats, rule: ScaleRule) -> Self {
        let hf = HfDir::open(dir).unwrap();
        let config = Config::from_json(&hf.config, &hf.config_path()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let packed = folder.path().join("packed");
        let mut writer =
            PackedWriter::create(&packed, &hf.config, &companions(dir).unwrap(), json!({})).unwrap();
        for param in params(&config) {
            let values = hf.tensors.f32(&param.name, &param.shape).unwrap();
            match formats.of(&param) {
                Some(format) => {
                    let [rows, cols] = [param.shape[0], param.shape[1]];
                    let scales = Scales::choose(format, rule, &values, rows, cols);
                    let matrix = pack(&param.name, format, &values, rows, cols, &scales).unwrap();
                    writer.packed(&param.name, matrix.as_ref(), Activations::Float).unwrap();
                }
                None => writer.float(&param.name, FloatType::F32, &param.shape, &values).unwrap(),
            }
        }
        writer.finish().unwrap();
        Self { folder, packed }
    }

    /// A float model of the shape `config` whose every number is another, without a tokenizer.
    pub fn made(config: &Json) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let packed = folder.path().join("packed");
        let mut writer = PackedWriter::create(&packed, config, &[], json!({})).unwrap();
        let mut next = 0;
        for Param { name, shape, .. } in params(&Config::from_json(config, Path::new("config.json")).unwrap())
        {
            let values: Vec<f32> =
                (next..next + shape.iter().product::<usize>()).map(|n| n as f32 * 1e-3).collect();
            next += values.len();
            writer.float(&name, FloatType::F32, &shape, &values).unwrap();
        }
        writer.finish().unwrap();
        Self { folder, packed }
    }

    /// A fixture of the shared data.
    pub fn fixture(name: &str, formats: Formats) -> Option<Self> {
        Some(Self::of(&shared("fixtures")?.join(name), formats, ScaleRule::Absmax))
    }

    /// Exports it into the directory `name`, and gives the path of the file.
    pub fn export(&self, name: &str, options: &Options) -> crate::Result<PathBuf> {
        let out = self.folder.path().join(name);
        let job = Export { target: Target::Gguf, options, requantize: false, report: None };
        job.run(&self.packed, Export::stage(&out)?)?;
        Ok(out.join(GGUF_FILE))
    }
}

/// The format of that spelling.
pub fn format(spelling: &str) -> Format {
    spelling.parse().unwrap()
}

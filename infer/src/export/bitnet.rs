//! BitNet for Hugging Face transformers: ternary projections in two bits a weight, everything else as floats.
//!
//! How matrices lie in the file, [`BitNetDir`](crate::files::BitNetDir) says. Projections with biases need the class that adds them
//! after the scale, `bitlinear`, and get 1/scale in F32; everybody else gets the scale in BF16 as it was trained, for `autobitlinear`.
//!
//! Both round their inputs to 8 bits per token, as models with `int8-token` activations do. The rest of the model is that of its own
//! family, which need not be BitNet's.

use std::path::Path;

use qat_quant::kernels::FloatType;
use qat_quant::{Format, PackedRef};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::{Exporter, Options, ReadBack, Source, SourceTensor};
use crate::files::{
    Activations, Announced, BITNET_ROWS as ROWS, CONFIG_FILE, LinearClass, ShardWriter, StagedDir, Storage,
    TensorFiles, float_dtype, read_json, with_dtype, write_surroundings,
};
use crate::model::{Config, Family, Param, Role};
use crate::{Error, Result};

pub(super) struct BitNet;

impl Exporter for BitNet {
    fn runtime(&self) -> &'static str {
        "Hugging Face transformers, as packed BitNet layers"
    }

    fn library(&self) -> &'static str {
        "transformers"
    }

    fn usage(&self, name: &str) -> String {
        format!(
            "```python\n# pip install transformers torch accelerate\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             model = AutoModelForCausalLM.from_pretrained(\"{name}\")\ntokenizer = AutoTokenizer.from_pretrained(\"{name}\")\n```\n\n\
             These layers round their inputs to 8 bits per token, whatever the model was scored with. Load without `dtype=`: \
             transformers mixes types when it differs from the file's.\n"
        )
    }

    fn knows(&self, config: &Config) -> Result<()> {
        let lacks = match config.family {
            Family::Phi3 => {
                "have one scale for q, k and v together, which are one tensor of a Phi-3, and the model one for each"
            }
            Family::Gemma3 => "are not written for the norms of a Gemma 3",
            _ => return Ok(()),
        };
        Err(Error::Invalid(format!(
            "bitnet: packed BitNet layers {lacks}; mlx, gguf and hf have such models"
        )))
    }

    fn check(&self, source: &Source, options: &Options) -> Result<()> {
        let trained = source.dir.manifest.source["method"] == "trained";
        for param in source.params() {
            let packed = matches!(source.storage(&param), Storage::Packed(_));
            if packed && param.role == Role::Projection {
                check_rows(&param)?;
                if trained && source.tensor(&param)?.activations == Activations::Float {
                    let problem = "was trained with float inputs, and transformers' BitNet layers round theirs to 8 bits per token; train \
                                   with quant.activations = \"int8-token\", or export to a runtime with float inputs: mlx, gguf, hf";
                    return Err(Error::tensor(&param.name, problem));
                }
            } else if packed && !matches!(options.dtype, None | Some(FloatType::F32)) {
                let problem = "is a quantized table that BitNet files hold as floats, exact only in f32; leave the dtype out";
                return Err(Error::tensor(&param.name, problem));
            }
        }
        Ok(())
    }

    fn holds(&self, param: &Param, storage: Storage) -> bool {
        match storage {
            Storage::Packed(format) => param.role != Role::Projection || format == Format::TernaryTensor,
            Storage::Float(_) => true,
        }
    }

    fn bytes(&self, _: &Config, tensors: &[(Param, Storage)], options: &Options) -> Option<u64> {
        let float = float_dtype(options.dtype.unwrap_or(FloatType::F32));
        let scale = match tensors.iter().any(|(param, _)| param.role == Role::Bias) {
            true => Dtype::F32,
            false => Dtype::BF16,
        };
        let mut files = Announced::sharded("pt");
        for (param, storage) in tensors {
            match (storage, &*param.shape) {
                (Storage::Packed(_), &[rows, cols]) if param.role == Role::Projection => {
                    files.add(&format!("{}.weight_scale", param.module()), scale, &[1]);
                    files.add(&param.name, Dtype::U8, &[rows / ROWS, cols]);
                }
                _ => files.add(&param.name, float, &param.shape),
            }
        }
        Some(files.bytes())
    }

    fn write(&self, source: &Source, options: &Options, into: &StagedDir) -> Result<()> {
        let float = options.dtype.unwrap_or(FloatType::F32);
        let class = class_of(source);
        write_surroundings(into, &config(source, class, float), &source.companions()?)?;
        let mut writer = ShardWriter::create(into.path());
        for param in source.params() {
            let tensor = source.tensor(&param)?;
            match ternary(&param, &tensor)? {
                Some(matrix) => write_matrix(&mut writer, &param, matrix, class)?,
                None => writer.add_values(&param.name, float, &param.shape, &tensor.values()?)?,
            }
        }
        writer.finish()?;
        Ok(())
    }

    fn read_back<'a>(&self, _source: &'a Source, dir: &Path) -> Result<Box<dyn ReadBack + 'a>> {
        let config: Value = read_json(&dir.join(CONFIG_FILE))?;
        let class = &config["quantization_config"]["linear_class"];
        let class = LinearClass::ALL.into_iter().find(|known| class == known.name());
        Ok(Box::new(Written {
            tensors: TensorFiles::open(dir)?,
            class: class.unwrap_or(LinearClass::AutoBitLinear),
        }))
    }
}

/// The class that gives the model's arithmetic.
fn class_of(source: &Source) -> LinearClass {
    match source.params().iter().any(|param| param.role == Role::Bias) {
        true => LinearClass::BitLinear,
        false => LinearClass::AutoBitLinear,
    }
}

fn check_rows(param: &Param) -> Result<()> {
    let rows = param.shape[0];
    if rows.is_multiple_of(ROWS) {
        return Ok(());
    }
    let problem = format!(
        "has {rows} rows, and BitNet files pack {ROWS} rows into a byte; export as gguf or mlx instead"
    );
    Err(Error::tensor(&param.name, problem))
}

/// The matrix, if it is one that is packed in two bits.
fn ternary<'a>(param: &Param, tensor: &'a SourceTensor) -> Result<Option<PackedRef<'a>>> {
    if param.role == Role::Projection { tensor.packed() } else { Ok(None) }
}

fn config(source: &Source, class: LinearClass, float: FloatType) -> Value {
    let mut config = with_dtype(&source.config.to_json(), float);
    let mut floats = vec!["lm_head".to_owned()];
    for param in source.params() {
        if param.role == Role::Projection && matches!(source.storage(&param), Storage::Float(_)) {
            floats.push(param.module().to_owned());
        }
    }
    config["quantization_config"] = json!({
        "quant_method": "bitnet",
        "linear_class": class.name(),
        "quantization_mode": "offline",
        "modules_to_not_convert": floats,
    });
    config
}

fn write_matrix(
    writer: &mut ShardWriter,
    param: &Param,
    matrix: PackedRef<'_>,
    class: LinearClass,
) -> Result<()> {
    let scale = matrix.tensor_scale().unwrap_or(0.0);
    let name = format!("{}.weight_scale", param.module());
    match class {
        LinearClass::AutoBitLinear => writer.add_values(&name, FloatType::BF16, &[1], &[scale])?,
        LinearClass::BitLinear => {
            writer.add_values(&name, FloatType::F32, &[1], &[inverse(&param.name, scale)?])?
        }
    }
    writer.add(&param.name, Dtype::U8, &[matrix.rows() / ROWS, matrix.cols()], &quarters(&matrix))
}

/// 1/scale, from which rounding to bf16 gives the scale again.
fn inverse(name: &str, scale: f32) -> Result<f32> {
    let inverse = 1.0 / scale;
    if inverse.is_finite() && LinearClass::BitLinear.scale(inverse) == scale {
        return Ok(inverse);
    }
    let problem = format!(
        "its scale {scale} has no inverse in f32, which transformers' bitlinear wants; export as gguf or mlx instead"
    );
    Err(Error::tensor(name, problem))
}

/// The codes, plus one, of four rows a byte, each a quarter of the matrix from the next.
fn quarters(matrix: &PackedRef<'_>) -> Vec<u8> {
    let (rows, cols) = (matrix.rows() / ROWS, matrix.cols());
    let mut bytes = vec![0; rows * cols];
    bytes.par_chunks_mut(cols).enumerate().for_each_init(
        || vec![0; cols],
        |codes, (row, out)| {
            for quarter in 0..ROWS {
                matrix.codes_row(quarter * rows + row, codes);
                for (out, code) in out.iter_mut().zip(codes.iter()) {
                    *out |= ((code + 1) as u8) << (2 * quarter);
                }
            }
        },
    );
    bytes
}

struct Written {
    tensors: TensorFiles,
    class: LinearClass,
}

impl ReadBack for Written {
    fn values(&self, param: &Param) -> Result<Vec<f32>> {
        if param.role != Role::Projection || self.tensors.info(&param.name)?.dtype != Dtype::U8 {
            return self.tensors.f32(&param.name, &param.shape);
        }
        let (rows, cols) = (param.shape[0], param.shape[1]);
        self.tensors.check_shape(&param.name, &[rows / ROWS, cols])?;
        let stored = self.tensors.f32(&format!("{}.weight_scale", param.module()), &[1])?[0];
        let scale = self.class.scale(stored);
        let bytes = self.tensors.bytes(&param.name)?;
        let value = |at: usize| {
            let (row, column) = (at / cols, at % cols);
            let (quarter, row) = (row / (rows / ROWS), row % (rows / ROWS));
            let code = i16::from(bytes[row * cols + column] >> (2 * quarter) & 3) - 1;
            scale * f32::from(code)
        };
        Ok((0..rows * cols).into_par_iter().map(value).collect())
    }

    fn float(&self, param: &Param) -> Result<FloatType> {
        Ok(self.tensors.float(&param.name, &param.shape)?.0)
    }
}

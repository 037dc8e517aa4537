//! onnxruntime's files: `model.onnx`, `model.onnx.data` and what onnxruntime-genai wants beside them.
//!
//! The graph is the decoder's own forward function, recorded (`record.rs`); matrices are multiplied as codes by
//! `MatMulNBits` (`grid.rs`). Knows no training. Invariant: what the reader (`reader.rs`) finds through the graph's nodes,
//! as onnxruntime does, is what was trained.

mod data;
mod genai;
mod graph;
mod grid;
mod products;
mod proto;
mod reader;
mod record;
#[cfg(test)]
mod tests;
mod weights;

use std::path::Path;

use prost::Message;
use qat_quant::Format;
use qat_quant::kernels::FloatType;

use super::{Exporter, Options, ReadBack, Source};
use crate::files::{StagedDir, Storage, write_surroundings};
use crate::model::{Config, Decoder, Family, Param};
use crate::{Error, Result};

use self::data::DataWriter;
use self::genai::{GENAI_FILE, MODEL_FILE, genai_config};
use self::grid::Grid;
use self::reader::Written;
use self::record::Recorder;
use self::weights::Writer;

pub(super) struct Onnx;

/// Widths of a head that onnxruntime's attention turns.
const HEAD_STEP: usize = 16;

impl Exporter for Onnx {
    fn runtime(&self) -> &'static str {
        "ONNX Runtime GenAI"
    }

    fn library(&self) -> &'static str {
        "onnxruntime-genai"
    }

    fn usage(&self, name: &str) -> String {
        format!(
            "```python\nimport onnxruntime_genai as og\n\nmodel = og.Model(\"{name}\")\ntokenizer = og.Tokenizer(model)\n\
             params = og.GeneratorParams(model)\nparams.set_search_options(max_length=256)\n\
             generator = og.Generator(model, params)\ngenerator.append_tokens(tokenizer.encode(\"Once upon a time\"))\n\
             while not generator.is_done():\n    generator.generate_next_token()\n\
             print(tokenizer.decode(generator.get_sequence(0)))\n```\n"
        )
    }

    fn knows(&self, config: &Config) -> Result<()> {
        let lacks = match config.family {
            Family::Lfm2 => {
                "keeps keys and values from token to token, and not what short convolutions remember"
            }
            Family::Phi3 => {
                "wants two sets of angles to choose from by the length of a text, which is not written here"
            }
            Family::Gemma3 => {
                "wants two sets of angles, of layers that see all and of those that see a window, which is not written here"
            }
            Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::BitNet => return Ok(()),
        };
        let problem = format!(
            "onnx: onnxruntime-genai {lacks}; mlx, gguf and hf have {:?}",
            config.family.model_type()
        );
        Err(Error::Invalid(problem))
    }

    fn check(&self, source: &Source, options: &Options) -> Result<()> {
        let head_dim = source.config.head_dim;
        if !head_dim.is_multiple_of(HEAD_STEP) {
            return Err(Error::Invalid(format!(
                "onnx: onnxruntime's attention wants heads of a multiple of {HEAD_STEP}, the model's have {head_dim}; \
                 mlx, gguf and hf take them"
            )));
        }
        match options.dtype {
            None | Some(FloatType::F32) => Ok(()),
            Some(FloatType::F16) => check_half(source),
            Some(FloatType::BF16) => {
                Err(Error::Invalid("--dtype bf16: onnxruntime computes in f32 or f16 on a CPU".into()))
            }
        }
    }

    fn holds(&self, param: &Param, storage: Storage) -> bool {
        match (storage, &*param.shape) {
            (Storage::Packed(format), &[_, cols]) => Grid::of(format, cols).is_some(),
            (storage, _) => matches!(storage, Storage::Float(_)),
        }
    }

    /// The graph, and where each tensor is put, are made while it is written.
    fn bytes(&self, _: &Config, _: &[(Param, Storage)], _: &Options) -> Option<u64> {
        None
    }

    fn write(&self, source: &Source, options: &Options, into: &StagedDir) -> Result<()> {
        let companions = source.companions()?;
        write_surroundings(into, &source.config.to_json(), &companions)?;
        let context = options.context.unwrap_or(source.config.max_position_embeddings);
        let genai = genai_config(source, &companions, context)?;
        into.write(GENAI_FILE, format!("{genai:#}\n").as_bytes())?;

        let mut data = DataWriter::create(into.path())?;
        let float = options.dtype.unwrap_or(FloatType::F32);
        let mut writer = Writer { source, data: &mut data, float };
        let decoder = Decoder::build(source.config.clone(), &mut writer)?;
        let mut recorder = Recorder::new(writer, context);
        let hidden = decoder.forward(&mut recorder, &[])?;
        let logits = decoder.logits(&mut recorder, &hidden)?;
        let model = recorder.finish(&logits).into_model();
        data.finish()?;
        into.write(MODEL_FILE, &model.encode_to_vec())
    }

    fn read_back<'a>(&self, source: &'a Source, dir: &Path) -> Result<Box<dyn ReadBack + 'a>> {
        Ok(Box::new(Written::open(dir, source.config.tie_word_embeddings)?))
    }
}

/// Half precision holds the scales of every format but one.
fn check_half(source: &Source) -> Result<()> {
    let wide = |param: &Param| source.storage(param) == Storage::Packed(Format::TernaryTensor);
    let Some(first) = source.params().into_iter().find(wide) else { return Ok(()) };
    let problem = "its scale is a bf16 number, which f16 can't hold; leave --dtype f16 out";
    Err(Error::tensor(first.name, problem))
}

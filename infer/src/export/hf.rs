//! Hugging Face float weights: the values of the trained grid, for any tool that reads those.

use std::path::Path;

use qat_quant::kernels::FloatType;

use super::{Exporter, Options, ReadBack, Source};
use crate::files::{
    Announced, ShardWriter, StagedDir, Storage, TensorFiles, float_dtype, with_dtype, write_surroundings,
};
use crate::model::{Config, Param};
use crate::{Error, Result};

pub(super) struct Hf;

impl Exporter for Hf {
    fn runtime(&self) -> &'static str {
        "Hugging Face transformers and what reads its layout, as plain floats"
    }

    fn library(&self) -> &'static str {
        "transformers"
    }

    fn usage(&self, name: &str) -> String {
        format!(
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\nmodel = AutoModelForCausalLM.from_pretrained(\"{name}\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{name}\")\n```\n\nThe weights are the values of the trained grid in f32: as large as \
             the float model, for tools that know no packed format.\n"
        )
    }

    fn check(&self, source: &Source, options: &Options) -> Result<()> {
        let packed = |param: &Param| matches!(source.storage(param), Storage::Packed(_));
        match (options.dtype, source.params().iter().find(|param| packed(param))) {
            (Some(FloatType::F16 | FloatType::BF16), Some(param)) => Err(Error::tensor(
                &param.name,
                "values of a quantized matrix are exact only in f32; leave the dtype out",
            )),
            _ => Ok(()),
        }
    }

    fn holds(&self, _param: &Param, _storage: Storage) -> bool {
        true
    }

    fn bytes(&self, _: &Config, tensors: &[(Param, Storage)], options: &Options) -> Option<u64> {
        let float = float_dtype(options.dtype.unwrap_or(FloatType::F32));
        let mut files = Announced::sharded("pt");
        tensors.iter().for_each(|(param, _)| files.add(&param.name, float, &param.shape));
        Some(files.bytes())
    }

    fn write(&self, source: &Source, options: &Options, into: &StagedDir) -> Result<()> {
        let float = options.dtype.unwrap_or(FloatType::F32);
        write_surroundings(into, &with_dtype(&source.config.to_json(), float), &source.companions()?)?;
        let mut writer = ShardWriter::create(into.path());
        for param in source.params() {
            writer.add_values(&param.name, float, &param.shape, &source.tensor(&param)?.values()?)?;
        }
        writer.finish()?;
        Ok(())
    }

    fn read_back<'a>(&self, _source: &'a Source, dir: &Path) -> Result<Box<dyn ReadBack + 'a>> {
        Ok(Box::new(Written(TensorFiles::open(dir)?)))
    }
}

struct Written(TensorFiles);

impl ReadBack for Written {
    fn values(&self, param: &Param) -> Result<Vec<f32>> {
        self.0.f32(&param.name, &param.shape)
    }

    fn float(&self, param: &Param) -> Result<FloatType> {
        Ok(self.0.float(&param.name, &param.shape)?.0)
    }
}

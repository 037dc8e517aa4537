//! Hugging Face float weights: the values of the trained grid, for any tool that reads those.

use std::path::Path;

use qat_quant::kernels::FloatType;

use super::{Exporter, Options, ReadBack, Source};
use crate::files::{
    Announced, ShardWriter, StagedDir, Storage, TensorFiles, float_dtype, with_dtype, write_surroundings,
};
use crate::model::{Config, FileTensor, Param, Stored, file_tensors};
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

    fn bytes(&self, config: &Config, _: &[(Param, Storage)], options: &Options) -> Option<u64> {
        let float = float_dtype(options.dtype.unwrap_or(FloatType::F32));
        let mut files = Announced::sharded("pt");
        file_tensors(config)
            .iter()
            .for_each(|tensor| files.add(&tensor.param.name, float, &tensor.param.shape));
        Some(files.bytes())
    }

    fn write(&self, source: &Source, options: &Options, into: &StagedDir) -> Result<()> {
        let float = options.dtype.unwrap_or(FloatType::F32);
        write_surroundings(into, &with_dtype(&source.config.to_json(), float), &source.companions()?)?;
        let mut writer = ShardWriter::create(into.path());
        for tensor in source.file_tensors() {
            let FileTensor { param, .. } = &tensor;
            writer.add_values(&param.name, float, &param.shape, &source.file_values(&tensor)?)?;
        }
        writer.finish()?;
        Ok(())
    }

    fn read_back<'a>(&self, source: &'a Source, dir: &Path) -> Result<Box<dyn ReadBack + 'a>> {
        Ok(Box::new(Written { tensors: TensorFiles::open(dir)?, config: &source.config }))
    }
}

struct Written<'a> {
    tensors: TensorFiles,
    config: &'a Config,
}

impl Written<'_> {
    fn stored(&self, param: &Param) -> Stored {
        Stored::of(param, self.config, |name| self.tensors.contains(name))
    }
}

impl ReadBack for Written<'_> {
    fn values(&self, param: &Param) -> Result<Vec<f32>> {
        self.tensors.stored_f32(&self.stored(param))
    }

    fn offset(&self, param: &Param) -> f32 {
        self.stored(param).offset
    }

    fn float(&self, param: &Param) -> Result<FloatType> {
        Ok(self.tensors.stored_float(&self.stored(param))?.0)
    }
}

//! Hugging Face float weights: the values of the trained grid, for any tool that reads those.

use std::path::Path;

use qat_quant::kernels::FloatType;

use super::{Exporter, Options, ReadBack, Source};
use crate::files::{ShardWriter, StagedDir, Storage, TensorFiles, with_dtype, write_surroundings};
use crate::model::Param;
use crate::{Error, Result};

pub(super) struct Hf;

impl Exporter for Hf {
    fn check(&self, _source: &Source, options: &Options) -> Result<()> {
        match options.dtype {
            None | Some(FloatType::F32) => Ok(()),
            Some(_) => Err(Error::Invalid(
                "--dtype: values of a trained grid are exact only in f32; leave it out for hf".into(),
            )),
        }
    }

    fn holds(&self, _param: &Param, _storage: Storage) -> bool {
        true
    }

    fn write(&self, source: &Source, _options: &Options, into: &StagedDir) -> Result<()> {
        write_surroundings(
            into,
            &with_dtype(&source.config.to_json(), FloatType::F32),
            &source.companions()?,
        )?;
        let mut writer = ShardWriter::create(into.path());
        for param in source.params() {
            writer.add_values(
                &param.name,
                FloatType::F32,
                &param.shape,
                &source.tensor(&param)?.values()?,
            )?;
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

    fn float(&self, _param: &Param) -> FloatType {
        FloatType::F32
    }
}

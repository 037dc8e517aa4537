//! Weights that turn back again and again are held at their code, where `quant.freeze_after` asks for it.
//!
//! What is remembered of each weight is kept with the student's variables, and so in every checkpoint. Knows no step: whoever moves weights
//! calls [`Student::follow`] afterwards.

use qat_infer::model::{Param, params};
use qat_quant::Format;

use super::{Kind, Student, bias_name, scale_name};
use crate::{Error, Result, ops::Turns};

use candle_core::{DType, Device, Tensor};

fn turns_name(param: &Param) -> String {
    format!("{}_turns", param.name)
}

impl Student {
    /// Adds what is remembered of the weights of `param`, if they are counted.
    pub(super) fn add_turns(&mut self, param: &Param, device: &Device) -> Result<()> {
        let counted = self.format(param).is_some_and(Turns::counts);
        if self.quantization.freeze_after.is_some() && counted {
            let zeros = Tensor::zeros(param.shape.as_slice(), DType::F32, device)?;
            self.push(turns_name(param), Kind::Weight, zeros)?;
        }
        Ok(())
    }

    /// Refuses to freeze where there is nothing to freeze.
    pub(super) fn check_turns(&self) -> Result<()> {
        let Some(after) = self.quantization.freeze_after else { return Ok(()) };
        let counted = |param: &Param| self.format(param).is_some_and(Turns::counts);
        if params(&self.config).iter().any(counted) {
            return Ok(());
        }
        Err(Error::Config(format!(
            "quant.freeze_after = {after}: no matrix has a format of 4 bits or fewer, and weights of finer ones are not frozen; \
             leave it out"
        )))
    }

    /// What is remembered of the weights of `param`, if they are counted.
    pub(super) fn turns(&self, param: &Param) -> Result<Option<Turns>> {
        let name = turns_name(param);
        match self.quantization.freeze_after {
            Some(after) if self.index.contains_key(&name) => {
                Ok(Some(Turns::new(self.var(&name)?.as_tensor(), after)))
            }
            _ => Ok(None),
        }
    }

    /// After the weights or grids of one layer, or of the whole student, have moved: counts whose code turned back, and puts the weights that
    /// are held in the middle of their cells.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn follow(&self, layer: Option<usize>) -> Result<()> {
        for (param, format, turns) in self.counted()? {
            if layer.is_none_or(|layer| param.part().is_some_and(|(of, _)| of == layer)) {
                let scale = self.var(&scale_name(&param))?.as_tensor();
                let bias = self.grid_bias(&param, format, scale)?;
                turns.follow(format, self.var(&param.name)?.as_tensor(), scale, bias.as_ref())?;
            }
        }
        Ok(())
    }

    /// The share of all quantized weights that is held; none where weights are not counted.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn held(&self) -> Result<Option<f64>> {
        if self.quantization.freeze_after.is_none() {
            return Ok(None);
        }
        let all = params(&self.config).into_iter().filter(|param| self.format(param).is_some());
        let all: usize = all.map(|param| param.shape.iter().product::<usize>()).sum();
        let held =
            self.counted()?.iter().map(|(.., turns)| turns.held()).sum::<candle_core::Result<f64>>()?;
        Ok(Some(held / all.max(1) as f64))
    }

    fn counted(&self) -> Result<Vec<(Param, Format, Turns)>> {
        let mut found = Vec::new();
        for param in params(&self.config) {
            if let (Some(format), Some(turns)) = (self.format(&param), self.turns(&param)?) {
                found.push((param, format, turns));
            }
        }
        Ok(found)
    }

    /// The learned biases of `param`'s grid, or those that follow from its `scale`.
    pub(super) fn grid_bias(&self, param: &Param, format: Format, scale: &Tensor) -> Result<Option<Tensor>> {
        Ok(match (format.has_bias(), self.quantization.even) {
            (false, _) => None,
            (true, true) => Some(crate::ops::multiply(scale, f64::from(-format.middle()))?),
            (true, false) => Some(self.var(&bias_name(param))?.as_tensor().clone()),
        })
    }
}

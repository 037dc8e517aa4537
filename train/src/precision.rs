//! What the activations of a training step are made of, in memory and in matrix products.
//!
//! Knows no operation. Whatever is chosen, weights, moments, scales, sums and everything that is validated, saved or shipped is f32.

use candle_core::{DType, Device};

use crate::{
    Error, Result,
    ops::gpu::{Path, path},
};

/// The type of activations, of their gradients, and of the operands of products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// 24 bits of significand.
    #[default]
    F32,
    /// 8 bits of significand and the exponents of f32: half the memory, and on matrix units several times the speed.
    Bf16,
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::Config(format!("train.precision = {s:?}: want \"f32\" or \"bf16\""))),
        }
    }
}

impl Precision {
    /// As a tensor's.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Refuses what `device` has no operations for.
    ///
    /// # Errors
    /// bf16 on the CPU.
    pub(crate) fn check(self, device: &Device) -> Result<()> {
        if self == Self::Bf16 && path(device) == Path::Cpu {
            return Err(Error::Config(
                "train.precision = \"bf16\" is for GPUs, and this run is on the CPU: set train.precision = \"f32\", or run it with \
                 --device metal or --device cuda"
                    .into(),
            ));
        }
        Ok(())
    }
}

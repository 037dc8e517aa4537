use super::Work;
use candle_core::{Result, Tensor};
pub(super) fn run(_: &Work, _: &[&Tensor]) -> Result<Vec<Tensor>> { candle_core::bail!("later") }

use candle_core::{Result, Tensor};
pub fn quantize_activations(_x: &Tensor, _lambda: f32) -> Result<Tensor> {
    candle_core::bail!("wip")
}

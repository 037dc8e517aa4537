//! How weights move: recipes, data, teacher, losses, fake quantization, optimizer, checkpoints and the loop.

pub mod loss;
pub mod ops;

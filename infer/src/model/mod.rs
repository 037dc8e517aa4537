//! What a model is: its configuration, the names and shapes of its tensors, and the one forward function.
//!
//! Knows no numbers' storage, no device and no file but the meaning of `config.json`. What carries the
//! operations out is an [`Exec`]; what the weights are is decided by a [`Weights`].

mod config;
mod decoder;
mod exec;
mod hf_config;
mod mixer;
pub mod names;
mod reach;
mod rope;
mod stored;
#[cfg(test)]
mod tests;

pub use config::{Config, Family, Gate, RopeScaling, ShortConvs, Sliding};
pub use decoder::{Decoder, Layer, Linear};
pub use exec::{AttentionShape, Exec, Sight};
pub use mixer::{Attention, Mixer, ShortConv};
pub use names::{Param, Part, Role, Weights, params};
pub use reach::Reach;
pub use rope::{Rope, Ropes};
pub use stored::{FileTensor, Stored, file_tensors};

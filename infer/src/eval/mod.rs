//! What a model is worth: how well it predicts a text, how far it is from a reference, how fast it runs, what it weighs.
//!
//! Everything is measured through the executor that will run the model, on the file that will be shipped; a float model
//! goes through the same code. Prints nothing.

mod deferral;
mod evaluation;
mod gate;
mod mean;
mod memory;
mod report;
mod score;
mod speed;
pub mod tasks;
#[cfg(test)]
mod tests;
mod text;
mod windows;
mod work;

pub use deferral::{Deferral, DeferralOptions, Measured, Point, find_deferral};
pub use evaluation::{Options, evaluate};
pub use gate::{Gate, GateResult};
pub use mean::Mean;
pub use memory::peak_rss_bytes;
pub use report::Report;
pub use score::{Score, Versus, WindowScore, compare, score};
pub use speed::{Speed, measure_speed};
pub use text::Text;
pub use windows::{Protocol, Windows};
pub use work::processor_time;

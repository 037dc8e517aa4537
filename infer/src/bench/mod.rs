//! How fast this machine is: what it moves to and from memory, and how many tokens a model reads and writes in a second.
//!
//! Knows no text and prints nothing. Wall-clock numbers: they belong to the machine and to what else runs on it.

mod bandwidth;
mod machine;
mod sustain;
mod throughput;

pub use bandwidth::{Bandwidth, measure_bandwidth};
pub use machine::cpu_name;
pub use sustain::{Point, sustain};
pub use throughput::{Samples, Setup, Test, Work, measure};

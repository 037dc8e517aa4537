//! Black-box tests of what users type, and of what the tree promises.

mod accidents;
mod bench;
mod exports;
mod families;
mod gates;
mod generate;
mod gguf;
mod inspect;
mod journey;
mod logits;
mod model;
mod models;
mod outputs;
mod plan;
mod recipes;
mod runs;
mod talk;
mod targets;
mod tasks;
mod teaching;
mod tidy;
mod tiers;
mod workshop;

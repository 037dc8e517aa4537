//! Black-box tests of what users type, and of what the tree promises.

mod accidents;
mod bench;
mod conversations;
mod energy;
mod exports;
mod families;
mod gates;
mod generate;
mod gguf;
mod hub;
mod inspect;
mod journey;
mod logits;
mod model;
mod models;
mod outputs;
mod plan;
mod recipes;
mod reports;
mod runs;
mod targets;
mod teaching;
mod tidy;
mod tiers;
mod workshop;

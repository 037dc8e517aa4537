//! The runtime for Apple's GPUs as far as any machine can check it: the lists that it makes, and what they compute.
//!
//! All in a module of that name, so that `cargo test -- metal` finds the tests.

mod metal;
#[path = "../random_model/mod.rs"]
mod random_model;

//! The runtime for Apple's GPUs as far as any machine can check it: the lists that it makes, and what they compute.

mod emulator;
mod lists;
mod models;
#[path = "../random_model/mod.rs"]
mod random_model;
mod runs;
mod sessions;

//! What the crate promises to its users, tested from outside: one binary, one file per promise.

#![allow(clippy::unwrap_used, reason = "in a test, unwrapping is the assertion")]

mod bits;
mod distortion;
mod gguf;
mod gptq;
mod gradients;
mod matrices;
mod metal;
mod metal_gather;
mod metal_inputs;
mod metal_products;
mod mlx;
#[cfg(target_arch = "aarch64")]
mod neon;
mod products;
mod tiers;

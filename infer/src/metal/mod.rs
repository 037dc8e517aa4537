//! The runtime for Apple's GPUs.

pub mod kernels;

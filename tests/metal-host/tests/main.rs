//! What the emulator computes, and what it finds. On a Mac there is no emulator.

#![cfg(not(target_os = "macos"))]

mod functions;
mod planted;
mod sums;

//! What the emulator computes, and what it finds.

mod functions;
mod planted;
mod sums;

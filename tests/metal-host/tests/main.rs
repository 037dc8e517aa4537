//! What the emulator computes, and what it finds.

mod sums;

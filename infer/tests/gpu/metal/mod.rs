//! One file for each kind of check, and what they share.

mod emulator;
mod lists;
mod models;
mod runs;
mod sessions;
